"""Uploads share a bounded memory, wait for it, and never wait for one another for ever."""

import asyncio
import random

import pytest

from nst_server.config import GatewaySettings
from nst_server.gateway.errors import Refusal
from nst_server.gateway.upload_memory import SMALL_BYTES, Part, RequestMemory, UploadMemory

LIMIT = 1000


def memory(**settings) -> UploadMemory:
    limits = GatewaySettings(max_upload_bytes=LIMIT, **settings)
    return UploadMemory(limits, RequestMemory(limits))


async def started(coroutine) -> asyncio.Task[None]:
    """A task that has gone as far as it can for now."""
    task = asyncio.create_task(coroutine)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_a_part_takes_what_has_arrived_and_no_more():
    shared = memory()
    with shared.part(500), shared.part(500) as second, shared.part(500) as third:
        await second.grow(250)
        await third.grow(250)


async def test_one_upload_can_be_finished_when_the_rest_of_the_memory_is_full():
    shared = memory()
    with shared.part(500) as first, shared.part(500) as second, shared.part(500) as third:
        await first.grow(500)
        await second.grow(300)
        waiting = await started(third.grow(1))
        assert not waiting.done()
        await second.grow(200)
        assert not waiting.done()
        waiting.cancel()


@pytest.mark.parametrize("leaver", [0, 1])
async def test_who_waits_goes_on_when_another_has_left(leaver):
    shared = memory()
    with shared.part(500) as third:
        blocks = [shared.part(500), shared.part(500)]
        for block in blocks:
            await block.__enter__().grow(500)
        waiting = await started(third.grow(400))
        assert not waiting.done()
        blocks[leaver].__exit__(None, None, None)
        await asyncio.wait_for(waiting, 5)
        blocks[1 - leaver].__exit__(None, None, None)


async def test_who_waits_too_long_is_told_which_limit_to_blame():
    shared = memory(upload_timeout_seconds=0.01)
    with shared.part(500) as first, shared.part(500) as second, shared.part(500) as third:
        await first.grow(500)
        await second.grow(500)
        with pytest.raises(Refusal, match="max_upload_bytes = 1000") as refused:
            await third.grow(1)
    assert refused.value.retry_seconds > 0


def test_what_never_fits_is_refused_at_once():
    with pytest.raises(Refusal, match="max_upload_bytes = 1000") as refused, memory().part(501):
        pass
    assert refused.value.retry_seconds is None


@pytest.mark.parametrize("seed", range(5))
async def test_any_uploads_come_to_an_end_within_the_limit(seed):
    rng = random.Random(seed)
    shared, held, most = memory(), 0, 0

    async def upload(size: int, steps: list[int]) -> None:
        nonlocal held, most
        with shared.part(size) as part:
            arrived = 0
            for step in steps:
                step = min(step, size - arrived)
                await grow(part, step)
                arrived += step
                held += step
                most = max(most, held)
                await asyncio.sleep(0)
            held -= arrived

    async def grow(part: Part, size: int) -> None:
        await asyncio.wait_for(part.grow(size), 10)

    uploads = [upload(rng.randint(1, 500), [rng.randint(1, 200) for _ in range(20)]) for _ in range(60)]
    await asyncio.gather(*uploads)
    assert 500 < most <= LIMIT
    assert held == 0


async def test_requests_that_do_not_fit_beside_others_are_refused():
    limit, large = 10 * SMALL_BYTES, SMALL_BYTES + 1
    requests = RequestMemory(GatewaySettings(max_upload_bytes=limit))
    with requests.part(2 * limit), requests.part(SMALL_BYTES):
        with pytest.raises(Refusal, match=f"max_upload_bytes = {limit}") as refused, requests.part(large):
            pass
        assert refused.value.retry_seconds
    with requests.part(limit - large), requests.part(large):
        pass
