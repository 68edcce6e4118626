"""Whose turn it is, on a clock of the test's own."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_server.jobs.tickets import Account
from nst_server.model_server.scheduler import LEAD_SECONDS, Scheduler

SMALL, LARGE = 0.02, 0.4  # seconds of an iteration


@dataclass(eq=False)
class Job:
    tenant: str
    seconds: float
    lane: str = "interactive"
    batch_key: str | None = None

    @property
    def account(self) -> Account:
        return Account(self.lane, self.tenant)


class Device:
    """Turns jobs for as long as a test wants, and keeps account."""

    def __init__(self, weights: dict[str, float] | None = None, max_batch: int = 1) -> None:
        self.scheduler: Scheduler[Job] = Scheduler(weights or {}, max_batch)
        self.clock = 0.0
        self.seconds: Counter[Job] = Counter()
        self.turns: list[list[Job]] = []

    def turn(self, jobs: Sequence[Job]) -> list[Job]:
        """One turn, whose cost grows with every job in it."""
        batch = self.scheduler.choose(jobs)
        seconds = sum(job.seconds for job in batch)
        self.scheduler.charge(batch, seconds)
        self.clock += seconds
        for job in batch:
            self.seconds[job] += seconds / len(batch)
        self.turns.append(batch)
        return batch

    def run(self, jobs: Sequence[Job], turns: int) -> "Device":
        for _ in range(turns):
            self.turn(jobs)
        return self

    def share(self, belongs: Callable[[Job], bool]) -> float:
        """The part of all time that certain jobs have had."""
        return sum(seconds for job, seconds in self.seconds.items() if belongs(job)) / self.clock


def jobs_of(tenant: str, count: int, seconds: float, **about: str) -> list[Job]:
    return [Job(tenant, seconds, **about) for _ in range(count)]


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("many", "few"), [(50, 1), (1, 50), (7, 7)])
@pytest.mark.parametrize(("seconds", "other_seconds"), [(SMALL, SMALL), (LARGE, SMALL), (SMALL, LARGE)])
def test_tenants_share_by_weight_whatever_the_number_and_size_of_their_jobs(weight, many, few, seconds, other_seconds):
    jobs = jobs_of("heavy", many, seconds) + jobs_of("light", few, other_seconds)
    device = Device({"heavy": weight}).run(jobs, 1000)
    assert device.share(lambda job: job.tenant == "heavy") == pytest.approx(weight / (weight + 1), abs=0.03)


@pytest.mark.parametrize("max_batch", [4, 16])
def test_tenants_share_evenly_where_their_jobs_go_in_one_batch(max_batch):
    jobs = jobs_of("many", 50, SMALL, batch_key="256 px") + jobs_of("one", 1, SMALL, batch_key="256 px")
    device = Device(max_batch=max_batch).run(jobs, 1000)
    # Each may be ahead by what it may lead by, and by a turn.
    uneven = (LEAD_SECONDS + max_batch * SMALL) / device.clock
    assert device.share(lambda job: job.tenant == "one") == pytest.approx(0.5, abs=uneven + 0.01)


def test_jobs_of_one_shape_go_together_while_none_leads():
    jobs = jobs_of("a", 3, SMALL, batch_key="256 px") + jobs_of("b", 3, SMALL, batch_key="256 px")
    alone = Job("c", SMALL)
    device = Device(max_batch=16).run([*jobs, alone], 20)
    assert {frozenset(batch) for batch in device.turns} == {frozenset(jobs), frozenset([alone])}


def test_a_batch_is_filled_with_those_that_have_had_least():
    jobs = jobs_of("a", 6, SMALL, batch_key="256 px")
    device = Device(max_batch=4).run(jobs, 6)
    assert Counter(job for batch in device.turns for job in batch) == dict.fromkeys(jobs, 4)


def test_batch_jobs_are_not_starved():
    jobs = jobs_of("a", 4, SMALL) + jobs_of("b", 4, 5 * SMALL) + jobs_of("c", 3, 3 * SMALL, lane="batch")
    device = Device().run(jobs, 2000)
    assert device.share(lambda job: job.lane == "batch") == pytest.approx(1 / 9, abs=0.01)


def test_a_lane_that_is_alone_has_it_all():
    device = Device().run(jobs_of("a", 2, SMALL, lane="batch"), 10)
    assert device.share(lambda job: job.lane == "batch") == pytest.approx(1)


@pytest.mark.parametrize("tenant", ["large", "small"])
def test_a_large_picture_holds_a_small_one_up_by_one_iteration_only(tenant):
    large, small = Job("large", LARGE), Job(tenant, SMALL)
    device = Device()
    device.run([large], 5)
    turned = [device.turn([large, small])[0] for _ in range(1000)]
    assert turned[0] is small or turned[1] is small
    between = [turned[index : index + 2] for index in range(len(turned) - 1)]
    assert [large, large] not in between


def test_who_comes_late_gets_no_back_pay():
    early, late = jobs_of("early", 2, SMALL), jobs_of("late", 2, SMALL)
    device = Device().run(early, 1000)
    before = device.clock
    device.run([*early, *late], 100)
    assert sum(device.seconds[job] for job in late) == pytest.approx((device.clock - before) / 2, rel=0.03)


def test_who_comes_again_owes_nothing_but_what_it_has_had():
    first, second = Job("first", SMALL), Job("second", SMALL)
    device = Device().run([first, second], 10)
    device.run([second], 1000)
    assert device.turn([first, second]) in ([first], [second])
    device.run([first, second], 99)
    turned = Counter(batch[0] for batch in device.turns[-100:])
    assert turned[first] == pytest.approx(50, abs=1)


def test_jobs_made_one_after_the_other_gain_nothing_by_it():
    steady = Job("steady", SMALL)
    device = Device()
    for _ in range(500):
        fleeting = Job("fleeting", LARGE)
        while device.turn([steady, fleeting]) != [fleeting]:
            continue
        device.scheduler.forget(fleeting)
    assert device.share(lambda job: job is steady) == pytest.approx(0.5, abs=0.01)


def test_nothing_is_kept_of_tenants_that_are_gone():
    device = Device()
    steady = Job("steady", SMALL)
    for number in range(1000):
        passing = Job(f"passing {number}", SMALL)
        while passing not in device.turn([steady, passing]):
            continue
        device.scheduler.forget(passing)
    device.run([steady], 10)
    device.scheduler.forget(steady)
    assert not device.scheduler._jobs
    assert len(device.scheduler._accounts._tenants["interactive"]) <= 2


LOADS = st.lists(
    st.tuples(st.integers(1, 12), st.floats(0.01, 2.0), st.sampled_from([1.0, 2.0, 3.0])), min_size=2, max_size=5
)


@settings(deadline=None, max_examples=25)
@given(LOADS)
def test_whatever_the_jobs_no_tenant_is_off_its_share_by_more_than_a_turn_of_each(loads):
    weights = {str(number): weight for number, (_, _, weight) in enumerate(loads)}
    jobs = [job for number, (count, seconds, _) in enumerate(loads) for job in jobs_of(str(number), count, seconds)]
    device = Device(weights).run(jobs, 400)
    per_weight = [
        device.share(lambda job, tenant=tenant: job.tenant == tenant) * device.clock / weight
        for tenant, weight in weights.items()
    ]
    turns = [seconds / weight for (_, seconds, weight) in loads]
    assert max(per_weight) - min(per_weight) <= 2 * max(turns) + 1e-9


@settings(deadline=None, max_examples=25)
@given(LOADS, st.integers(1, 8))
def test_every_job_is_turned_in_its_tenants_part_of_the_time(loads, max_batch):
    jobs = [
        Job(str(number), seconds, batch_key=str(count % 2))
        for number, (count, seconds, _) in enumerate(loads)
        for _ in range(count)
    ]
    # Until the slowest tenant's jobs have had their turns, each of the others has had as much time.
    longest = max(count * seconds for count, seconds, _ in loads)
    turns = sum(2 * int(longest / seconds) + 40 for _, seconds, _ in loads)
    device = Device(max_batch=max_batch).run(jobs, turns)
    assert {job for batch in device.turns for job in batch} == set(jobs)
    assert all(1 <= len(batch) <= max_batch for batch in device.turns)
