"""How much is read for jobs whose sessions are still to be made."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from nst.internal.v1.job_record_pb2 import Announcement
from nst_server.config import ModelServerSettings
from nst_server.jobs.tickets import Account, Flow
from nst_server.model_server import app, preparing
from nst_server.model_server.app import MOST_WAITING, ModelServerProcess
from nst_server.model_server.preparing import READ_AT_ONCE, Preparations
from nst_server.model_server.seats import Seat


@dataclass
class Source:
    """Comes with so many bytes, once they may be read."""

    nbytes: int
    readable: asyncio.Event = field(default_factory=asyncio.Event)
    reading: bool = False

    async def maker(self):
        self.reading = True
        await self.readable.wait()
        return (lambda engine: engine), self.nbytes


@pytest.fixture
def preparations(monkeypatch) -> Preparations:
    monkeypatch.setattr(preparing, "LOOK_SECONDS", 0.001)
    return Preparations(max_bytes=100)


def seat() -> Seat:
    return Seat(Account("interactive", "a"), 1, 0, 0)


async def prepared(preparations: Preparations, nbytes: int) -> Seat:
    given, source = seat(), Source(nbytes)
    source.readable.set()
    await preparations.prepare(given, source)
    assert given.make is not None
    return given


@pytest.mark.parametrize("end", ["made", "left"])
async def test_no_more_is_read_until_a_session_is_made_or_a_job_leaves(preparations, end):
    await prepared(preparations, 60)
    assert not preparations.full
    second = await prepared(preparations, 60)
    assert preparations.full
    source = Source(1)
    waiting = asyncio.create_task(preparations.prepare(seat(), source))
    await asyncio.sleep(0.05)
    assert not source.reading
    if end == "made":
        second.make = None
    else:
        second.leave()
    source.readable.set()
    await asyncio.wait_for(waiting, 10)
    assert not preparations.full


async def test_only_so_many_are_read_at_once(preparations):
    sources = [Source(1) for _ in range(READ_AT_ONCE + 2)]
    tasks = [asyncio.create_task(preparations.prepare(seat(), source)) for source in sources]
    await asyncio.sleep(0.05)
    assert sum(source.reading for source in sources) == READ_AT_ONCE
    tasks[0].cancel()
    for source in sources:
        source.readable.set()
    await asyncio.wait_for(asyncio.gather(*tasks[1:]), 10)


@pytest.fixture
def process() -> ModelServerProcess:
    idle = SimpleNamespace(short_of_memory=False)
    return ModelServerProcess(
        SimpleNamespace(nats=None), idle, SimpleNamespace(device=torch.device("cpu")), ModelServerSettings()
    )


@pytest.mark.parametrize("large", [False, True])
def test_what_waits_with_much_keeps_out_its_own_size_alone(process, large):
    flows = [Flow("interactive", "a", large=size) for size in (False, True)]
    assert process._rank(flows) == flows
    process._preparations[large] = SimpleNamespace(full=True)
    assert process._rank(flows) == [Flow("interactive", "a", large=not large)]


@pytest.mark.parametrize("large", [False, True])
def test_no_more_of_a_size_are_taken_than_soon_begin(process, large):
    """What waits at one server's door no other can take; what is urgent is not kept out by what is not."""
    flows = [Flow(lane, "a", large=size) for lane in ("batch", "interactive") for size in (False, True)]
    unsuspected = SimpleNamespace(suspected=False)
    for number in range(MOST_WAITING):
        assert set(process._rank(flows)) == {*flows}
        flow = Flow("batch", f"tenant-{number}", large)
        process._running[str(number)] = SimpleNamespace(flow=flow, waits=True, lease=unsuspected)
    assert set(process._rank(flows)) == {*flows} - {Flow("batch", "a", large)}
    process._tickets._stirred.clear()
    process._charge("0", 1.0)
    assert set(process._rank(flows)) == {*flows}
    assert process._tickets._stirred.is_set()


async def test_what_cannot_be_announced_now_is_announced_later(process, monkeypatch):
    """A folder of weights that cannot be read for a moment, say."""
    monkeypatch.setattr(app, "ANNOUNCE_SECONDS", 0.001)
    monkeypatch.setattr(app.memory, "in_use", lambda device: 0)
    put = asyncio.Event()
    faults = iter([OSError("stale file handle"), OSError("stale file handle")])

    async def announcement(running):
        if fault := next(faults, None):
            raise fault
        return Announcement()

    async def store(name, data):
        put.set()

    monkeypatch.setattr(process._others, "announcement", announcement)
    process._backbone.servers = SimpleNamespace(put=store)
    announcing = asyncio.create_task(process._announce())
    await asyncio.wait_for(put.wait(), 10)
    announcing.cancel()


async def test_whatever_ends_a_model_server_its_jobs_are_handed_back(process, monkeypatch):
    drained = []

    ended = []

    async def nothing(*_):
        return None

    async def work(*_):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def fail(*_):
        raise OSError("no such queue")

    async def drain():
        drained.append((process.ready, len(ended)))

    process._engine.device_name = "CPU"
    monkeypatch.setattr(process._tickets, "open", nothing)
    monkeypatch.setattr(app, "Leases", lambda *_: None)
    for name, does in (("_pull", fail), ("_announce", work), ("_watch", work), ("_drain", drain)):
        monkeypatch.setattr(process, name, does)
    with pytest.raises(OSError, match="no such queue"):
        await process.run(asyncio.Event())
    assert drained == [(False, 2)]
