"""What was measured of style pictures, kept for the next job with the same style."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

# The statistic of a picture by tap, each a tuple of tensors.
Measured = dict[str, Any]


class StyleCache:
    """Measured style pictures, the least recently used of which makes room for the next.

    Args:
        capacity: bytes kept at most; what is larger is not kept, and 0 keeps nothing.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, Measured] = OrderedDict()
        self.nbytes = 0

    def get(self, key: Hashable, measure: Callable[[], Measured]) -> Measured:
        """What is kept under the key, the same bits as when it was measured; or else what `measure` gives."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        measured = measure()
        if _nbytes(measured) <= self._capacity:
            self._entries[key] = measured
            self.nbytes += _nbytes(measured)
        while self.nbytes > self._capacity:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= _nbytes(oldest)
        return measured


def _nbytes(measured: Measured) -> int:
    return sum(tensor.nbytes for tensors in measured.values() for tensor in tensors)
