"""What `winograd_kernels` convolves, and what it makes: maps, or only the maxima of a map that is pooled next.

Then the map, the largest of its block, is never written down, nor is its gradient.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from nst_engine.machine_code import Code
from nst_engine.machine_values import Bytes, Condition, Floats, Pointer, Whole
from nst_engine.winograd import POINTS, TILE

WINDOW = 2
# The place of a maximum that does not come through the ReLU; the others are 0 to 3, row by row.
CLOSED = 4


class Layer(NamedTuple):
    """A convolution of a map.

    Attributes:
        kernels: (36, channels_out / 16, channels_in, 16), at the points.
        bias: (channels_out,), which is added.
        least: (1,), below which nothing is: 0 with a ReLU.
        points: (36, strip, channels_in), room for what is convolved, at the points; if `apart`, for each thread.
        products: (36, strip, channels_out), room, likewise.
        zeros: (channels_in,).
        height, width, channels_in, channels_out: of what is convolved and its map, the latter a multiple of `PANEL`.
        strip: tiles, of 4x4 positions of the map, that are worked on at a time.
        apart: 1 if each thread has strips of its own, 0 if all work on one together.
        far: 1 if the kernels may be in no cache.
    """

    kernels: Pointer
    bias: Pointer
    least: Pointer
    points: Pointer
    products: Pointer
    zeros: Pointer
    height: Whole
    width: Whole
    channels_in: Whole
    channels_out: Whole
    strip: Whole
    apart: Whole
    far: Whole


# Of the tile at a corner, row and column: what finds 6x6 positions, and what takes 4x4, of some channels at a time.
Corner = tuple[Whole, Whole]
Find = Callable[[Corner], Callable[[Whole], Sequence[Floats]]]
Take = Callable[[Corner], Callable[[Whole, Sequence[Floats]], None]]


def of_map(hidden: Pointer, layer: Layer) -> Find:
    """Finds them in a map, (height, width, channels_in), with zeros around it."""

    def find(corner: Corner) -> Callable[[Whole], Sequence[Floats]]:
        around = corner[0] - 1, corner[1] - 1
        positions = _positions(around, POINTS, layer.height, layer.width, layer.channels_in)
        places = [hidden.at(offset).where(inside, layer.zeros) for offset, inside in positions]
        return lambda channel: [place.at(channel).load() for place in places]

    return find


def into_map(code: Code, mapped: Pointer, layer: Layer) -> Take:
    """Puts them into a map, (height, width, channels_out)."""
    outside, floor = code.scratch(layer.channels_out), layer.least.load_repeated()

    def take(corner: Corner) -> Callable[[Whole, Sequence[Floats]], None]:
        positions = _positions(corner, TILE, layer.height, layer.width, layer.channels_out)
        places = [mapped.at(offset).where(inside, outside) for offset, inside in positions]

        def store(channel: Whole, found: Sequence[Floats]) -> None:
            for place, floats in zip(places, found, strict=True):
                place.at(channel).store(floats.at_least(floor))

        return store

    return take


def of_maxima(gradient: Pointer, places: Bytes, layer: Layer) -> Find:
    """Finds those of a map's gradient in that of its maxima, (height // 2, width // 2, channels_in)."""
    height, width = layer.height // WINDOW, layer.width // WINDOW
    # The 6x6 positions around a tile are in 4x4 windows, the first and the last of which they have half of.
    side = POINTS // WINDOW + 1

    def find(corner: Corner) -> Callable[[Whole], Sequence[Floats]]:
        around = corner[0] // WINDOW - 1, corner[1] // WINDOW - 1
        windows = [
            (gradient.at(offset).where(inside, layer.zeros), places.at(offset).where(inside, layer.zeros.as_bytes()))
            for offset, inside in _positions(around, side, height, width, layer.channels_in)
        ]

        def load(channel: Whole) -> Sequence[Floats]:
            loaded = [(slope.at(channel).load(), place.at(channel).load()) for slope, place in windows]
            nothing = layer.zeros.at(channel).load()
            found = []
            for down, right in product(range(1, POINTS + 1), repeat=2):
                slope, place = loaded[down // WINDOW * side + right // WINDOW]
                found.append(slope.where(place.equals(down % WINDOW * WINDOW + right % WINDOW), nothing))
            return found

        return load

    return find


def into_maxima(code: Code, maxima: Pointer, places: Bytes, layer: Layer) -> Take:
    """Puts the 2x2 maxima of their ReLU, (height // 2, width // 2, channels_out), and the places of these."""
    outside = code.scratch(layer.channels_out)
    height, width = layer.height // WINDOW, layer.width // WINDOW
    side = TILE // WINDOW

    def take(corner: Corner) -> Callable[[Whole, Sequence[Floats]], None]:
        windows = [
            (maxima.at(offset).where(inside, outside), places.at(offset).where(inside, outside.as_bytes()))
            for offset, inside in _positions(
                (corner[0] // WINDOW, corner[1] // WINDOW), side, height, width, layer.channels_out
            )
        ]

        def store(channel: Whole, found: Sequence[Floats]) -> None:
            for (row, column), (maximum, place) in zip(product(range(side), repeat=2), windows, strict=True):
                first = (row * TILE + column) * WINDOW
                window = [*found[first : first + WINDOW], *found[first + TILE : first + TILE + WINDOW]]
                store_maximum(code, window, maximum.at(channel), place.at(channel))

        return store

    return take


def store_maximum(code: Code, window: Sequence[Floats], maximum: Pointer, place: Bytes) -> None:
    """As torch does it: what is not a number is the largest, and of equal ones the first is taken."""
    largest, chosen = window[0], code.filled(0)
    for index, floats in enumerate(window[1:], start=1):
        larger = largest.below(floats) | floats.is_no_number()
        largest, chosen = floats.where(larger, largest), code.filled(index).where(larger, chosen)
    opened = largest.comes_through_relu()
    maximum.store(largest.where(opened, code.filled(0)))
    place.store(chosen.where(opened, code.filled(CLOSED)))


def _positions(
    corner: Corner, side: int, height: Whole, width: Whole, channels: Whole
) -> list[tuple[Whole, Condition]]:
    """Where each position of a square begins, row by row, and that it is in the map at all."""
    places = [(corner[0] + down, corner[1] + right) for down, right in product(range(side), repeat=2)]
    return [((row * width + column) * channels, row.within(height) & column.within(width)) for row, column in places]
