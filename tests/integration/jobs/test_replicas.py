"""A store of three replicas: writes that meet are refused in other words than by one server."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from lease_support import progress

from nst_processes import running_nats_cluster
from nst_server.config import StoreSettings
from nst_server.jobs.backbone import Backbone, connect
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.events import HistoryMoved, Stored
from nst_server.jobs.records import JobNotFound

SETTINGS = StoreSettings(lease_seconds=1, replicas=3)
ROUNDS = 3
TWINS = 4


@pytest.fixture
async def replicated(tmp_path: Path) -> AsyncIterator[Backbone]:
    """A store that was made with one copy, and was then given three."""
    with running_nats_cluster(tmp_path) as url:
        async with connect(url, "before", replace(SETTINGS, replicas=1)):
            pass
        async with connect(url, "test", SETTINGS) as backbone:
            yield backbone


async def test_twins_agree_and_everything_has_its_copies(replicated, spec):
    streams = await replicated.jetstream.streams_info()
    assert {stream.config.name: stream.config.num_replicas for stream in streams} == {
        stream.config.name: 3 for stream in streams
    }
    commands = JobCommands(replicated, patience=20)
    for number in range(ROUNDS):
        twins = [commands.create(f"request {number}", "tenant", spec, "") for _ in range(TWINS)]
        (job_id,) = {job.job_id for job in await asyncio.gather(*twins)}
        last = await commands.events.last(job_id)
        event = progress(1)
        event.job_id = job_id
        ends = await asyncio.gather(
            *(commands.events.append(event, last) for _ in range(TWINS)), return_exceptions=True
        )
        assert Counter(map(type, ends)) == {HistoryMoved: TWINS - 1, Stored: 1}
        await commands.cancel(job_id)
        gone = await asyncio.gather(*(commands.delete(job_id) for _ in range(TWINS)), return_exceptions=True)
        assert {type(end) for end in gone} <= {type(None), JobNotFound}
