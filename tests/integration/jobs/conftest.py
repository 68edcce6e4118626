"""A real nats-server, and a job store of its own for each test."""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from nst.v1 import image_pb2, job_pb2
from nst_engine.options import StylizeOptions
from nst_processes import free_port
from nst_server.config import StoreSettings
from nst_server.jobs.backbone import Backbone, connect
from nst_server.options import options_to_proto
from nst_server.supervisor import find_nats_server, write_nats_config


@pytest.fixture
def storage_settings() -> dict[str, int]:
    """What is to be different in the settings of NATS's storage."""
    return {}


@pytest.fixture
def nats_url(tmp_path: Path, storage_settings: dict[str, int]) -> Iterator[str]:
    """An empty nats-server with file storage."""
    address = f"127.0.0.1:{free_port()}"
    config = write_nats_config(tmp_path, address)
    settings = json.loads(config.read_text())
    settings["jetstream"] |= storage_settings
    config.write_text(json.dumps(settings))
    with (tmp_path / "nats.log").open("wb") as output:
        process = subprocess.Popen([find_nats_server(), "-c", str(config)], stdout=output, stderr=output)
    try:
        wait_until_open(address)
        yield f"nats://{address}"
    finally:
        process.terminate()
        process.wait()


def wait_until_open(address: str) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {address}")


@pytest.fixture
def store_settings() -> StoreSettings:
    return StoreSettings(max_queued_jobs=3, max_picture_bytes=4 * 2**20, max_preview_bytes=3 * 2**20, lease_seconds=1)


@pytest_asyncio.fixture
async def backbone(nats_url: str, store_settings: StoreSettings) -> AsyncIterator[Backbone]:
    async with connect(nats_url, "test", store_settings) as backbone:
        yield backbone


@pytest.fixture
def spec() -> job_pb2.JobSpec:
    """A complete spec whose pictures nobody will look for."""
    reference = image_pb2.Image(reference=image_pb2.ImageReference(sha256="0" * 64))
    return job_pb2.JobSpec(
        content=reference,
        styles=[job_pb2.Style(image=reference, weight=1)],
        options=options_to_proto(StylizeOptions()),
        priority=job_pb2.PRIORITY_INTERACTIVE,
    )
