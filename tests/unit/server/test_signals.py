"""Work that ends when a process is asked to stop."""

import asyncio
import gc
import os
import signal
from typing import Any

import pytest

from nst_server.signals import Stopped, stop_requested, unless


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_process_is_asked_to_stop(number: signal.Signals):
    """SIGHUP is the terminal's that it was started in, when that is closed."""
    stop = stop_requested()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.wait(), 10)


async def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop_requested()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_stopping_ends_all_of_the_work_and_leaves_nothing_for_the_log():
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    stop, ended = asyncio.Event(), []

    async def part(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    asyncio.get_running_loop().call_soon(stop.set)
    with pytest.raises(Stopped):
        await unless(stop, asyncio.gather(part("one"), part("two")))
    gc.collect()
    assert sorted(ended) == ["one", "two"]
    assert unheard == []


async def test_work_that_ends_first_gives_what_it_gives():
    async def work() -> int:
        return 3

    assert await unless(asyncio.Event(), work()) == 3
