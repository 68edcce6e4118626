"""Places for work that only so much of may be done at once, shared by tenants."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class FairPlaces:
    """So many places. Tenants that wait for one take turns, however many calls of each there are."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, tenant: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Waits for a place, and does the work in it. Once begun it holds its place to its end, whoever leaves."""
        await self._take(tenant)
        working = asyncio.create_task(work())
        working.add_done_callback(self._done)
        return await asyncio.shield(working)

    async def _take(self, tenant: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came just then
                self._pass_on()
            raise

    def _done(self, working: asyncio.Task[Any]) -> None:
        if not working.cancelled():
            working.exception()  # taken, as who asked may have left
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            tenant, turns = self._waiting.popitem(last=False)
            while turns:
                turn = turns.popleft()
                if not turn.cancelled():
                    if turns:
                        self._waiting[tenant] = turns
                    turn.set_result(None)
                    return
        self._free += 1
