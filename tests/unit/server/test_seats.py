"""Who may compute, by the memory that they take."""

from dataclasses import dataclass

import pytest

from nst_server.jobs.tickets import Account
from nst_server.model_server.seats import Seat, Seats

LIMIT = 100
MOST_EVALUATING = 50


@dataclass
class Sized:
    """A session as far as memory goes."""

    working_memory: tuple[int, int]
    nbytes: int = 1
    batch_key: None = None


class Place:
    """Seats, and what is measured there."""

    def __init__(self, batch: int = 1) -> None:
        self.used = 0
        self.seats = Seats(LIMIT, lambda: self.used, batch, MOST_EVALUATING)

    def come(self, held: int, evaluating: int = 0) -> Seat:
        """A job comes, and its session is made."""
        seat = self.unmade()
        seat.take(Sized((held, evaluating)))
        self.seats.review()
        return seat

    def unmade(self, pixels: int = 0) -> Seat:
        seat = Seat(Account("interactive", "a"), pixels, 0, 0)
        self.seats.add(seat)
        return seat

    def inside(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.admitted]


@pytest.fixture
def place() -> Place:
    return Place()


async def test_those_that_fit_together_are_let_in(place):
    seats = [place.come(40) for _ in range(3)]
    assert place.inside() == seats[:2]
    place.seats.remove(seats[0])
    place.seats.review()
    assert place.inside() == seats[1:]


async def test_a_large_evaluation_leaves_room_for_small_jobs(place):
    """One at a time is turned, so the largest evaluation counts once, and what is held always does."""
    large = place.come(30, 60)
    small = [place.come(2, 10) for _ in range(5)]
    assert place.inside() == [large, *small]
    assert place.come(1, 1) not in place.inside()


async def test_evaluations_that_can_be_turned_together_all_count():
    place = Place(batch=2)
    seats = [place.come(10, 30) for _ in range(4)]
    assert place.inside() == seats[:4]
    assert place.come(1, 1) not in place.inside()


async def test_one_that_is_alone_is_let_in_whatever_is_estimated(place):
    huge = place.come(1000)
    assert place.inside() == [huge]
    assert place.come(1) not in place.inside()


async def test_a_large_one_waits_for_those_before_it_and_small_ones_pass_it(place):
    first, second = place.come(60), place.come(60)
    small = [place.come(20) for _ in range(2)]
    assert place.inside() == [first, *small]
    assert place.come(30) not in place.inside(), "it would keep the second waiting"
    place.seats.remove(first)
    place.seats.review()
    assert second in place.inside()


async def test_nobody_is_starved_by_small_ones(place):
    place.come(60)
    large = place.come(90)
    for _ in range(50):
        place.come(10)
    place.seats.remove(next(iter(place.seats)))
    place.seats.review()
    assert large in place.inside()


async def test_measured_memory_counts_where_it_is_more_than_estimated(place):
    place.come(10)
    assert not place.seats.short
    place.used = LIMIT
    newcomer = place.unmade()
    place.seats.review()
    assert place.seats.short
    assert newcomer not in place.seats.ready()
    place.used = 10
    place.seats.review()
    assert newcomer in place.seats.ready()


async def test_a_job_is_made_when_there_is_room_to_measure_its_styles(place):
    first = place.come(51)
    large, small = place.unmade(10**6), place.unmade()
    assert place.seats.ready() == [first, small], "it leaves room for the large one"
    small.take(Sized((1, 0)))
    place.seats.review()
    place.unmade(10**6)
    assert place.seats.ready() == [first, small]
    place.seats.remove(first)
    place.seats.review()
    assert large in place.seats.ready()


async def test_who_waits_to_be_made_waits_for_those_before_it_and_for_nobody_else(place):
    first, large = place.come(51), place.unmade(10**6)
    newer, late = place.come(40), place.unmade(10**6)
    assert place.seats.ready() == [first, newer]
    place.seats.remove(first)
    place.seats.review()
    assert place.seats.ready() == [large, newer, late]
    large.take(Sized((20, 0)))
    place.seats.review()
    assert place.seats.ready() == [large, newer], "there is no room for both at once"


async def test_an_empty_device_is_never_short(place):
    place.used = 10 * LIMIT
    newcomer = place.unmade()
    place.seats.review()
    assert place.seats.ready() == [newcomer]


async def test_a_turn_may_take_longer_with_more_pixels_and_for_a_job_that_has_been_slow(place):
    seat = Seat(Account("interactive", "a"), 4_000_000, 0, 0)
    assert seat.allowed_seconds(300) == 1200
    seat.seconds = 200.0
    assert seat.allowed_seconds(300) == 2000
