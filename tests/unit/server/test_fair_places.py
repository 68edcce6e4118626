"""Places go from tenant to tenant, however many calls of one wait."""

import asyncio

from nst_server.gateway.fair_places import FairPlaces


class Work:
    """Calls that hold a place until they are told to end."""

    def __init__(self, places: FairPlaces) -> None:
        self._places = places
        self._ends: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []

    def call(self, tenant: str, number: int = 0) -> asyncio.Task[None]:
        return asyncio.create_task(self._call(f"{tenant} {number}", tenant))

    async def _call(self, name: str, tenant: str) -> None:
        self._ends[name] = asyncio.Event()
        async with self._places.place(tenant):
            self.begun.append(name)
            await self._ends[name].wait()

    def end(self, name: str) -> None:
        self._ends[name].set()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_hold_a_place_than_there_are():
    work = Work(FairPlaces(2))
    calls = [work.call("a", number) for number in range(4)]
    await settle()
    assert work.begun == ["a 0", "a 1"]
    for number in range(4):
        work.end(f"a {number}")
        await settle()
    await asyncio.gather(*calls)
    assert work.begun == ["a 0", "a 1", "a 2", "a 3"]


async def test_a_tenant_with_many_calls_does_not_hold_up_the_others():
    work = Work(FairPlaces(1))
    calls = [work.call("many", number) for number in range(4)]
    await settle()
    calls += [work.call("one"), work.call("two", 0), work.call("two", 1)]
    await settle()
    order = ["many 0", "many 1", "one 0", "two 0", "many 2", "two 1", "many 3"]
    for name in order:
        assert work.begun[-1] == name
        work.end(name)
        await settle()
    await asyncio.gather(*calls)


async def test_who_gives_up_takes_no_place_along():
    work = Work(FairPlaces(1))
    first, waits, last = work.call("a", 0), work.call("b", 0), work.call("c", 0)
    await settle()
    waits.cancel()
    await settle()
    work.end("a 0")
    await settle()
    assert work.begun == ["a 0", "c 0"]
    late = work.call("d")
    await settle()
    work.end("c 0")
    await last  # and the place has been given to one who gives up before it hears of it
    late.cancel()
    await settle()
    again = work.call("e")
    await settle()
    assert work.begun[-1] == "e 0"
    work.end("e 0")
    await asyncio.gather(first, again)
