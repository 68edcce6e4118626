"""Cutting a picture into tiles whose feature maps, put together, are those of the whole picture.

Pure geometry and arithmetic, without torch. A tile owns a rectangle of the picture and is computed
on a larger one, its halo included: wide enough that what lies beyond it cannot be felt at the
positions that the tile owns, at any tap in use. At the picture's own edges there is no halo, and
the network pads there as it does for the whole picture.
"""

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, dropwhile, islice
from operator import neg

from nst_engine.options import BudgetError
from nst_engine.vgg import Vgg

# Max pooling remembers where each maximum was, as a 64-bit integer, or in its window if it is merged.
INDEX_BYTES, MERGED_INDEX_BYTES = 8, 1
MIB = 2**20


@dataclass(frozen=True)
class Span:
    """One side of a tile, in pixels: it owns [start, stop) and is computed on [first, last)."""

    first: int
    start: int
    stop: int
    last: int

    @property
    def computed(self) -> slice:
        """The pixels that the network is given."""
        return self.computed_at(1)

    def computed_at(self, stride: int) -> slice:
        """What becomes of them in the map at a tap of that stride, counted in the map of the whole picture."""
        return slice(self.first // stride, self.last // stride)

    def own(self, stride: int) -> slice:
        """What it owns of the map at a tap of that stride, counted in the map of the whole picture."""
        return slice(self.start // stride, self.stop // stride)

    def own_within(self, stride: int = 1) -> slice:
        """The same, counted in the map of the tile."""
        own, offset = self.own(stride), self.first // stride
        return slice(own.start - offset, own.stop - offset)


@dataclass(frozen=True)
class Tile:
    """A rectangle of a picture."""

    rows: Span
    columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is computed for it."""
        return self.rows.last - self.rows.first, self.columns.last - self.columns.first

    @property
    def pixels(self) -> int:
        """How many pixels are computed for it."""
        height, width = self.size
        return height * width


def whole(height: int, width: int) -> Tile:
    """The tile that is all of a picture."""
    return Tile(Span(0, 0, height, height), Span(0, 0, width, width))


def spans(length: int, count: int, stride: int, halo: int, *, level: bool = False) -> tuple[Span, ...]:
    """A side of `length` pixels in `count` spans that own about as much each or, if `level`, compute as much.

    Every boundary is a multiple of `stride` from the start, so that pooling windows line up, and
    the last span takes what does not fill a stride. `halo` is a multiple of `stride` too, and
    `count` is at most length // stride.
    """
    return _Division(length, count, stride, halo, level).spans


def grid(height: int, width: int, stride: int, halo: int, pixels: int) -> tuple[Tile, ...]:
    """The tiles, none computed on more than `pixels`, that have the fewest pixels to compute in all.

    Empty when no tile is small enough.
    """
    rows, columns = _divisions(height, stride, halo), _divisions(width, stride, halo)
    shortest = list(accumulate((wide.longest for wide in columns), min))
    best: tuple[tuple[int, int], _Division, _Division] | None = None
    for tall in rows:
        # More columns only add halo: the fewest that fit are the best for these rows.
        fewest = bisect_left(shortest, -(pixels // tall.longest), key=neg)
        if fewest == len(columns):
            continue
        wide = columns[fewest]
        cost = tall.total * wide.total, tall.count * wide.count
        if best is None or cost < best[0]:
            best = cost, tall, wide
    return () if best is None else _tiles(*best[1:])


def shared_grid(height: int, width: int, stride: int, halo: int, pixels: int, processes: int) -> tuple[Tile, ...]:
    """The tiles, none computed on more than `pixels`, of which each of several processes has the least to compute.

    Each process has one at least, unless there are not as many squares of a stride. The tiles are of
    about one size, so that each process may take the same number. Empty when no tile is small enough.
    """
    rows, columns = (_divisions(length, stride, halo, level=True) for length in (height, width))
    enough = min(processes, len(rows) * len(columns))
    best: tuple[tuple[int, int], _Division, _Division] | None = None
    for tall in rows:

        def too_few_or_large(wide: _Division, tall: _Division = tall) -> bool:
            return tall.count * wide.count < enough or tall.longest * wide.longest > pixels

        # Among as many divisions as there are processes is one of which all have the same number.
        for wide in islice(dropwhile(too_few_or_large, columns), processes):
            rounds = -(-tall.count * wide.count // processes)
            cost = rounds * tall.longest * wide.longest, tall.total * wide.total
            if best is None or cost < best[0]:
                best = cost, tall, wide
    return () if best is None else _tiles(*best[1:])


@dataclass(frozen=True)
class _Division:
    """A side of `length` pixels cut into `count` spans; see `spans`."""

    length: int
    count: int
    stride: int
    halo: int
    level: bool

    @property
    def spans(self) -> tuple[Span, ...]:
        """All of them, in order."""
        return tuple(self._span(index) for index in range(self.count))

    @cached_property
    def longest(self) -> int:
        """The most pixels that are computed for a span."""
        ends = max(span.last - span.first for span in self._ends)
        if not self._inner:
            return ends
        # What two of them own differs by a stride at most.
        most = -(-(self._cut(self._inner.stop) - self._cut(self._inner.start)) // (self.stride * len(self._inner)))
        return max(ends, most * self.stride + 2 * self.halo)

    @cached_property
    def total(self) -> int:
        """The pixels that are computed for all."""
        ends = sum(span.last - span.first for span in self._ends)
        if not self._inner:
            return ends
        return ends + self._cut(self._inner.stop) - self._cut(self._inner.start) + 2 * self.halo * len(self._inner)

    @cached_property
    def _inner(self) -> range:
        """Indices of spans whose halos reach no end of the side, as each owns a stride at least."""
        outer = self.halo // self.stride + 1
        return range(outer, max(outer, self.count - outer))

    @cached_property
    def _ends(self) -> list[Span]:
        """The others, of which there are few however many are cut."""
        others = *range(min(self._inner.start, self.count)), *range(self._inner.stop, self.count)
        return [self._span(index) for index in others]

    def _span(self, index: int) -> Span:
        start, stop = self._cut(index), self._cut(index + 1)
        return Span(max(0, start - self.halo), start, stop, min(self.length, stop + self.halo))

    def _cut(self, index: int) -> int:
        """Where the span of that index starts, or the end of the side for the one after the last."""
        if index in (0, self.count):
            return self.length if index else 0
        cells = self.length // self.stride
        # The first and the last have one halo where the others have two.
        extra = min(self.halo // self.stride, (cells - self.count) // 2) if self.level else 0
        return (extra + index * (cells - 2 * extra) // self.count) * self.stride


def _divisions(length: int, stride: int, halo: int, *, level: bool = False) -> list[_Division]:
    """A side in one span, in two, and so on."""
    return [_Division(length, count, stride, halo, level) for count in range(1, length // stride + 1)]


def _tiles(rows: _Division, columns: _Division) -> tuple[Tile, ...]:
    return tuple(Tile(row, column) for row in rows.spans for column in columns.spans)


def tiles(
    network: Vgg,
    taps: Collection[str],
    per_pixel: float,
    height: int,
    width: int,
    memory_budget: int,
    processes: int = 1,
) -> tuple[Tile, ...]:
    """The tiles in which a picture is worked on: one when a single process can hold the maps of the whole.

    Args:
        network: which VGG.
        taps: those in use, at least one.
        per_pixel: bytes kept for each pixel of a picture; see `map_bytes_per_pixel`.
        height, width: of the picture, each at least `network.minimum_side(taps)`.
        memory_budget: bytes that the maps of one evaluation may take in a process.
        processes: how many share the picture.

    Raises:
        BudgetError: not even the smallest tile fits.
    """
    if processes == 1 and height * width * per_pixel <= memory_budget:
        return (whole(height, width),)
    stride, halo = _stride_and_halo(network, taps)
    pixels = int(memory_budget / per_pixel)
    if processes == 1:
        found = grid(height, width, stride, halo, pixels)
    else:
        found = shared_grid(height, width, stride, halo, pixels, processes)
    if not found:
        smallest = min(height, stride + 2 * halo) * min(width, stride + 2 * halo) * per_pixel
        raise BudgetError(
            "size",
            f"a {width}x{height} picture does not fit into the memory budget of {memory_budget / MIB:.0f} MiB, even in "
            f"the smallest tiles, which take {smallest / MIB:.0f} MiB: raise the engine's memory_budget, set a smaller "
            "size, or use shallower taps",
        )
    return found


def window(
    network: Vgg, taps: Collection[str], height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]
) -> Tile:
    """The smallest tile of a picture that owns some of its pixels.

    Args:
        network: which VGG.
        taps: those in use, at least one.
        height, width: of the picture.
        rows, columns: of the pixels, from the first to before the last, multiples of the strides of taps.
    """
    stride, halo = _stride_and_halo(network, taps)

    def span(first: int, last: int, length: int) -> Span:
        start, stop = first // stride * stride, min(-(-last // stride) * stride, length)
        return Span(max(0, start - halo), start, stop, min(length, stop + halo))

    return Tile(span(*rows, height), span(*columns, width))


def _stride_and_halo(network: Vgg, taps: Collection[str]) -> tuple[int, int]:
    """Of tiles: where they may be cut, and what is computed around them."""
    stride = network.minimum_side(taps)
    return stride, -(-network.reach(taps) // stride) * stride


def map_bytes_per_pixel(
    network: Vgg,
    taps: Collection[str],
    pooling: str,
    itemsize: int,
    late_relus: Collection[str] = (),
    merged: Collection[str] = (),
) -> float:
    """Bytes kept per pixel of the picture, from the forward pass for the backward pass.

    They are the normalised picture, what each ReLU and pooling gives, the convolutions that are
    tapped themselves, and the places of the maxima in max pooling. Outputs of poolings are
    needed by `late_relus` that are not `merged`, and on GPUs, where torch's own convolution keeps its input.

    Args:
        network: which VGG.
        taps: those in use, at least one.
        pooling: "max" or "average".
        itemsize: bytes of a number in the trunk's dtype.
        late_relus: those that are applied after the pooling that follows them.
        merged: those of them that, like the pooling, are one operation with the convolution.
    """
    last = max(network.taps.index(tap) for tap in taps)
    total, before = 3.0 * itemsize, ""
    for tap in network.taps[: last + 1]:
        numbers = network.channels(tap) / network.stride(tap) ** 2
        passing = tap.startswith("conv") or tap in late_relus or before in merged
        if tap in taps or not passing:
            total += itemsize * numbers
        if tap.startswith("pool") and pooling == "max":
            total += (MERGED_INDEX_BYTES if before in merged else INDEX_BYTES) * numbers
        before = tap
    return total
