"""The compute thread, with an engine whose sessions do as a test says."""

import asyncio
import dataclasses
import gc
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from nst_engine import StepReport
from nst_server.config import ModelServerSettings
from nst_server.jobs.tickets import Account
from nst_server.model_server import memory
from nst_server.model_server import runner as runner_module
from nst_server.model_server.failures import DeviceLost, is_device_failure, is_out_of_memory
from nst_server.model_server.runner import Runner
from nst_server.model_server.seats import Failure, Seat, Step, Unchanged

SETTINGS = ModelServerSettings(max_batch=4, memory_limit_bytes=2**40)
OUT_OF_CUDA_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
LOST_DEVICE = RuntimeError("CUDA error: an illegal memory access was encountered")


@dataclass(eq=False)
class Session:
    """Takes iterations until it is told to fail."""

    batch_key: str | None = None
    error: Exception | None = None
    working_memory: tuple[Any, int] = (1, 0)
    nbytes: int = 1
    iteration: int = 0
    given: list[dict[str, float]] = field(default_factory=list)

    def update(self, **weights: float) -> None:
        self.given.append(weights)

    def state_dict(self) -> int:
        return self.iteration

    def image(self) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def advance(self) -> StepReport | Exception:
        if self.error is not None:
            held = self  # as a traceback's frames hold what they worked on
            try:
                raise held.error
            except Exception as error:
                return error
        self.iteration += 1
        return StepReport(self.iteration, 10**6, 1, 1, 8, 8, 1.0, {}, 0, (), None)


class Engine:
    """Notes who was stepped together."""

    device = torch.device("cpu")
    memory_budget = 2**30

    def __init__(self) -> None:
        self.steps: list[list[Session]] = []
        self.released = 0
        self.gate = threading.Event()
        self.gate.set()

    def step(self, sessions: list[Session]) -> list[StepReport | Exception]:
        self.gate.wait(30)
        self.steps.append(list(sessions))
        return [session.advance() for session in sessions]

    def release_memory(self) -> None:
        self.released += 1


class Place:
    """A runner, and a way to put sessions on it."""

    def __init__(self, engine: Engine, runner: Runner) -> None:
        self.engine = engine
        self.runner = runner

    def admit(self, session: Session | Exception, tenant: str = "a") -> Seat:
        seat = Seat(Account("interactive", tenant), 1, 0, 0, lambda engine: made(session))
        self.runner.admit(seat)
        return seat


def made(session: Session | Exception) -> Session:
    if isinstance(session, Exception):
        raise session
    return session


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    engine = Engine()
    runner = Runner(lambda: engine, SETTINGS)
    await runner.start()
    yield Place(engine, runner)
    engine.gate.set()
    await runner.stop()


async def first(seat: Seat, fits: Callable[[object], bool]) -> object:
    """The first thing told of a job that fits; earlier ones are dropped."""
    async with asyncio.timeout(30):
        while not fits(item := await seat.next()):
            continue
        return item


async def steps(seat: Seat, count: int) -> list[Step]:
    return [await asyncio.wait_for(seat.next(), 30) for _ in range(count)]


def is_failure(item: object) -> bool:
    return isinstance(item, Failure)


async def test_jobs_of_one_shape_are_stepped_together_and_share_the_time(place):
    sessions, single = [Session("8 px") for _ in range(3)], Session()
    *seats, other = [place.admit(session) for session in (*sessions, single)]
    step = await first(seats[0], lambda step: step.device_seconds < 0.4 * step.seconds)
    assert step.device_seconds == pytest.approx(step.seconds / 3)
    await steps(other, 12)
    batches = [set(batch) for batch in place.engine.steps]
    assert set(sessions) in batches
    assert all(batch == {single} for batch in batches if single in batch)


async def test_one_that_fails_does_not_take_the_others_of_its_batch_along(place):
    place.engine.gate.clear()
    good, bad = place.admit(Session("8 px")), place.admit(Session("8 px", OUT_OF_CUDA_MEMORY))
    place.engine.gate.set()
    failure = await first(bad, is_failure)
    assert is_out_of_memory(failure.error)
    await steps(good, 30)


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_CUDA_MEMORY,
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
    ids=str,
)
async def test_one_that_cannot_be_made_fails_alone(place, error):
    good, bad = place.admit(Session()), place.admit(error)
    assert is_out_of_memory((await first(bad, is_failure)).error)
    await steps(good, 30)


async def test_a_dismissed_job_stops_at_once_and_frees_its_memory(place):
    session = Session()
    gone = weakref.ref(session)
    seat, other = place.admit(session), place.admit(Session())
    await steps(seat, 2)
    place.runner.dismiss(seat)
    done = session.iteration + 1  # one may have been under way
    await steps(other, 40)
    assert session.iteration <= done
    place.engine.steps.clear()
    del session
    await steps(other, 1)
    gc.collect()
    assert gone() is None


async def test_a_failure_does_not_hold_on_to_the_session(place):
    session = Session(error=RuntimeError("odd"))
    gone = weakref.ref(session)
    seat = place.admit(session)
    failure = await first(seat, is_failure)
    place.engine.steps.clear()
    seat.make = None
    del session, seat
    gc.collect()
    assert failure.error.__traceback__ is not None
    assert gone() is None


async def test_a_lost_device_is_told_to_all(place):
    place.engine.gate.clear()
    bystander = place.admit(Session())
    culprit = place.admit(Session(error=LOST_DEVICE))
    place.engine.gate.set()
    assert is_device_failure((await first(culprit, is_failure)).error)
    assert isinstance((await first(bystander, is_failure)).error, DeviceLost)
    await asyncio.wait_for(place.runner.device_lost.wait(), 30)
    late = place.admit(Session())
    assert isinstance((await first(late, is_failure)).error, DeviceLost)


async def test_a_fault_of_the_thread_itself_is_told_to_all_as_a_lost_device(place, caplog):
    bystander = place.admit(Session())
    await steps(bystander, 1)
    place.admit(Session(working_memory=("a lot", 0)))
    assert isinstance((await first(bystander, is_failure)).error, DeviceLost)
    await asyncio.wait_for(place.runner.device_lost.wait(), 30)
    assert place.runner.stuck_after is None
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]


async def test_a_job_dismissed_before_it_comes_is_never_made(place):
    session = Session()
    seat = Seat(Account("interactive", "a"), 1, 0, 0, lambda engine: session)
    place.runner.dismiss(seat)
    place.runner.admit(seat)
    await steps(place.admit(Session()), 10)
    assert session.iteration == 0


async def test_memory_that_has_run_out_is_no_lost_device(place):
    assert not is_device_failure(OUT_OF_CUDA_MEMORY)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))


async def test_a_job_at_the_door_has_no_state_to_keep(place):
    sizes = 2**39, 2**40
    inside, waiting = [place.admit(Session(working_memory=(size, 0))) for size in sizes]
    await steps(inside, 3)
    place.runner.snapshot(waiting)
    assert isinstance(await asyncio.wait_for(waiting.next(), 30), Unchanged)
    place.runner.dismiss(inside)
    assert (await steps(waiting, 1))[0].report.iteration == 1


async def test_weights_that_come_before_the_session_is_made_are_applied_to_it(place):
    session = Session()
    seat = Seat(Account("interactive", "a"), 1, 0, 0, lambda engine: session)
    place.runner.admit(seat)
    place.runner.steer(seat, {"strength": 0.25}, 7)
    step = await first(seat, lambda item: item.control_version == 7)
    assert step.report.iteration >= 1
    assert session.given == [{"strength": 0.25}]


async def test_weights_that_a_job_comes_with_are_not_followed_by_older_ones(place):
    """While its pictures are read they may be changed twice, and the thread be told of it between two iterations."""
    session, other = Session(), place.admit(Session())
    seat = Seat(Account("interactive", "a"), 1, 0, 0, lambda engine: session)
    place.runner.steer(seat, {"strength": 0.25}, 1)
    await steps(other, 20)
    place.engine.gate.clear()
    place.runner.steer(seat, {"strength": 0.75}, 2)
    seat.control_version = 2
    place.runner.admit(seat)
    place.engine.gate.set()
    assert (await steps(seat, 1))[0].control_version == 2
    assert session.given == []


@pytest.mark.parametrize(("pixels", "allowed"), [(1, 0.05), (4_000_000, 0.2)])
async def test_a_turn_that_does_not_end_is_noticed_the_later_the_larger_its_picture(pixels, allowed):
    engine, going = Engine(), threading.Event()
    runner = Runner(lambda: engine, dataclasses.replace(SETTINGS, stall_seconds=0.05))
    await runner.start()

    def make(engine: Engine) -> Session:
        going.wait(30)
        return Session()

    seat = Seat(Account("interactive", "a"), pixels, 0, 0, make)
    assert runner.stuck_after is None
    runner.admit(seat)
    for _ in range(3000):
        if runner.stuck_after is not None:
            break
        await asyncio.sleep(0.01)
    assert runner.stuck_after == pytest.approx(allowed)
    going.set()
    await steps(seat, 1)
    assert seat.seconds > 0
    runner.dismiss(seat)
    await runner.stop()
    assert runner.stuck_after is None


async def test_many_changes_cost_a_job_one_a_turn_and_others_none(place):
    """To take weights can last longer than an iteration: who sends them in a stream must not hold up the others."""
    steered, other = Session(), Session()
    seat, bystander = place.admit(steered), place.admit(other)
    await steps(bystander, 1)
    place.engine.gate.clear()
    for version in range(1, 101):
        place.runner.steer(seat, {"strength": version / 100}, version)
    place.engine.gate.set()
    await first(seat, lambda item: item.control_version == 100)
    assert steered.given[-1] == {"strength": 1.0}
    assert len(steered.given) <= 3
    assert len(steered.given) <= steered.iteration


async def test_weights_that_a_session_refuses_end_its_job_alone(place):
    class Refusing(Session):
        def update(self, **weights: float) -> None:
            raise ValueError("no")

    seats = [place.admit(session) for session in (Refusing("8 px"), Session("8 px"))]
    await steps(seats[0], 1)
    place.runner.steer(seats[0], {"strength": 0.5}, 1)
    assert isinstance((await first(seats[0], is_failure)).error, ValueError)
    assert all(isinstance(item, Step) for item in await steps(seats[1], 12))


async def test_the_later_of_two_changes_counts(place):
    session = Session()
    seat = place.admit(session)
    await steps(seat, 1)
    place.runner.steer(seat, {"strength": 0.75}, 8)
    place.runner.steer(seat, {"strength": 0.25}, 7)
    await first(seat, lambda item: item.control_version == 8)
    assert session.given == [{"strength": 0.75}]


async def test_who_failed_is_told_though_memory_cannot_be_given_back_any_more(monkeypatch: pytest.MonkeyPatch):
    """On a device that is lost even that fails, and its job would be told that another's failure has lost it."""
    engine = Engine()

    def release() -> None:
        raise LOST_DEVICE

    monkeypatch.setattr(memory, "in_use", lambda device: 10**12 if engine.steps else 0)
    monkeypatch.setattr(engine, "release_memory", release)
    runner = Runner(lambda: engine, ModelServerSettings(max_batch=1, memory_limit_bytes=10**10))  # type: ignore[arg-type]
    await runner.start()
    place = Place(engine, runner)
    try:
        error = ValueError("this job's own")
        failing, other = place.admit(Session(error=error)), place.admit(Session())
        assert (await first(failing, is_failure)).error is error
        assert isinstance((await first(other, is_failure)).error, DeviceLost)
        await asyncio.wait_for(runner.device_lost.wait(), 30)
    finally:
        await runner.stop()


async def test_memory_that_was_short_is_looked_at_again_now_and_then(monkeypatch: pytest.MonkeyPatch):
    """What had it may be gone though no job is; and what is kept for the jobs that are there is not given back for a
    look."""
    engine, looks, used = Engine(), queue.SimpleQueue[int](), 0

    def in_use(device: torch.device) -> int:
        looks.put(used)
        return used

    monkeypatch.setattr(runner_module, "REVIEW_SECONDS", 0.01)
    monkeypatch.setattr(memory, "in_use", in_use)
    runner = Runner(lambda: engine, ModelServerSettings(max_batch=1, memory_limit_bytes=10**10))  # type: ignore[arg-type]
    await runner.start()
    place = Place(engine, runner)
    try:
        used = 12 * 10**9
        await steps(place.admit(Session()), 1)
        newcomer = place.admit(Session())
        released, known = engine.released, looks.qsize()
        assert released == 1  # when the first had been made
        for _ in range(known + 5):
            await asyncio.to_thread(looks.get, timeout=30)
        assert (engine.released, newcomer.session) == (released, None)
        used = 10**9
        await steps(newcomer, 1)
    finally:
        await runner.stop()
