"""Values made once for all who want them, and the latest of them kept."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from nst_server.shared_tasks import SharedTasks

Value = TypeVar("Value")


class SharedCache(Generic[Value]):
    """The values used last, by key, bounded by their size together."""

    def __init__(self, max_bytes: int, size: Callable[[Value], int]) -> None:
        """`size` tells a value's size in bytes."""
        self._max_bytes = max_bytes
        self._size = size
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._kept_bytes = 0
        self._making = SharedTasks[Value]()

    async def get(self, key: Hashable, make: Callable[[], Awaitable[Value]]) -> Value:
        """The value, made by `make` if it is not kept; what that raises is raised to all who wait for it."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        return await self._making.run(key, partial(self._make, key, make))

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[Value]]) -> Value:
        value = await make()
        size = self._size(value)
        if size <= self._max_bytes:
            self._kept[key] = value
            self._kept_bytes += size
            while self._kept_bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= self._size(oldest)
        return value
