"""What is tried again and again ends when its task is cancelled."""

import asyncio

import nats.errors
import pytest

from nst_server.jobs.backbone import persistently


@pytest.mark.parametrize("error", [None, nats.errors.TimeoutError()])
async def test_a_cancellation_that_comes_with_the_answer_counts(error):
    asked: list[asyncio.Future[str]] = []

    async def ask() -> str:
        asked.append(asyncio.get_running_loop().create_future())
        return await asyncio.wait_for(asked[-1], 30)  # as the library does

    asking = asyncio.create_task(persistently(ask, seconds=None))
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
