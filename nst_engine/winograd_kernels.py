"""The loops of `winograd_squares`: to the points of Winograd's F(4x4, 3x3), the products there, and back."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from nst_engine.lanes import LANES
from nst_engine.machine_code import Code
from nst_engine.machine_values import Condition, Floats, Pointer, Whole
from nst_engine.product_kernels import PIECE_ROWS, multiply
from nst_engine.winograd import POINTS, TILE


class Layer(NamedTuple):
    """What it takes to convolve, of whatever.

    Attributes:
        kernels: (36, channels_out / 16, channels_in, 16), at the points.
        points: (36, strip, channels_in), room for what is convolved, at the points; if `apart`, for each thread.
        products: (36, strip, channels_out), room, likewise.
        zeros: (channels_in,).
        height, width, channels_in, channels_out: of what is convolved and its map, the latter a multiple of `PANEL`.
        strip: tiles, of 4x4 positions of the map, that are worked on at a time.
        apart: 1 if each thread has strips of its own, 0 if all work on one together.
        far: 1 if the kernels may be in no cache.
    """

    kernels: Pointer
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


# Of the tile at a corner, row and column: what finds 6x6 positions in the lanes from a channel on, and what takes 4x4.
Corner = tuple[Whole, Whole]
Find = Callable[[Corner], Callable[[Whole], Sequence[Floats]]]
Take = Callable[[Corner], Callable[[Whole, Sequence[Floats]], None]]


def convolve(code: Code, picture: Pointer, mapped: Pointer, bias: Pointer, least: Pointer, layer: Layer) -> None:
    """Makes a map of a picture.

    Args:
        code: the thread's.
        picture: (height, width, channels_in).
        mapped: (height, width, channels_out), to be filled.
        bias: (channels_out,), which is added.
        least: (1,), below which nothing is: 0 with a ReLU.
        layer: which.
    """
    convolve_strips(code, layer, of_picture(picture, layer), into_map(code, mapped, bias, least, layer))


def of_picture(picture: Pointer, layer: Layer) -> Find:
    """The picture's positions, (height, width, channels_in), with zeros around it."""

    def find(corner: Corner) -> Callable[[Whole], Sequence[Floats]]:
        row, column = corner
        around = positions((row - 1, column - 1), POINTS, layer.height, layer.width)
        seen = [picture.at(index * layer.channels_in).where(inside, layer.zeros) for index, inside in around]
        return lambda channel: [place.at(channel).load() for place in seen]

    return find


def into_map(code: Code, mapped: Pointer, bias: Pointer, least: Pointer, layer: Layer) -> Take:
    """Positions of a map as they come, but shifted by `bias`, and not below `least`."""
    outside, floor = code.scratch(layer.channels_out), least.load_repeated()

    def take(corner: Corner) -> Callable[[Whole, Sequence[Floats]], None]:
        inner = positions(corner, TILE, layer.height, layer.width)
        places = [mapped.at(index * layer.channels_out).where(inside, outside) for index, inside in inner]

        def store(channel: Whole, found: Sequence[Floats]) -> None:
            added = bias.at(channel).load()
            for place, floats in zip(places, found, strict=True):
                place.at(channel).store((floats + added).at_least(floor))

        return store

    return take


def positions(corner: Corner, side: int, height: Whole, width: Whole) -> list[tuple[Whole, Condition]]:
    """The index of each position of a square, row by row, and that it is in the map at all."""
    places = [(corner[0] + down, corner[1] + right) for down, right in product(range(side), repeat=2)]
    return [(row * width + column, row.within(height) & column.within(width)) for row, column in places]


def convolve_strips(code: Code, layer: Layer, find: Find, take: Take) -> None:
    """Convolves what `find` finds, strip by strip, and has `take` take what that makes."""
    columns = layer.width.ceil_div(TILE)
    tiles = layer.height.ceil_div(TILE) * columns
    by_strip, in_strip = code.divided(layer.apart)
    points = by_strip.own(layer.points, layer.strip * layer.channels_in * POINTS**2)
    products = by_strip.own(layer.products, layer.strip * layer.channels_out * POINTS**2)
    with by_strip.shared(tiles.ceil_div(layer.strip)) as number:
        first = number * layer.strip
        count = layer.strip.at_most(tiles - first)
        with in_strip.shared(count) as tile:
            seen = find(_corner(first + tile, columns))
            _spread(code, seen, points.at(tile * layer.channels_in), layer)
        in_strip.wait_for_all()
        _multiply(in_strip, points, products, count, layer)
        in_strip.wait_for_all()
        with in_strip.shared(count) as tile:
            store = take(_corner(first + tile, columns))
            _join(code, products.at(tile * layer.channels_out), store, layer)


def _corner(tile: Whole, columns: Whole) -> Corner:
    """The row and the column of a tile's first position."""
    return tile // columns * TILE, tile % columns * TILE


def _spread(code: Code, seen: Callable[[Whole], Sequence[Floats]], points: Pointer, layer: Layer) -> None:
    """What 6x6 positions are at the points."""
    stride = layer.strip * layer.channels_in
    with code.loop(0, layer.channels_in, LANES) as channel:
        found = seen(channel)
        of_rows = zip(*(_at_points(found[right::POINTS]) for right in range(POINTS)), strict=True)
        for point, floats in enumerate(each for line in of_rows for each in _at_points(line)):
            points.at(stride * point + channel).store(floats)


def _multiply(code: Code, points: Pointer, products: Pointer, count: Whole, layer: Layer) -> None:
    """The product of matrices at each point, of the first `count` tiles; see `multiply`."""
    inner, outer = layer.channels_in, layer.channels_out
    pieces = count.ceil_div(PIECE_ROWS)
    with code.shared(pieces * POINTS**2) as share:
        point, piece = share // pieces, share % pieces
        seen, weights = points.at(point * layer.strip * inner), layer.kernels.at(point * inner * outer)
        made = products.at(point * layer.strip * outer)
        multiply(code, seen, weights, None, made, piece, pieces, count, inner, outer, layer.far)


def _join(code: Code, products: Pointer, store: Callable[[Whole, Sequence[Floats]], None], layer: Layer) -> None:
    """What the points make of 4x4 positions."""
    stride = layer.strip * layer.channels_out
    with code.loop(0, layer.channels_out, LANES) as channel:
        found = [products.at(stride * point + channel).load() for point in range(POINTS**2)]
        of_rows = zip(*(_at_positions(found[right::POINTS]) for right in range(POINTS)), strict=True)
        store(channel, [each for line in of_rows for each in _at_positions(line)])


def _at_points(neighbours: Sequence[Floats]) -> tuple[Floats, ...]:
    """What six neighbours in a line become at 0, 1, -1, 2, -2 and infinity, by `winograd.INPUT_TRANSFORM`."""
    a, b, c, d, e, f = neighbours
    even, odd = e - 4.0 * c, d - 4.0 * b
    even_twos, odd_twos = e - c, 2.0 * (d - b)
    return (
        4.0 * (a - c) + even_twos,
        even + odd,
        even - odd,
        even_twos + odd_twos,
        even_twos - odd_twos,
        (f - d) - 2.0 * odd_twos,
    )


def _at_positions(points: Sequence[Floats]) -> tuple[Floats, ...]:
    """The four neighbours in a line that the points make, which are sums of powers of the points."""
    zero, one, minus_one, two, minus_two, infinity = points
    ones, odd_ones, twos, odd_twos = one + minus_one, one - minus_one, two + minus_two, two - minus_two
    return (zero + ones + twos, odd_ones + 2.0 * odd_twos, ones + 4.0 * twos, infinity + odd_ones + 8.0 * odd_twos)
