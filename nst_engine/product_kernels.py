"""The loops of `compiled_products`: rows times a matrix, and sums of outer products."""

from collections.abc import Sequence
from functools import cache
from itertools import chain

from nst_engine.lanes import LANES, PANEL
from nst_engine.machine_code import Code, Program
from nst_engine.machine_values import Floats, Pointer, Whole

# Of a product, what is in registers at once: rows, and a panel of columns. AVX2 has 16 of them, and twelve sums, two
# that hold factors and one for the rows leave one.
BLOCK_ROWS = 6
GROUPS = range(0, PANEL, LANES)  # of lanes, in a panel
# Rows that are one piece of work: they and what becomes of them fit into a core's own cache.
PIECE_ROWS = 8 * BLOCK_ROWS


@cache
def program() -> Program:
    """`map_rows` and `add_outer_products`, compiled."""
    return Program(map_rows, add_outer_products)


def map_rows(
    code: Code,
    rows: Pointer,
    panels: Pointer,
    shift: Pointer,
    mapped: Pointer,
    count: Whole,
    inner: Whole,
    outer: Whole,
) -> None:
    """Multiplies rows by a matrix, and shifts them.

    Args:
        code: the thread's.
        rows: (count, inner).
        panels: (outer / 16, inner, 16), the matrix.
        shift: (outer,), which is added.
        mapped: (count, outer), to be filled.
        count: of the rows.
        inner, outer: numbers in a row, before and after; `outer` is a multiple of `PANEL`.
    """
    pieces = count.ceil_div(PIECE_ROWS)
    with code.shared(pieces) as piece:
        multiply(code, rows, panels, shift, mapped, piece, pieces, count, inner, outer)


def multiply(
    code: Code,
    rows: Pointer,
    panels: Pointer,
    shift: Pointer | None,
    mapped: Pointer,
    piece: Whole,
    pieces: Whole,
    count: Whole,
    inner: Whole,
    outer: Whole,
    far: Whole | None = None,
) -> None:
    """What `map_rows` does, of one of so many pieces of the rows; `far` is 1 where the panels may be in no cache."""
    blocks = count.ceil_div(BLOCK_ROWS)
    start, end = blocks * piece // pieces, blocks * (piece + 1) // pieces
    with code.loop(0, outer, PANEL) as column, code.loop(start, end) as block:
        # The last row is there more than once in a block that it does not fill.
        places = [(block * BLOCK_ROWS + each).at_most(count - 1) for each in range(BLOCK_ROWS)]
        panel = panels.at(column * inner)
        # Each block has its part of the next panel fetched, as otherwise the first would wait for all of it.
        part = PANEL // (end - start)
        ahead = None if far is None else (panel.at(((block - start) * part + PANEL) * inner), part * far)
        sums = _block(code, [rows.at(place * inner) for place in places], 1, panel, inner, ahead)
        for place, line in zip(places, sums, strict=True):
            for lane, found in zip(GROUPS, line, strict=True):
                added = found if shift is None else found + shift.at(column + lane).load()
                mapped.at(place * outer + column + lane).store(added)


def add_outer_products(
    code: Code,
    rows: Pointer,
    panels: Pointer,
    sums: Pointer,
    added: Pointer,
    count: Whole,
    channels: Whole,
    strip: Whole,
    parts: Whole,
    apart: Whole,
) -> None:
    """Adds up x^T x of rows x, in parts and each strip by strip.

    Args:
        code: the thread's.
        rows: (count, channels).
        panels: (channels / 16, strip, 16), room; if `apart`, for each thread.
        sums: (parts, channels, channels), zeros, which come to hold those of each part; see `_add_part`.
        added: (channels, channels), to be filled.
        count: of the rows.
        channels: a multiple of `PANEL`.
        strip: rows that are worked on at a time.
        parts: into which the rows are divided.
        apart: 1 if each thread has parts of its own, 0 if all work on one together.
    """
    by_part, in_part = code.divided(apart)
    room = by_part.own(panels, channels * strip)
    with by_part.shared(parts) as part:
        start, end = count * part // parts, count * (part + 1) // parts
        own = sums.at(part * channels * channels)
        _add_part(in_part, rows.at(start * channels), room, own, end - start, channels, strip)
    code.wait_for_all()
    with code.dealt(channels // LANES) as group, code.loop(group * LANES, channels, LANES) as column:
        for row in (group * LANES + each for each in range(LANES)):
            total = _sum(code, sums.at(row * channels + column), channels * channels, parts)
            added.at(row * channels + column).store(total)
            added.at(column * channels + row).scatter(total, channels)


def _add_part(
    code: Code, rows: Pointer, panels: Pointer, sums: Pointer, count: Whole, channels: Whole, strip: Whole
) -> None:
    """Adds x^T x of one part's rows: in each line at least from the `LANES` columns on that hold the diagonal."""
    with code.loop(0, count, strip) as first:
        height = strip.at_most(count - first)
        with code.shared(height) as row, code.loop(0, channels, LANES) as channel:
            place = panels.at((channel // PANEL * strip + row) * PANEL + channel % PANEL)
            place.store(rows.at((first + row) * channels + channel).load())
        code.wait_for_all()
        with code.dealt(channels.ceil_div(BLOCK_ROWS)) as block:
            lines = [(block * BLOCK_ROWS + each).at_most(channels - 1) for each in range(BLOCK_ROWS)]
            seen = [panels.at(line // PANEL * strip * PANEL + line % PANEL) for line in lines]
            with code.loop(block * BLOCK_ROWS // PANEL, channels // PANEL) as panel:
                found = _block(code, seen, PANEL, panels.at(panel * strip * PANEL), height)
                places = [sums.at(line * channels + panel * PANEL + start) for line in lines for start in GROUPS]
                # All are read before the first is written, as the last line may be there more than once.
                so_far = [place.load() for place in places]
                for place, before, floats in zip(places, so_far, chain(*found), strict=True):
                    place.store(before + floats)
        code.wait_for_all()


def _block(
    code: Code,
    rows: Sequence[Pointer],
    stride: int,
    panel: Pointer,
    inner: Whole,
    ahead: tuple[Pointer, Whole] | None = None,
) -> Sequence[Sequence[Floats]]:
    """Rows, of numbers that lie so far apart, times a panel of (inner, 16): for each row its lanes.

    Meanwhile so many floats for each number are fetched from what is ahead.
    """

    def add(place: Whole, sums: Sequence[Floats]) -> Sequence[Floats]:
        if ahead is not None:
            start, part = ahead
            start.at(place * part).fetch()
        factors = [panel.at(place * PANEL + lane).load() for lane in GROUPS]
        so_far = iter(sums)
        return [next(so_far) + row.at(place * stride).load_repeated() * factor for row in rows for factor in factors]

    lanes = len(GROUPS)
    sums = code.accumulate(inner, len(rows) * lanes, add)
    return [sums[first : first + lanes] for first in range(0, len(sums), lanes)]


def _sum(code: Code, floats: Pointer, stride: Whole, count: Whole) -> Floats:
    """Of so many that lie so far apart."""
    (total,) = code.accumulate(count, 1, lambda index, sums: [sums[0] + floats.at(index * stride).load()])
    return total
