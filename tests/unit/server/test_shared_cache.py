"""Values are made once for all who want them, and the latest are kept within a bound."""

import asyncio

import pytest

from nst_server.gateway.shared_cache import SharedCache


class Maker:
    """Counts how often it is asked."""

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.made = 0
        self.let = asyncio.Event()

    async def __call__(self) -> bytes:
        self.made += 1
        await self.let.wait()
        return self.value


async def test_who_asks_together_is_given_one_value():
    cache, maker = SharedCache(100, len), Maker(b"value")
    asking = [asyncio.create_task(cache.get("key", maker)) for _ in range(10)]
    await asyncio.sleep(0)
    asking.pop().cancel()
    maker.let.set()
    values = await asyncio.gather(*asking)
    assert all(value is maker.value for value in values)
    assert await cache.get("key", maker) is maker.value
    assert maker.made == 1


async def test_a_failure_is_not_kept():
    cache, maker = SharedCache(100, len), Maker(b"value")
    maker.let.set()

    async def fails() -> bytes:
        raise KeyError("away")

    with pytest.raises(KeyError):
        await cache.get("key", fails)
    assert await cache.get("key", maker) == b"value"


async def test_what_was_used_longest_ago_makes_room():
    cache = SharedCache(100, len)
    makers = {key: Maker(bytes(40)) for key in "abc"}
    for maker in makers.values():
        maker.let.set()
    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, makers[key])
    assert {key: maker.made for key, maker in makers.items()} == {"a": 1, "b": 2, "c": 1}


async def test_what_is_too_large_is_not_kept():
    cache, large, small = SharedCache(100, len), Maker(bytes(101)), Maker(bytes(100))
    for maker in (large, small):
        maker.let.set()
    for _ in range(2):
        await cache.get("small", small)
        await cache.get("large", large)
    assert (large.made, small.made) == (2, 1)
