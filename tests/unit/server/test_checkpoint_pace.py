"""How often the state of a job is stored."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2
from nst_engine import StepReport
from nst_engine.schedule import Scale
from nst_running import FLOW, running_job
from nst_server.model_server import job as job_module
from nst_server.model_server.pace import Pace
from nst_server.model_server.seats import Seat, Step

SCALE = Scale(number=1, height=8, width=8, long_side=8, first=0, last=100_000)


@dataclass
class Lease:
    """One that tells nobody."""

    record: JobRecord = field(default_factory=JobRecord)
    suspected: bool = False

    async def append(self, event: job_pb2.JobEvent) -> None:
        pass


@dataclass
class Runner:
    """Counts the states that are asked for."""

    asked: int = 0

    def snapshot(self, seat: Seat) -> None:
        self.asked += 1


def step(iteration: int, seconds: float, device_seconds: float) -> Step:
    report = StepReport(iteration, SCALE.last, 1, 1, 8, 8, 1.0, {"content": 1.0}, 0, (SCALE,), None)
    return Step(report, seconds, device_seconds, None, None, 0)


@pytest.mark.parametrize(("sharing", "checkpoints"), [(1, 50), (16, 3)])
async def test_a_checkpoint_is_due_by_the_jobs_own_share_of_the_device(sharing: int, checkpoints: int):
    """Sixteen jobs in one batch write about as much to the store, together, as one alone."""
    runner = Runner()
    job = running_job(Lease(), runner=runner, checkpoint_seconds=0.5)
    seat, pace = Seat(FLOW.account, 64, 0, 0), Pace()
    for iteration in range(1, 1601):
        await job._handle(seat, step(iteration, 1 / 64, 1 / 64 / sharing), pace)
    assert runner.asked == checkpoints


async def test_a_checkpoint_is_due_after_twenty_times_as_long_by_the_clock(monkeypatch: pytest.MonkeyPatch):
    """A job that waits for others most of the time has something to lose too, but not before its first step."""
    clock = SimpleNamespace(monotonic=lambda: now, time=time.time)
    monkeypatch.setattr(job_module, "time", clock)
    now, runner = 100.0, Runner()
    job = running_job(Lease(), runner=runner, checkpoint_seconds=0.5)
    seat, pace = Seat(FLOW.account, 64, 0, 0), Pace()
    asked = []
    for iteration in range(1, 12):
        now = 200.0 + 2 * iteration
        await job._handle(seat, step(iteration, 0.001, 0.001), pace)
        asked.append(runner.asked)
    assert asked == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
