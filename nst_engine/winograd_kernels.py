"""The loops of `winograd_squares`: to the points of Winograd's F(4x4, 3x3), the products there, and back."""

from collections.abc import Sequence
from functools import cache
from itertools import product

from nst_engine.lanes import LANES
from nst_engine.machine_code import Code, Program
from nst_engine.machine_values import Floats, Pointer, Whole
from nst_engine.product_kernels import PIECE_ROWS, multiply
from nst_engine.winograd import POINTS, TILE


@cache
def program() -> Program:
    """`convolve`, compiled."""
    return Program(convolve)


def convolve(
    code: Code,
    picture: Pointer,
    kernels: Pointer,
    mapped: Pointer,
    points: Pointer,
    products: Pointer,
    zeros: Pointer,
    bias: Pointer,
    least: Pointer,
    height: Whole,
    width: Whole,
    channels_in: Whole,
    channels_out: Whole,
    strip: Whole,
    apart: Whole,
) -> None:
    """Makes a map of a picture, strip by strip.

    Args:
        code: the thread's.
        picture: (height, width, channels_in).
        kernels: (36, channels_out / 16, channels_in, 16), at the points.
        mapped: (height, width, channels_out), to be filled.
        points: (36, strip, channels_in), room for the picture at the points; if `apart`, for each thread.
        products: (36, strip, channels_out), room, likewise.
        zeros: (channels_in,).
        bias: (channels_out,), which is added.
        least: (1,), below which nothing is: 0 with a ReLU.
        height, width, channels_in, channels_out: of the picture and the map, the latter a multiple of `PANEL`.
        strip: tiles, of 4x4 positions of the map, that are worked on at a time.
        apart: 1 if each thread has strips of its own, 0 if all work on one together.
    """
    outside = code.scratch(channels_out)
    columns, rows = (width + (TILE - 1)) // TILE, (height + (TILE - 1)) // TILE
    tiles = rows * columns
    by_strip, in_strip = code.divided(apart)
    points = by_strip.own(points, strip * channels_in * POINTS**2)
    products = by_strip.own(products, strip * channels_out * POINTS**2)
    with by_strip.shared((tiles + (strip - 1)) // strip) as number:
        first = number * strip
        count = strip.at_most(tiles - first)
        with in_strip.shared(count) as tile:
            around = [each - 1 for each in _corner(first + tile, columns)]
            seen = _places(picture, around, POINTS, height, width, channels_in, zeros)
            _spread(code, seen, points.at(tile * channels_in), strip * channels_in, channels_in)
        in_strip.wait_for_all()
        _multiply(in_strip, points, kernels, products, strip, count, channels_in, channels_out, 1 - apart)
        in_strip.wait_for_all()
        with in_strip.shared(count) as tile:
            places = _places(mapped, _corner(first + tile, columns), TILE, height, width, channels_out, outside)
            made = products.at(tile * channels_out)
            _join(code, made, strip * channels_out, places, bias, least, channels_out)


def _corner(tile: Whole, columns: Whole) -> list[Whole]:
    """The row and the column of a tile's first position."""
    row = tile // columns
    return [row * TILE, (tile - row * columns) * TILE]


def _places(
    maps: Pointer, corner: Sequence[Whole], side: int, height: Whole, width: Whole, channels: Whole, outside: Pointer
) -> list[Pointer]:
    """Where the positions of a square are, row by row, and `outside` for those that are not in the maps."""
    found = []
    for down, right in product(range(side), repeat=2):
        y, x = corner[0] + down, corner[1] + right
        inside = y.within(height) & x.within(width)
        found.append(maps.at((y * width + x) * channels).where(inside, outside))
    return found


def _spread(code: Code, seen: Sequence[Pointer], points: Pointer, stride: Whole, channels: Whole) -> None:
    """What 6x6 positions are at the points, which lie so far apart."""
    with code.loop(0, channels, LANES) as channel:
        found = [place.at(channel).load() for place in seen]
        of_rows = zip(*(_at_points(found[right::POINTS]) for right in range(POINTS)), strict=True)
        for point, floats in enumerate(each for line in of_rows for each in _at_points(line)):
            points.at(stride * point + channel).store(floats)


def _multiply(
    code: Code,
    points: Pointer,
    kernels: Pointer,
    products: Pointer,
    strip: Whole,
    count: Whole,
    channels_in: Whole,
    channels_out: Whole,
    far: Whole,
) -> None:
    """The product of matrices at each point, of the first `count` tiles; see `multiply`."""
    pieces = (count + (PIECE_ROWS - 1)) // PIECE_ROWS
    with code.shared(pieces * POINTS**2) as share:
        point = share // pieces
        piece = share - point * pieces
        seen, weights = points.at(point * strip * channels_in), kernels.at(point * channels_in * channels_out)
        made = products.at(point * strip * channels_out)
        multiply(code, seen, weights, None, made, piece, pieces, count, channels_in, channels_out, far)


def _join(
    code: Code,
    products: Pointer,
    stride: Whole,
    places: Sequence[Pointer],
    bias: Pointer,
    least: Pointer,
    channels: Whole,
) -> None:
    """What the points, which lie so far apart, make of 4x4 positions."""
    floor = least.load_repeated()
    with code.loop(0, channels, LANES) as channel:
        found = [products.at(stride * point + channel).load() for point in range(POINTS**2)]
        added = bias.at(channel).load()
        of_rows = zip(*(_at_positions(found[right::POINTS]) for right in range(POINTS)), strict=True)
        for place, floats in zip(places, (each for line in of_rows for each in _at_positions(line)), strict=True):
            place.at(channel).store((floats + added).at_least(floor))


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
