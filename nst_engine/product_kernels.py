"""The loops of `compiled_products`: rows times a matrix, and sums of outer products."""

from collections.abc import Sequence
from functools import cache
from itertools import chain

from nst_engine.machine_code import LANES, Code, Floats, Pointer, Program, Whole
from nst_engine.products import PANEL

# Of a product, what is in registers at once: rows, and a panel of columns. AVX2 has 16 of them, and twelve sums, two
# that hold factors and one for the rows leave one.
BLOCK_ROWS = 6
LANES_OF_PANEL = range(0, PANEL, LANES)
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
    pieces = (count + (PIECE_ROWS - 1)) // PIECE_ROWS
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
    *,
    far: bool = False,
) -> None:
    """One of so many pieces of what `map_rows` does; `far` panels are in no cache."""
    blocks = (count + (BLOCK_ROWS - 1)) // BLOCK_ROWS
    start, end = blocks * piece // pieces, blocks * (piece + 1) // pieces
    with code.loop(0, outer, PANEL) as column, code.loop(start, end) as block:
        # The last row is there more than once in a block that it does not fill.
        places = [(block * BLOCK_ROWS + each).at_most(count - 1) for each in range(BLOCK_ROWS)]
        panel = panels.at(column * inner)
        # Each block has its part of the next panel fetched, as otherwise the first would wait for all of it.
        part = PANEL // (end - start)
        ahead = (panel.at(((block - start) * part + PANEL) * inner), part) if far else None
        sums = _block(code, [rows.at(place * inner) for place in places], 1, panel, inner, ahead)
        for place, line in zip(places, sums, strict=True):
            for lane, found in zip(LANES_OF_PANEL, line, strict=True):
                added = found if shift is None else found + shift.at(column + lane).load()
                mapped.at(place * outer + column + lane).store(added)


def add_outer_products(
    code: Code,
    rows: Pointer,
    panels: Pointer,
    sums: Pointer,
    count: Whole,
    channels: Whole,
    strip: Whole,
    together: Whole,
    apart: Whole,
) -> None:
    """Adds up x^T x of the rows x in parts, and each strip by strip; of what is below the diagonal some, but not all.

    Args:
        code: the thread's.
        rows: (count, channels).
        panels: (channels / 16, strip, 16) for each thread, room.
        sums: (together + apart, channels, channels), to be added to.
        count: of the rows.
        channels: a multiple of `PANEL`.
        strip: rows that are worked on at a time.
        together, apart: parts that the threads work on together, and after these such as each does by itself.
    """
    parts = together + apart

    def add(who: Code, room: Pointer, part: Whole) -> None:
        start, end = count * part // parts, count * (part + 1) // parts
        _add_part(
            who, rows.at(start * channels), room, sums.at(part * channels * channels), end - start, channels, strip
        )

    with code.loop(0, together) as part:
        add(code, panels, part)
    with code.shared(apart) as each:
        add(code.alone(), code.own(panels, channels * strip), together + each)


def _add_part(
    code: Code, rows: Pointer, panels: Pointer, sums: Pointer, count: Whole, channels: Whole, strip: Whole
) -> None:
    with code.loop(0, count, strip) as first:
        height = strip.at_most(count - first)
        with code.shared(height) as row, code.loop(0, channels, LANES) as channel:
            panel = channel // PANEL
            place = panels.at((panel * strip + row) * PANEL + (channel - panel * PANEL))
            place.store(rows.at((first + row) * channels + channel).load())
        code.wait_for_all()
        with code.dealt((channels + (BLOCK_ROWS - 1)) // BLOCK_ROWS) as block:
            lines = [(block * BLOCK_ROWS + each).at_most(channels - 1) for each in range(BLOCK_ROWS)]
            seen = [panels.at((line // PANEL) * strip * PANEL + (line - line // PANEL * PANEL)) for line in lines]
            with code.loop(block * BLOCK_ROWS // PANEL, channels // PANEL) as panel:
                found = _block(code, seen, PANEL, panels.at(panel * strip * PANEL), height)
                places = [
                    sums.at(line * channels + panel * PANEL + start) for line in lines for start in LANES_OF_PANEL
                ]
                # All are read before the first is written, as the last line may be there more than once.
                so_far = [place.load() for place in places]
                for place, before, floats in zip(places, so_far, chain(*found), strict=True):
                    place.store(before + floats)
        code.wait_for_all()


def _block(
    code: Code,
    rows: Sequence[Pointer],
    apart: int,
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
        factors = [panel.at(place * PANEL + lane).load() for lane in LANES_OF_PANEL]
        so_far = iter(sums)
        return [next(so_far) + row.at(place * apart).load_repeated() * factor for row in rows for factor in factors]

    lanes = len(LANES_OF_PANEL)
    sums = code.accumulate(inner, len(rows) * lanes, add)
    return [sums[first : first + lanes] for first in range(0, len(sums), lanes)]
