"""How much is read for jobs whose sessions are still to be made."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from nst_server.config import ModelServerSettings
from nst_server.jobs.tickets import Account, Flow
from nst_server.model_server import preparing
from nst_server.model_server.app import ModelServerProcess
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


@pytest.mark.parametrize("large", [False, True])
def test_what_waits_with_much_keeps_out_its_own_size_alone(large):
    idle = SimpleNamespace(short_of_memory=False)
    process = ModelServerProcess(
        SimpleNamespace(nats=None), idle, SimpleNamespace(device=torch.device("cpu")), ModelServerSettings()
    )
    flows = [Flow("interactive", "a", large=size) for size in (False, True)]
    assert process._rank(flows) == flows
    process._preparations[large] = SimpleNamespace(full=True)
    assert process._rank(flows) == [Flow("interactive", "a", large=not large)]
