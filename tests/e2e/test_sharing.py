"""Two tenants on one real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from nst_calls import metric
from nst_client import Client, JobState, ProgressEvent
from nst_processes import Server, running_server

PLACES = 3
SHALLOWEST = {"content_layers": {"relu1_1": 1.0}, "style_layers": {"relu1_1": 1.0}, "precision": "float32"}
LONG = {"size": 32, "iterations": 5000, "scales": 1, **SHALLOWEST}
SHORT = {"size": 64, "iterations": 40, "scales": 1, **SHALLOWEST}
# Of strips, which are soon taken in.
LARGE = {"size": 1100, "iterations": 500, "scales": 1, **SHALLOWEST}
STRIP = (550, 32)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that works on `PLACES` jobs of a tenant at once."""
    with running_server(tmp_path_factory.mktemp("own"), NST_MAX_RUNNING_JOBS=str(PLACES)) as server:
        yield server


def seconds(address: str) -> dict[str, float]:
    """What each tenant has had of the device."""
    return {tenant: metric(address, "nst_device_seconds_total", tenant=tenant) for tenant in ("many", "one")}


def test_a_tenant_with_one_job_gets_half_of_the_device_beside_one_with_many(
    own_server: Server, content_path: Path, style_path: Path
) -> None:
    address, counted = own_server.address, own_server.status["model_metrics_address"]
    with Client(address, tenant="many") as many, Client(address, tenant="one") as one:
        jobs = [many.stylize(content_path, style_path, **LONG) for _ in range(PLACES)]
        for job in jobs:
            next(event for event in job if isinstance(event, ProgressEvent))
        events = iter(one.stylize(content_path, style_path, **SHORT))
        next(event for event in events if isinstance(event, ProgressEvent))
        before = seconds(counted)
        for _ in events:
            continue
        after = seconds(counted)
        for job in jobs:
            job.cancel()
    had = {tenant: after[tenant] - before[tenant] for tenant in after}
    assert had["one"] / sum(had.values()) == pytest.approx(0.5, abs=0.1)


def test_a_small_picture_does_not_wait_for_large_ones_of_its_own_tenant(
    own_server: Server, content_path: Path, style_path: Path
) -> None:
    """Which have all the places that there are for large ones."""
    with Client(own_server.address) as client:
        strips = [Image.open(path).convert("RGB").resize(STRIP) for path in (content_path, style_path)]
        large = [client.stylize(*strips, **LARGE) for _ in range(PLACES)]
        for job in large:
            next(event for event in job if isinstance(event, ProgressEvent))
        large.append(client.stylize(*strips, **LARGE))
        small = client.stylize(content_path, style_path, **{**SHORT, "iterations": 3})
        small.result()
        assert [job.status().state for job in large] == [JobState.RUNNING] * PLACES + [JobState.QUEUED]
        for job in large:
            job.cancel()
