"""The loops of `winograd_squares`: to the points of Winograd's F(4x4, 3x3), the products there, and back."""

from collections.abc import Sequence
from functools import cache
from itertools import product

from nst_engine.machine_code import LANES, Code, Floats, Pointer, Program, Whole

# Points in a line, and positions that a tile has in one.
POINTS, TILE = 6, 4
# Of a block of products that is in registers at once: tiles, and channels in multiples of the lanes. AVX2 has 16 of
# them, and twelve sums, two that hold weights and one for the maps leave one.
BLOCK_TILES, BLOCK_LANES = 6, 2
BLOCK_CHANNELS = BLOCK_LANES * LANES


@cache
def program() -> Program:
    """The three, compiled."""
    return Program(spread, multiply, join)


def spread(
    code: Code,
    picture: Pointer,
    points: Pointer,
    zeros: Pointer,
    height: Whole,
    width: Whole,
    channels: Whole,
    first_row: Whole,
    rows: Whole,
    columns: Whole,
    tiles: Whole,
) -> None:
    """What tiles, with the positions around them, are at the points.

    Args:
        code: the thread's.
        picture: (height, width, channels).
        points: (36, tiles, channels), to be filled.
        zeros: (channels,).
        height, width, channels: of the picture.
        first_row, rows: which rows of tiles.
        columns: tiles in a row.
        tiles: rows * columns at least.
    """
    with code.shared(rows) as row, code.loop(0, columns) as column:
        top, left = (first_row + row) * TILE - 1, column * TILE - 1
        seen = []
        for down, right in product(range(POINTS), repeat=2):
            y, x = top + down, left + right
            inside = y.within(height) & x.within(width)
            seen.append(picture.at((y * width + x) * channels).where(inside, zeros))
        there = points.at((row * columns + column) * channels)
        with code.loop(0, channels, LANES) as channel:
            found = [place.at(channel).load() for place in seen]
            of_rows = zip(*(at_points(found[right::POINTS]) for right in range(POINTS)), strict=True)
            for point, floats in enumerate(each for line in of_rows for each in at_points(line)):
                there.at(tiles * channels * point + channel).store(floats)


def multiply(
    code: Code,
    points: Pointer,
    kernels: Pointer,
    products: Pointer,
    tiles: Whole,
    channels_in: Whole,
    channels_out: Whole,
    pieces: Whole,
) -> None:
    """The product of matrices at each point.

    Args:
        code: the thread's.
        points: (36, tiles, channels_in).
        kernels: (36, channels_out / 16, channels_in, 16).
        products: (36, tiles, channels_out), to be filled.
        tiles: a multiple of `BLOCK_TILES`.
        channels_in, channels_out: the latter a multiple of `BLOCK_CHANNELS`.
        pieces: into which the tiles at a point are divided, that the threads share.
    """
    blocks = tiles // BLOCK_TILES
    with code.shared(pieces * (POINTS**2)) as share:
        point = share // pieces
        piece = share - point * pieces
        seen, weights = points.at(point * tiles * channels_in), kernels.at(point * channels_in * channels_out)
        made = products.at(point * tiles * channels_out)
        with (
            code.loop(0, channels_out, BLOCK_CHANNELS) as channel,
            code.loop(blocks * piece // pieces, blocks * (piece + 1) // pieces) as block,
        ):
            tile = block * BLOCK_TILES
            _multiply_block(
                code,
                [seen.at((tile + each) * channels_in) for each in range(BLOCK_TILES)],
                weights.at(channel * channels_in),
                [made.at((tile + each) * channels_out + channel) for each in range(BLOCK_TILES)],
                channels_in,
            )


def _multiply_block(
    code: Code, seen: Sequence[Pointer], weights: Pointer, made: Sequence[Pointer], channels_in: Whole
) -> None:
    def add(channel: Whole, sums: Sequence[Floats]) -> Sequence[Floats]:
        factors = [weights.at(channel * BLOCK_CHANNELS + lane * LANES).load() for lane in range(BLOCK_LANES)]
        left = iter(sums)
        return [next(left) + tile.at(channel).load_repeated() * factor for tile in seen for factor in factors]

    sums = iter(code.accumulate(channels_in, BLOCK_TILES * BLOCK_LANES, add))
    for tile in made:
        for lane in range(BLOCK_LANES):
            tile.at(lane * LANES).store(next(sums))


def join(
    code: Code,
    products: Pointer,
    picture: Pointer,
    bias: Pointer,
    least: Pointer,
    height: Whole,
    width: Whole,
    channels: Whole,
    first_row: Whole,
    rows: Whole,
    columns: Whole,
    tiles: Whole,
) -> None:
    """What the points make of tiles.

    Args:
        code: the thread's.
        products: (36, tiles, channels).
        picture: (height, width, channels), to be filled.
        bias: (channels,), which is added.
        least: (channels,), below which nothing is: 0 with a ReLU.
        height, width, channels: of the picture.
        first_row, rows, columns, tiles: see `spread`.
    """
    outside = code.scratch(channels)
    with code.shared(rows) as row, code.loop(0, columns) as column:
        top, left = (first_row + row) * TILE, column * TILE
        places = []
        for down, right in product(range(TILE), repeat=2):
            y, x = top + down, left + right
            inside = y.within(height) & x.within(width)
            places.append(picture.at((y * width + x) * channels).where(inside, outside))
        there = products.at((row * columns + column) * channels)
        with code.loop(0, channels, LANES) as channel:
            found = [there.at(tiles * channels * point + channel).load() for point in range(POINTS**2)]
            added, floor = bias.at(channel).load(), least.at(channel).load()
            of_rows = zip(*(at_positions(found[right::POINTS]) for right in range(POINTS)), strict=True)
            for place, floats in zip(places, (each for line in of_rows for each in at_positions(line)), strict=True):
                place.at(channel).store((floats + added).at_least(floor))


def at_points(neighbours: Sequence[Floats]) -> tuple[Floats, ...]:
    """What six neighbours in a line become at 0, 1, -1, 2, -2 and infinity, by `winograd_rows.INPUT_TRANSFORM`."""
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


def at_positions(points: Sequence[Floats]) -> tuple[Floats, ...]:
    """The four neighbours in a line that the points make, which are sums of powers of the points."""
    zero, one, minus_one, two, minus_two, infinity = points
    ones, odd_ones, twos, odd_twos = one + minus_one, one - minus_one, two + minus_two, two - minus_two
    return (zero + ones + twos, odd_ones + 2.0 * odd_twos, ones + 4.0 * twos, infinity + odd_ones + 8.0 * odd_twos)
