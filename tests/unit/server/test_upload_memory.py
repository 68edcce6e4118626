"""Uploads share a bounded memory, wait for it, and never wait for one another for ever."""

import asyncio
import random
from contextlib import ExitStack

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
    with ExitStack() as stack:
        for tenant in ("a", "a", "b", "b"):
            await stack.enter_context(shared.part(tenant, 500)).grow(125)


async def test_one_upload_can_be_finished_when_the_rest_of_the_memory_is_full():
    shared = memory()
    with shared.part("a", 250) as first, shared.part("b", 500) as second, shared.part("b", 500) as third:
        await first.grow(250)
        await second.grow(250)
        await third.grow(1)
        waiting = await started(second.grow(1))
        assert not waiting.done()
        await third.grow(499)
        assert not waiting.done()
        waiting.cancel()


async def test_a_tenant_whose_uploads_are_slow_leaves_others_their_room():
    shared = memory()
    with ExitStack() as stack:
        slow = [stack.enter_context(shared.part("slow", 125)) for _ in range(5)]
        for part in slow[:3]:
            await part.grow(125)
        waiting = [await started(part.grow(1)) for part in slow[3:]]
        for size in (250, 375):
            await asyncio.wait_for(stack.enter_context(shared.part("other", size)).grow(size), 5)
        assert not any(upload.done() for upload in waiting)
        for upload in waiting:
            upload.cancel()


FULL = (("a", 250), ("b", 250), ("c", 500))  # the last is being finished


@pytest.mark.parametrize("leaver", range(3))
async def test_who_waits_goes_on_when_another_has_left(leaver):
    shared = memory()
    with shared.part("d", 500) as fourth:
        blocks = [shared.part(tenant, size) for tenant, size in FULL]
        for block, (_, size) in zip(blocks, FULL, strict=True):
            await block.__enter__().grow(size)
        waiting = await started(fourth.grow(200))
        assert not waiting.done()
        blocks.pop(leaver).__exit__(None, None, None)
        await asyncio.wait_for(waiting, 5)
        for block in blocks:
            block.__exit__(None, None, None)


async def test_who_waits_too_long_is_told_which_limit_to_blame():
    shared = memory(upload_timeout_seconds=0.01)
    with ExitStack() as stack:
        for tenant, size in FULL:
            await stack.enter_context(shared.part(tenant, size)).grow(size)
        with pytest.raises(Refusal, match="max_upload_bytes = 1000") as refused:
            await stack.enter_context(shared.part("d", 500)).grow(1)
    assert refused.value.retry_seconds > 0


def test_what_never_fits_is_refused_at_once():
    with pytest.raises(Refusal, match="max_upload_bytes = 1000") as refused, memory().part("a", 501):
        pass
    assert refused.value.retry_seconds is None


@pytest.mark.parametrize("seed", range(5))
async def test_any_uploads_come_to_an_end_within_the_limit(seed):
    rng = random.Random(seed)
    shared, held, most = memory(), 0, 0

    async def upload(tenant: str, size: int, steps: list[int]) -> None:
        nonlocal held, most
        with shared.part(tenant, size) as part:
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

    uploads = [
        upload(rng.choice("aab"), rng.randint(1, 500), [rng.randint(1, 200) for _ in range(20)]) for _ in range(60)
    ]
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
