"""Work that is done once for all who want it at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedTasks(Generic[T]):
    """Tasks by key: who wants what is under way waits for it."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[T]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the work returns, or raises, for all who wait for it. Once begun it goes on, whoever leaves.

        Work that is cancelled, which only the end of the process does, is so for all.
        """
        if key not in self._running:
            self._running[key] = asyncio.create_task(work())
            self._running[key].add_done_callback(partial(self._done, key))
        return await asyncio.shield(self._running[key])

    def _done(self, key: Hashable, task: asyncio.Task[T]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # taken, as all who waited may have left
