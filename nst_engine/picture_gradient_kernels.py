"""The loops of `picture_gradient`."""

from collections.abc import Sequence
from functools import cache
from itertools import product

from nst_engine.lanes import LANES
from nst_engine.machine_code import Code, Program
from nst_engine.machine_values import Floats, Pointer, Whole

COLORS, SIDE = 3, 3
# Neighbours in a row of the picture whose sums are in registers at once; and positions of a row in a strip, with those
# that they see: three rows of these stay in a core's own cache.
BLOCK = 3
STRIP = 11 * BLOCK
SEEN = STRIP + SIDE - 1
# Rows of a strip that are one piece of work, which sees two more.
PIECE = 32


@cache
def program() -> Program:
    """`gradient_of_picture`, compiled."""
    return Program(gradient_of_picture)


def gradient_of_picture(
    code: Code,
    gradient: Pointer,
    mapped: Pointer,
    weight: Pointer,
    zeros: Pointer,
    room: Pointer,
    picture: Pointer,
    height: Whole,
    width: Whole,
    channels: Whole,
    rectified: Whole,
) -> None:
    """Takes a map's gradient back through the ReLU and the convolution that it came from.

    Args:
        code: the thread's.
        gradient: (height, width, channels), of the map.
        mapped: as large, the map; if not `rectified`, of no consequence.
        weight: (3, 3, 3, channels): rows, columns and colours.
        zeros: (channels,).
        room: (3, `SEEN`, channels), for each thread.
        picture: (height + 2, width + 2, 3), the gradient of the picture, to be filled.
        height, width, channels: of the map, the latter a multiple of `LANES`.
        rectified: 1 if the map has gone through a ReLU, 0 if not.
    """
    room = code.own(room, channels * SIDE * SEEN)
    lines = _Lines(code, gradient, mapped, zeros, room, height, width, channels, rectified)
    outside = code.scratch(channels)
    rows, columns = height + (SIDE - 1), width + (SIDE - 1)
    pieces = rows.ceil_div(PIECE)
    with code.shared(pieces * columns.ceil_div(STRIP)) as share:
        first, start = share % pieces * PIECE, share // pieces * STRIP
        with code.loop(first - (SIDE - 1), first) as row:
            lines.see(row, start - (SIDE - 1))
        with code.loop(first, (first + PIECE).at_most(rows)) as row:
            lines.see(row, start - (SIDE - 1))
            with code.loop(0, (columns - start).at_most(STRIP), BLOCK) as right:
                sums = iter(_block(code, [each.at(right * channels) for each in lines.seen_by(row)], weight, channels))
                for column in (start + right + each for each in range(BLOCK)):
                    place = picture.at((row * columns + column) * COLORS).where(column.within(columns), outside)
                    for color in range(COLORS):
                        place.at(color).store_sum(next(sums))


class _Lines:
    """The gradient before the ReLU, of the three rows of a strip that were looked at last."""

    def __init__(
        self,
        code: Code,
        gradient: Pointer,
        mapped: Pointer,
        zeros: Pointer,
        room: Pointer,
        height: Whole,
        width: Whole,
        channels: Whole,
        rectified: Whole,
    ) -> None:
        self._code, self._gradient, self._mapped, self._zeros, self._room = code, gradient, mapped, zeros, room
        self._height, self._width, self._channels, self._rectified = height, width, channels, rectified

    def see(self, row: Whole, first: Whole) -> None:
        """Looks at a row from the column `first` on; both may be outside, where there are zeros."""
        code, channels, line = self._code, self._channels, self._line(row)
        with code.loop(0, SEEN) as right:
            column = first + right
            inside = row.within(self._height) & column.within(self._width)
            offset, target = (row * self._width + column) * channels, line.at(right * channels)
            slopes = self._gradient.at(offset).where(inside, self._zeros)
            with code.when(self._rectified):
                mapped = self._mapped.at(offset).where(inside, self._zeros)
                with code.loop(0, channels, LANES) as channel:
                    opened = mapped.at(channel).load().comes_through_relu()
                    target.at(channel).store(slopes.at(channel).load().where(opened, code.filled(0)))
            with code.when(1 - self._rectified), code.loop(0, channels, LANES) as channel:
                target.at(channel).store(slopes.at(channel).load())

    def seen_by(self, row: Whole) -> list[Pointer]:
        """The rows of the map that a row of the picture has become part of, from the one that is as far down up."""
        return [self._line(row - up) for up in range(SIDE)]

    def _line(self, row: Whole) -> Pointer:
        # Rows begin at 1 - `SIDE`.
        return self._room.at((row + SIDE) % SIDE * SEEN * self._channels)


def _block(code: Code, lines: Sequence[Pointer], weight: Pointer, channels: Whole) -> Sequence[Floats]:
    """The colours of neighbours, from rows of what they see, each as lanes that are still to be added up."""

    def add(group: Whole, sums: Sequence[Floats]) -> Sequence[Floats]:
        added = list(sums)
        for down, line in enumerate(lines):
            slopes = [line.at(channels * right + group * LANES).load() for right in range(BLOCK + SIDE - 1)]
            for right, color in product(range(SIDE), range(COLORS)):
                factor = weight.at(channels * ((down * SIDE + right) * COLORS + color) + group * LANES).load()
                for each in range(BLOCK):
                    slope = slopes[each + SIDE - 1 - right]
                    added[each * COLORS + color] = added[each * COLORS + color] + slope * factor
        return added

    return code.accumulate(channels // LANES, BLOCK * COLORS, add)
