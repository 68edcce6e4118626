"""The loops of `winograd_squares` where 2x2 maxima follow: the map is never written down, nor is its gradient."""

from collections.abc import Callable, Sequence
from itertools import product

from nst_engine.machine_code import Code
from nst_engine.machine_values import Bytes, Floats, Pointer, Whole
from nst_engine.winograd import POINTS, TILE
from nst_engine.winograd_kernels import Corner, Find, Layer, Take, convolve_strips, into_map, of_picture, positions

WINDOW = 2
# The place of a maximum that does not come through the ReLU; the others are 0 to 3, row by row.
CLOSED = 4


def convolve_and_pool(
    code: Code, picture: Pointer, maxima: Pointer, places: Bytes, bias: Pointer, layer: Layer
) -> None:
    """Makes the 2x2 maxima of the ReLU of a picture's map.

    Args:
        code: the thread's.
        picture: (height, width, channels_in).
        maxima: (height // 2, width // 2, channels_out), to be filled.
        places: as large, likewise: which in its window each is, the first of equal ones, or `CLOSED`.
        bias: (channels_out,), which is added.
        layer: which.
    """
    convolve_strips(code, layer, of_picture(picture, layer), _into_maxima(code, maxima, places, bias, layer))


def convolve_spread(
    code: Code, gradient: Pointer, places: Bytes, mapped: Pointer, bias: Pointer, least: Pointer, layer: Layer
) -> None:
    """Convolves the gradient of a map, from that of its maxima.

    Args:
        code: the thread's.
        gradient: (height // 2, width // 2, channels_in), of the maxima.
        places: as large, see `convolve_and_pool`.
        mapped, bias, least, layer: see `convolve`; the layer's sizes are those of the map.
    """
    convolve_strips(code, layer, _of_maxima(gradient, places, layer), into_map(code, mapped, bias, least, layer))


def _into_maxima(code: Code, maxima: Pointer, places: Bytes, bias: Pointer, layer: Layer) -> Take:
    outside = code.scratch(layer.channels_out)
    height, width = layer.height // WINDOW, layer.width // WINDOW
    side = TILE // WINDOW

    def take(corner: Corner) -> Callable[[Whole, Sequence[Floats]], None]:
        windows = positions((corner[0] // WINDOW, corner[1] // WINDOW), side, height, width)
        rooms = [
            (maxima.at(index).where(inside, outside), places.at(index).where(inside, outside.as_bytes()))
            for index, inside in ((index * layer.channels_out, inside) for index, inside in windows)
        ]

        def store(channel: Whole, found: Sequence[Floats]) -> None:
            shifted = [floats + bias.at(channel).load() for floats in found]
            for (row, column), (maximum, place) in zip(product(range(side), repeat=2), rooms, strict=True):
                first = (row * TILE + column) * WINDOW
                window = [*shifted[first : first + WINDOW], *shifted[first + TILE : first + TILE + WINDOW]]
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


def _of_maxima(gradient: Pointer, places: Bytes, layer: Layer) -> Find:
    height, width = layer.height // WINDOW, layer.width // WINDOW
    # The 6x6 positions around a tile are in 4x4 windows, the first and the last of which they have half of.
    side = POINTS // WINDOW + 1

    def find(corner: Corner) -> Callable[[Whole], Sequence[Floats]]:
        windows = positions((corner[0] // WINDOW - 1, corner[1] // WINDOW - 1), side, height, width)
        seen = [
            (gradient.at(index).where(inside, layer.zeros), places.at(index).where(inside, places))
            for index, inside in ((index * layer.channels_in, inside) for index, inside in windows)
        ]

        def load(channel: Whole) -> Sequence[Floats]:
            loaded = [(slope.at(channel).load(), place.at(channel).load()) for slope, place in seen]
            nothing = layer.zeros.at(channel).load()
            found = []
            for down, right in product(range(1, POINTS + 1), repeat=2):
                slope, place = loaded[down // WINDOW * side + right // WINDOW]
                found.append(slope.where(place.equals(down % WINDOW * WINDOW + right % WINDOW), nothing))
            return found

        return load

    return find
