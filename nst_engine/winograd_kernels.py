"""The loops of `winograd_squares`: to the points of Winograd's F(4x4, 3x3), the products there, and back."""

from collections.abc import Callable, Sequence

from nst_engine.lanes import LANES
from nst_engine.machine_code import Code
from nst_engine.machine_values import Bytes, Floats, Pointer, Whole
from nst_engine.product_kernels import PIECE_ROWS, multiply
from nst_engine.winograd import POINTS, TILE
from nst_engine.winograd_maps import Corner, Layer, into_map, into_maxima, of_map, of_maxima


def convolve(
    code: Code,
    source: Pointer,
    source_places: Bytes,
    target: Pointer,
    target_places: Bytes,
    layer: Layer,
    unpools: Whole,
    pools: Whole,
) -> None:
    """Convolves a map, or the gradient of one that is known by that of its maxima, into a map, or into its maxima.

    The maxima are those of the 2x2 windows of the map after its ReLU.

    Args:
        code: the thread's.
        source: (height, width, channels_in); if `unpools`, the gradient of the maxima, (height // 2, width // 2, ...).
        source_places: if `unpools`, where in its window each maximum was; see `target_places`.
        target: (height, width, channels_out), to be filled; if `pools`, (height // 2, width // 2, channels_out).
        target_places: if `pools`, as large: which in its window each maximum is, the first of equal ones, or `CLOSED`.
        layer: how.
        unpools, pools: 1 or 0.
    """
    finds = (unpools, of_maxima(source, source_places, layer)), (1 - unpools, of_map(source, layer))
    takes = (pools, into_maxima(code, target, target_places, layer)), (1 - pools, into_map(code, target, layer))
    columns = layer.width.ceil_div(TILE)
    tiles = layer.height.ceil_div(TILE) * columns
    by_strip, in_strip = code.divided(layer.apart)
    points = by_strip.own(layer.points, layer.strip * layer.channels_in * POINTS**2)
    products = by_strip.own(layer.products, layer.strip * layer.channels_out * POINTS**2)
    with by_strip.shared(tiles.ceil_div(layer.strip)) as number:
        first = number * layer.strip
        count = layer.strip.at_most(tiles - first)
        with in_strip.shared(count) as tile:
            for chosen, find in finds:
                with code.when(chosen):
                    seen = find(_corner(first + tile, columns))
                    _spread(code, seen, points.at(tile * layer.channels_in), layer)
        in_strip.wait_for_all()
        _multiply(in_strip, points, products, count, layer)
        in_strip.wait_for_all()
        with in_strip.shared(count) as tile:
            for chosen, take in takes:
                with code.when(chosen):
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
        added = layer.bias.at(channel).load()
        store(channel, [each + added for line in of_rows for each in _at_positions(line)])


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
