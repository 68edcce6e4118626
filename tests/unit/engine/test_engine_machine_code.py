"""Loops that are compiled as they run, against the same in torch."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from engine_runs import needs_gnu_threads

from nst_engine.lanes import LANES
from nst_engine.machine_code import Code, Program
from nst_engine.machine_values import Bytes, Floats, Pointer, Whole

COUNT = 37
# By a thread, as a signal is not looked at in loops whose threads wait for each other for ever.
pytestmark = pytest.mark.timeout(60, method="thread")


def combine(code: Code, one: Pointer, other: Pointer, target: Pointer, rows: Whole, columns: Whole) -> None:
    """3 * one - other * other + one, at least `other`; by rows."""
    with code.shared(rows) as row, code.loop(0, columns, LANES) as column:
        place = row * columns + column
        first, second = one.at(place).load(), other.at(place).load()
        target.at(place).store((3.0 * first - second * second + first).at_least(second))


def add_up(code: Code, rows: Pointer, target: Pointer, height: Whole, width: Whole) -> None:
    """The sum over `width` of rows * (rows + 1), the rows as wide as there are lanes."""

    def add(index: Whole, sums: Sequence[Floats]) -> Sequence[Floats]:
        there = row.at(index * LANES).load()
        return [sums[0] + there * there, sums[1] + there]

    with code.shared(height) as number:
        row = rows.at(number * width * LANES)
        squares, plain = code.accumulate(width, 2, add)
        target.at(number * LANES).store(squares + plain)


def gather(code: Code, source: Pointer, outside: Pointer, target: Pointer, count: Whole, offset: Whole) -> None:
    """Each number of `source`, so many places further on, in every lane; beyond the ends the first of `outside`."""
    with code.shared(count) as index:
        place = index + offset
        inside = place.within(count) & (place - offset).within(count)
        target.at(index * LANES).store(source.at(place).where(inside, outside).load_repeated())


def places(code: Code, room: Pointer, target: Pointer, count: Whole, divisor: Whole) -> None:
    """Which numbers are counted: what is at the quotient goes by way of room of the thread's own."""
    own = code.scratch(count * LANES)
    with code.shared(count) as index:
        own.at(index * LANES).store(room.at(index // divisor).load_repeated())
        target.at(index * LANES).store(own.at(index * LANES).load())


def turn(code: Code, source: Pointer, room: Pointer, target: Pointer, count: Whole, part: Whole, apart: Whole) -> None:
    """The numbers of each part in the other order, in every lane, by way of room: all threads' or, `apart`, one's."""
    by_part, in_part = code.divided(apart)
    room = by_part.own(room, part * LANES)
    with by_part.shared((count + (part - 1)) // part) as number:
        first = number * part
        size = part.at_most(count - first)
        with in_part.shared(size) as index:
            source.at(first + index + size).fetch()  # which may be beyond its end
            room.at(index * LANES).store(source.at(first + index).load_repeated())
        in_part.wait_for_all()
        with in_part.dealt(size) as index:
            target.at((first + index) * LANES).store(room.at((size - 1 - index) * LANES).load())
        in_part.wait_for_all()


def keep(code: Code, source: Pointer, room: Pointer, target: Pointer, threads: Whole, floats: Whole) -> None:
    """One number for each thread, in every lane, by way of room of its own."""
    own = code.own(room, floats)
    with code.dealt(threads) as index:
        own.store(source.at(index).load_repeated())
    code.wait_for_all()
    with code.dealt(threads) as index:
        target.at(index * LANES).store(own.load())


def transpose(code: Code, source: Pointer, target: Pointer, rows: Whole, columns: Whole) -> None:
    with code.shared(rows) as row, code.loop(0, columns, LANES) as column:
        target.at(column * rows + row).scatter(source.at(row * columns + column).load(), rows)


def quotients(code: Code, source: Pointer, target: Pointer, count: Whole) -> None:
    """Of each number from 0 to before `count` what is in `source` at 100 over what follows it, in every lane."""
    with code.dealt(count) as index:
        target.at(index * LANES).store(source.at(100 // (index + 1)).load_repeated())


def parts(code: Code, source: Pointer, target: Pointer, count: Whole, size: Whole) -> None:
    """In which part of at most that size each number is, where in it, and how many there are."""
    with code.dealt(count) as index:
        for place, number in enumerate((index // size, index % size, count.ceil_div(size), index.at_most(size))):
            target.at((index * 4 + place) * LANES).store(source.at(number).load_repeated())


class Sizes(NamedTuple):
    count: Whole
    limits: Pointer


def sort_out(code: Code, source: Pointer, kinds: Bytes, sums: Pointer, sizes: Sizes) -> None:
    """By lanes: 7 where it is not a number, 1 where it is 2 exactly, plus 200 if less than a limit; and their sum."""
    with code.dealt(sizes.count) as index:
        floats, limit = source.at(index * LANES).load(), sizes.limits.load()
        found = code.filled(7).where(floats.is_no_number(), code.filled(0))
        found = code.filled(1).where(floats.equals(2) | floats.equals(9), found)
        kinds.at(index * LANES).store(found + code.filled(200).where(floats.below(limit), code.filled(0)))
        sums.at(index).store_sum(kinds.at(index * LANES).load())


def rectify(code: Code, source: Pointer, target: Pointer, count: Whole) -> None:
    with code.dealt(count) as index:
        floats = source.at(index * LANES).load()
        target.at(index * LANES).store(floats.where(floats.comes_through_relu(), code.filled(0)))


def choose(code: Code, source: Pointer, target: Pointer, count: Whole, flag: Whole) -> None:
    """Sums of two each where the flag is 1, and twice the first where it is 0."""
    with code.shared(count) as index:
        first = source.at(index * 2 * LANES).load()
        with code.when(flag):
            (total,) = code.accumulate(
                flag * 2, 1, lambda each, sums: [sums[0] + source.at((index * 2 + each) * LANES).load()]
            )
            target.at(index * LANES).store(total)
        with code.when(1 - flag):
            target.at(index * LANES).store(2.0 * first)


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(combine, add_up, gather, places, turn, keep, transpose, quotients, parts, sort_out, rectify, choose)


@pytest.fixture(params=[1, 2, 5], ids=lambda threads: f"{threads} threads")
def _threads(with_threads: Callable[[int], None], request: pytest.FixtureRequest) -> None:
    with_threads(request.param)


@needs_gnu_threads
@pytest.mark.usefixtures("_threads")
class TestProgram:
    @pytest.mark.parametrize("rows", [0, 1, 3, COUNT])
    def test_numbers_are_combined(self, program: Program, rows: int):
        one, other = torch.randn(2, rows, 2 * LANES)
        target = torch.zeros(rows, 2 * LANES)
        program.run(combine, one, other, target, rows, 2 * LANES)
        torch.testing.assert_close(target, (3 * one - other.square() + one).maximum(other))

    @pytest.mark.parametrize("width", [0, 1, 2, 9])
    def test_sums_are_kept_from_turn_to_turn(self, program: Program, width: int):
        rows, target = torch.randn(COUNT, width, LANES), torch.zeros(COUNT, LANES)
        program.run(add_up, rows, target, COUNT, width)
        torch.testing.assert_close(target, (rows.square() + rows).sum(1))

    @pytest.mark.parametrize("offset", [0, -3, 5])
    def test_a_place_is_chosen_by_a_condition(self, program: Program, offset: int):
        source, target = torch.arange(1.0, COUNT + 1), torch.full((COUNT, LANES), torch.nan)
        program.run(gather, source, torch.zeros(1), target, COUNT, offset)
        wanted = torch.tensor([float(n + 1) if 0 <= n < COUNT else 0.0 for n in range(offset, COUNT + offset)])
        assert torch.equal(target, wanted[:, None].expand(-1, LANES))

    def test_each_thread_has_room_of_its_own(self, program: Program):
        source, target = torch.randn(COUNT), torch.zeros(COUNT, LANES)
        program.run(places, source, target, COUNT, 3)
        assert torch.equal(target, source[torch.arange(COUNT) // 3][:, None].expand(-1, LANES))

    @pytest.mark.parametrize("part", [1, 5, 36, COUNT, 50])
    @pytest.mark.parametrize("apart", [0, 1])
    def test_threads_wait_for_each_other_or_work_apart(self, program: Program, part: int, apart: int):
        source, room = torch.randn(COUNT), torch.empty(torch.get_num_threads(), part, LANES)
        target = torch.zeros(COUNT, LANES)
        for _ in range(50):
            program.run(turn, source, room, target, COUNT, part, apart)
            wanted = torch.cat([each.flip(0) for each in source.split(part)])
            assert torch.equal(target, wanted[:, None].expand(-1, LANES))

    def test_a_part_of_room_belongs_to_one_thread(self, program: Program):
        threads = torch.get_num_threads()
        source, target = torch.randn(threads), torch.zeros(threads, LANES)
        program.run(keep, source, torch.zeros(threads, 3 * LANES), target, threads, 3 * LANES)
        assert torch.equal(target, source[:, None].expand(-1, LANES))

    def test_numbers_are_scattered(self, program: Program):
        source, target = torch.randn(COUNT, 3 * LANES), torch.zeros(3 * LANES, COUNT)
        program.run(transpose, source, target, COUNT, 3 * LANES)
        assert torch.equal(target, source.mT)

    def test_numbers_are_divided(self, program: Program):
        source, target = torch.randn(101), torch.zeros(COUNT, LANES)
        program.run(quotients, source, target, COUNT)
        wanted = source[torch.div(100, torch.arange(1, COUNT + 1), rounding_mode="floor")]
        assert torch.equal(target, wanted[:, None].expand(-1, LANES))

    @pytest.mark.parametrize("size", [1, 5, 36, COUNT, 50])
    def test_numbers_fall_into_parts(self, program: Program, size: int):
        source, target = torch.arange(100.0), torch.zeros(COUNT, 4, LANES)
        program.run(parts, source, target, COUNT, size)
        wanted = [[n // size, n % size, -(-COUNT // size), min(n, size)] for n in range(COUNT)]
        assert torch.equal(target, torch.tensor(wanted)[..., None].expand(-1, -1, LANES).float())

    def test_bytes_are_written_and_read(self, program: Program):
        source, limits = torch.randint(0, 4, (COUNT, LANES)).float(), torch.randint(0, 4, (LANES,)).float()
        source[source == 3] = torch.nan
        kinds, sums = torch.zeros(COUNT, LANES, dtype=torch.uint8), torch.zeros(COUNT)
        program.run(sort_out, source, kinds, sums, COUNT, limits)
        wanted = 7 * source.isnan() + (source == 2) + 200 * (source < limits)
        assert torch.equal(kinds, wanted.byte())
        assert torch.equal(sums, kinds.float().sum(1))

    @pytest.mark.parametrize("flag", [0, 1])
    def test_a_flag_says_what_is_done(self, program: Program, flag: int):
        source, target = torch.randn(COUNT, 2, LANES), torch.zeros(COUNT, LANES)
        program.run(choose, source, target, COUNT, flag)
        torch.testing.assert_close(target, source.sum(1) if flag else 2 * source[:, 0])

    def test_a_relu_is_torchs(self, program: Program):
        source, target = torch.randn(COUNT, LANES), torch.zeros(COUNT, LANES)
        source[0, 0], source[1, 1], source[2, 2] = torch.nan, 0, torch.inf
        program.run(rectify, source, target, COUNT)
        torch.testing.assert_close(target, source.relu(), rtol=0, atol=0, equal_nan=True)


@needs_gnu_threads
def test_bytes_are_not_floats(program: Program):
    floats = torch.zeros(1, LANES)
    with pytest.raises(TypeError):
        program.run(sort_out, floats, floats, torch.zeros(1), 1, torch.zeros(LANES))
    with pytest.raises(TypeError):
        program.run(rectify, floats.byte(), floats, 1)


@needs_gnu_threads
def test_what_is_not_a_number_stays(program: Program):
    one, other = torch.full((1, LANES), torch.nan), torch.zeros(1, LANES)
    target = torch.zeros(1, LANES)
    program.run(combine, one, other, target, 1, LANES)
    assert target.isnan().all()


@needs_gnu_threads
@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ((torch.zeros(8), torch.zeros(8), 1), ValueError),
        ((torch.zeros(8), torch.zeros(8), 1, 1, 1), ValueError),
        ((torch.zeros(8), 1, torch.zeros(8), 1), TypeError),
        ((torch.zeros(8), torch.zeros(8, dtype=torch.float64), 1, 1), TypeError),
        ((torch.zeros(8), torch.zeros(16)[::2], 1, 1), TypeError),
        ((torch.zeros(8), torch.zeros(8, device="meta"), 1, 1), TypeError),
    ],
    ids=["too few", "too many", "swapped", "dtype", "strides", "device"],
)
def test_arguments_that_do_not_fit_are_refused(
    program: Program, arguments: tuple[torch.Tensor | int, ...], refusal: type[Exception]
):
    with pytest.raises(refusal):
        program.run(add_up, *arguments)


WITHOUT = """
import ctypes
real = ctypes.CDLL
class CDLL(real):
    def __init__(self, name, *rest, **named):
        if name == "libgomp.so.1":
            raise OSError("no such library")
        super().__init__(name, *rest, **named)
ctypes.CDLL = CDLL
import sys
import torch
from nst_engine import hardware, products
from nst_engine.convolution import Convolution
products.COMPILED_FROM = 0
sparing = hardware.multiplies_dearly(torch.device("cpu"), torch.float32)
assert not sparing
convolution = Convolution(
    torch.ones(16, 16, 3, 3), torch.zeros(16), 1, torch.device("cpu"), torch.float32, sparing=sparing
)
assert convolution(torch.ones(1, 16, 3, 3), relu=True)[0, 0, 1, 1] == 9 * 16
assert products.sum_of_outer_products(torch.ones(20, 16))[0, 1] == 20
assert products.mapped(torch.ones(20, 16), torch.ones(16, 16))[0, 1] == 16
assert "llvmlite" not in sys.modules
"""


def test_where_torch_has_other_threads_nothing_is_compiled():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=60)
