"""What a client wants of a job is done while its pictures are still being stored."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from nst.internal.v1.job_record_pb2 import JobRecord
from nst_running import FLOW, running_job
from nst_server.model_server.job import _Released
from nst_server.model_server.seats import Seat


@dataclass
class Lease:
    """A lease whose record is what the client has asked for by now."""

    record: JobRecord
    attempt: int = 1
    suspected: bool = False
    cancelled: bool = False

    async def refresh(self) -> JobRecord:
        return self.record

    async def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Runner:
    """What is asked of the compute thread."""

    steered: list[dict[str, Any]] = field(default_factory=list)
    dismissed: list[Seat] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)

    def steer(self, seat: Seat, changes: dict[str, Any], version: int) -> None:
        self.steered.append(changes)
        self.called.set()

    def dismiss(self, seat: Seat) -> None:
        self.dismissed.append(seat)


class Storing:
    """A preview on its way into a slow store."""

    def __init__(self, lease: Lease, runner: Runner) -> None:
        self.seat = Seat(FLOW.account, 1, 1, 0)
        self.job = running_job(lease, runner=runner)
        self.stored: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting = asyncio.create_task(self.job._obeying(self.seat, self.stored))


async def test_a_change_is_passed_on_at_once():
    lease, runner = Lease(JobRecord()), Runner()
    storing = Storing(lease, runner)
    lease.record.control.weights.tv_weight = 0.5
    lease.record.control.version = 1
    storing.job._look.set()
    await asyncio.wait_for(runner.called.wait(), 10)
    assert runner.steered == [{"tv_weight": 0.5}]
    assert not storing.waiting.done()
    storing.stored.set_result("a preview")
    assert await storing.waiting == "a preview"


async def test_a_cancelled_job_waits_for_no_preview():
    lease, runner = Lease(JobRecord()), Runner()
    storing = Storing(lease, runner)
    lease.record.control.cancel = True
    storing.job._look.set()
    with pytest.raises(_Released):
        await asyncio.wait_for(storing.waiting, 10)
    assert (lease.cancelled, runner.dismissed, storing.stored.cancelled()) == (True, [storing.seat], True)
