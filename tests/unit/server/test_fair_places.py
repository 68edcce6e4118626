"""Places go from tenant to tenant, however many calls of one wait."""

import asyncio

import pytest

from nst_server.gateway.fair_places import FairPlaces


class Work:
    """Calls that hold a place until they are told to end."""

    def __init__(self, places: FairPlaces) -> None:
        self._places = places
        self._ends: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []

    def call(self, tenant: str, number: int = 0) -> asyncio.Task[str]:
        name = f"{tenant} {number}"
        self._ends[name] = asyncio.Event()
        return asyncio.create_task(self._places.run(tenant, lambda: self._work(name)))

    async def _work(self, name: str) -> str:
        self.begun.append(name)
        await self._ends[name].wait()
        return name

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_no_more_is_done_at_once_than_there_are_places():
    work = Work(FairPlaces(2))
    calls = [work.call("a", number) for number in range(4)]
    await settle()
    assert work.begun == ["a 0", "a 1"]
    for number in range(4):
        await work.end(f"a {number}")
    assert await asyncio.gather(*calls) == work.begun == ["a 0", "a 1", "a 2", "a 3"]


async def test_a_tenant_with_many_calls_does_not_hold_up_the_others():
    work = Work(FairPlaces(1))
    calls = [work.call("many", number) for number in range(4)]
    await settle()
    calls += [work.call("one"), work.call("two", 0), work.call("two", 1)]
    await settle()
    for name in ["many 0", "many 1", "one 0", "two 0", "many 2", "two 1", "many 3"]:
        assert work.begun[-1] == name
        await work.end(name)
    await asyncio.gather(*calls)


async def test_who_gives_up_takes_no_place_along_and_no_turn_of_its_tenants():
    work = Work(FairPlaces(1))
    first, given_up, next_one, last = work.call("a"), work.call("b", 0), work.call("b", 1), work.call("c")
    await settle()
    given_up.cancel()
    await settle()
    for name in ["a 0", "b 1", "c 0"]:
        assert work.begun[-1] == name
        await work.end(name)
    await asyncio.gather(first, next_one, last)
    again = work.call("d")
    await settle()
    assert work.begun[-1] == "d 0"
    await work.end("d 0")
    await again


async def test_a_place_that_comes_to_one_who_has_just_left_goes_on():
    places = FairPlaces(0)
    work = Work(places)
    left = work.call("a")
    await settle()
    places._pass_on()
    left.cancel()
    last = work.call("b")
    await settle()
    assert work.begun == ["b 0"]
    await work.end("b 0")
    await last


async def test_work_that_nobody_waits_for_any_more_holds_its_place_to_its_end():
    """A thread cannot be stopped, and what it holds in memory neither."""
    work = Work(FairPlaces(1))
    first = work.call("a")
    await settle()
    first.cancel()
    second = work.call("b")
    await settle()
    assert work.begun == ["a 0"]
    await work.end("a 0")
    assert work.begun == ["a 0", "b 0"]
    await work.end("b 0")
    await second


async def test_what_the_work_raises_is_raised_and_frees_the_place():
    places = FairPlaces(1)

    async def fails() -> None:
        raise KeyError("no")

    for _ in range(2):
        with pytest.raises(KeyError):
            await places.run("a", fails)
