"""A real nats-server, and a job store of its own for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from lease_support import LONG_LEASE_SECONDS, of_server
from store_bench import Bench
from ticket_support import opened

from nst.v1 import job_pb2
from nst_calls import stored_spec
from nst_processes import running_nats
from nst_server.config import StoreSettings
from nst_server.jobs.backbone import Backbone, connect
from nst_server.jobs.claims import Leases
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.tickets import TicketSource


@pytest.fixture
def storage_settings() -> dict[str, int]:
    """What is to be different in the settings of NATS's storage."""
    return {}


@pytest.fixture
def nats_url(tmp_path: Path, storage_settings: dict[str, int]) -> Iterator[str]:
    with running_nats(tmp_path, storage_settings) as url:
        yield url


@pytest.fixture
def lease_seconds() -> float:
    return LONG_LEASE_SECONDS


@pytest.fixture
def store_settings(lease_seconds: float) -> StoreSettings:
    return StoreSettings(
        max_queued_jobs=3, max_picture_bytes=4 * 2**20, max_preview_bytes=3 * 2**20, lease_seconds=lease_seconds
    )


@pytest_asyncio.fixture
async def backbone(nats_url: str, store_settings: StoreSettings) -> AsyncIterator[Backbone]:
    async with connect(nats_url, "test", store_settings) as backbone:
        yield backbone


@pytest.fixture
def spec() -> job_pb2.JobSpec:
    return stored_spec()


@pytest.fixture
def commands(backbone: Backbone) -> JobCommands:
    return JobCommands(backbone, patience=5)


@pytest.fixture
def leases(backbone: Backbone, lease_seconds: float) -> Leases:
    return of_server(backbone, 1, lease_seconds)


@pytest.fixture
def other_leases(backbone: Backbone, lease_seconds: float) -> Leases:
    return of_server(backbone, 2, lease_seconds)


@pytest.fixture
async def tickets(backbone: Backbone) -> TicketSource:
    return await opened(backbone)


@pytest.fixture
def queue(backbone: Backbone) -> TicketQueue:
    return TicketQueue(backbone, patience=5)


@pytest.fixture
async def source(backbone: Backbone) -> TicketSource:
    return await opened(backbone)


@pytest.fixture
async def other(nats_url: str, store_settings: StoreSettings) -> AsyncIterator[TicketSource]:
    """Another model server's, with a connection of its own."""
    async with connect(nats_url, "other", None) as backbone:
        yield await opened(backbone)


@pytest.fixture
async def bench(backbone: Backbone, store_settings: StoreSettings) -> Bench:
    """A store, and all that fills and clears it."""
    bench = Bench(backbone, store_settings)
    await bench.tickets.open()
    return bench
