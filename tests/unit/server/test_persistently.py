"""What is tried again and again ends when its task is cancelled."""

import asyncio

import nats.errors
import pytest

from nst_server.jobs import keeper
from nst_server.jobs.backbone import persistently


@pytest.mark.parametrize("error", [None, nats.errors.TimeoutError()])
@pytest.mark.parametrize("repeat", [lambda ask: persistently(ask, seconds=None), lambda ask: keeper._every(0.0, ask)])
async def test_a_cancellation_that_comes_with_the_answer_counts(repeat, error):
    asked: list[asyncio.Future[str]] = []

    async def ask() -> str:
        asked.append(asyncio.get_running_loop().create_future())
        return await asyncio.wait_for(asked[-1], 30)  # as the library does

    asking = asyncio.create_task(repeat(ask))
    await asyncio.sleep(0)
    if error is None:
        asked[0].set_result("answer")
    else:
        asked[0].set_exception(error)
    asking.cancel()
    _, left = await asyncio.wait({asking}, timeout=2)
    assert not left
    assert asking.cancelled()
    assert len(asked) == 1
