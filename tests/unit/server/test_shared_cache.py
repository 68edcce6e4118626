"""Values are made once for all who want them, and the latest are kept within a bound."""

import asyncio

import pytest
from work_in_hand import Work

from nst_server.gateway.shared_cache import SharedCache


async def test_who_asks_together_is_given_one_value():
    cache, maker = SharedCache(100, len), Work(b"value")
    asking = [asyncio.create_task(cache.get("key", maker)) for _ in range(10)]
    await asyncio.sleep(0)
    asking.pop().cancel()
    maker.let.set()
    values = await asyncio.gather(*asking)
    assert all(value is maker.value for value in values)
    assert await cache.get("key", maker) is maker.value
    assert maker.begun == 1


async def test_a_failure_is_not_kept():
    cache, maker, failing = SharedCache(100, len), Work(b"value"), Work()
    for work in (maker, failing):
        work.let.set()
    with pytest.raises(KeyError):
        await cache.get("key", failing)
    assert await cache.get("key", maker) == b"value"


async def test_what_was_used_longest_ago_makes_room():
    cache = SharedCache(100, len)
    makers = {key: Work(bytes(40)) for key in "abc"}
    for maker in makers.values():
        maker.let.set()
    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, makers[key])
    assert {key: maker.begun for key, maker in makers.items()} == {"a": 1, "b": 2, "c": 1}


async def test_what_is_too_large_is_not_kept():
    cache, large, small = SharedCache(100, len), Work(bytes(101)), Work(bytes(100))
    for maker in (large, small):
        maker.let.set()
    for _ in range(2):
        await cache.get("small", small)
        await cache.get("large", large)
    assert (large.begun, small.begun) == (2, 1)
