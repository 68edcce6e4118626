"""Memory that answers hold while their clients take them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class HeldBytes:
    """How much is held by tenants: at most `limit` bytes in all, and half of it by one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: Counter[str] = Counter()

    def fits(self, tenant: str, size: int) -> bool:
        """Whether there is room for so much more. What is alone always fits."""
        others, own = self._held.total(), self._held[tenant]
        return not ((others and others + size > self.limit) or (own and own + size > self.limit // 2))

    @contextmanager
    def holding(self, tenant: str, size: int) -> Iterator[None]:
        """Holds so much, whether or not it fits."""
        self._held[tenant] += size
        try:
            yield
        finally:
            self._held[tenant] -= size
            self._held += Counter()  # only those that hold something stay
