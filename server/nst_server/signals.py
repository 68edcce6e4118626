"""SIGTERM, SIGINT and SIGHUP as an event of the running loop, and work that ends when it comes."""

import asyncio
import signal
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The process was asked to stop before the work was done."""


def stop_requested() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets, or SIGHUP unless it is ignored, as under nohup.

    Needs a running loop in the main thread.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    hears = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hears else [])):
        loop.add_signal_handler(number, stop.set)
    return stop


async def unless(stop: asyncio.Event, work: Awaitable[T]) -> T:
    """The work's outcome; when `stop` comes first, the work is cancelled.

    Raises:
        Stopped: `stop` came first.
    """
    working = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)  # whatever it ends with is nobody's concern any more
    raise Stopped
