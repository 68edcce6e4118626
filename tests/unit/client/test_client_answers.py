"""What a client makes of the server's answers."""

from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from scripted_server import ScriptedServer, progress_event

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst_client import AsyncClient, ImageRef, JobState, Style
from nst_client.events import STATES

A, B = ImageRef("a" * 64), ImageRef("b" * 64)


async def test_jobs_are_listed_page_by_page(server: ScriptedServer) -> None:
    server.jobs = [job_pb2.Job(job_id=f"job-{n}", state=job_pb2.JOB_STATE_RUNNING) for n in range(5)]
    async with AsyncClient(server.address) as client:
        listing = client.jobs([JobState.RUNNING, JobState.QUEUED])
        first = await anext(listing)
        assert len(server.received["ListJobs"]) == 1
        assert [first.job_id, *[job.job_id async for job in listing]] == [f"job-{n}" for n in range(5)]
    requests = server.received["ListJobs"]
    assert [request.page_token for request in requests] == ["", "2", "4"]
    assert all(request.states == [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_QUEUED] for request in requests)


@pytest.mark.parametrize(
    ("states", "sent"),
    [
        (JobState.PAUSED, [job_pb2.JOB_STATE_PAUSED]),
        ("failed", [job_pb2.JOB_STATE_FAILED]),
        (("queued", JobState.RUNNING), [job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING]),
        ((state for state in STATES), [number for number in job_pb2.JobState.values() if number]),
    ],
)
async def test_states_may_be_named(server: ScriptedServer, states: Any, sent: list[int]) -> None:
    async with AsyncClient(server.address) as client:
        assert [job async for job in client.jobs(states)] == []
    assert server.received["ListJobs"][0].states == sent


@pytest.mark.parametrize(
    ("states", "error"),
    [
        ("RUNNING", ValueError),
        (["queued", "done"], ValueError),
        (JobState.UNSPECIFIED, ValueError),
        ("", ValueError),
        ([2], TypeError),
        (2, TypeError),
        (None, TypeError),
    ],
)
def test_what_is_no_state_is_refused(states: Any, error: type[Exception]) -> None:
    client = AsyncClient("127.0.0.1:1")
    with pytest.raises(error, match=r"^states: .* one of queued, running, paused, succeeded, failed, cancelled, not "):
        client.jobs(states)


async def test_a_status_holds_what_the_job_does(server: ScriptedServer) -> None:
    made = Timestamp(seconds=1_700_000_000)
    spec = job_pb2.JobSpec(
        content=image_pb2.Image(reference=image_pb2.ImageReference(sha256=A.sha256)),
        options=options_pb2.StylizeOptions(optimizer=options_pb2.OPTIMIZER_LBFGS, size=64),
        priority=job_pb2.PRIORITY_BATCH,
    )
    spec.styles.add(image=image_pb2.Image(reference=image_pb2.ImageReference(sha256=B.sha256)), weight=0.5)
    mask = image_pb2.Image(reference=image_pb2.ImageReference(sha256=A.sha256))
    spec.styles.add(image=mask, region=mask, source_region=mask, scale=0.25)
    server.jobs = [
        job_pb2.Job(
            job_id="j",
            request_id="r",
            state=job_pb2.JOB_STATE_FAILED,
            spec=spec,
            create_time=made,
            attempt=2,
            last_sequence=9,
            progress=progress_event(3).progress,
            error=job_pb2.JobError(code=3, reason="R", message="m"),
            tenant="t",
        )
    ]
    async with AsyncClient(server.address) as client:
        (status,) = [job async for job in client.jobs()]
    assert (status.job_id, status.request_id, status.tenant) == ("j", "r", "t")
    assert (status.state, status.attempt, status.last_sequence) == (JobState.FAILED, 2, 9)
    assert (status.content, status.styles, status.priority) == (A, (Style(B, 0.5), Style(A, 1.0, A, A, 0.25)), "batch")
    assert status.options == {"size": 64, "optimizer": "lbfgs"}
    assert status.create_time == datetime.fromtimestamp(1_700_000_000, UTC)
    assert status.progress is not None
    assert (status.progress.iteration, status.progress.losses["content"]) == (3, pytest.approx(10 / 3))
    assert status.result is None
    assert status.error is not None
    assert (status.error.code, status.error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "R")


async def test_server_info_and_its_defaults_can_be_sent_back(server: ScriptedServer) -> None:
    server.info.defaults.CopyFrom(options_pb2.StylizeOptions(size=64, init=options_pb2.INIT_NOISE))
    server.info.ranges["size"].minimum = 16
    server.info.ranges["size"].maximum = 2048
    server.info.limits["max_size"] = 2048
    server.info.models.add(name="vgg", available=True, taps=["conv1_1"])
    server.info.model_servers.add(name="m", device="cpu", running_jobs=2)
    server.info.preview_defaults.interval = 10
    async with AsyncClient(server.address) as client:
        info = await client.server_info()
        await client.stylize(A, B, **info.defaults)
    assert info.version == "scripted"
    assert info.ranges == {"size": (16.0, 2048.0)}
    assert info.limits == {"max_size": 2048}
    assert (info.models[0].name, info.models[0].available, info.models[0].taps) == ("vgg", True, ("conv1_1",))
    assert (info.model_servers[0].device, info.model_servers[0].running_jobs) == ("cpu", 2)
    assert info.preview_interval == 10
    assert server.received["CreateJob"][0].spec.options == server.info.defaults


async def test_a_state_of_a_later_server_is_no_error(server: ScriptedServer) -> None:
    server.jobs = [job_pb2.Job(job_id="j", state=77)]  # type: ignore[arg-type]
    async with AsyncClient(server.address) as client:
        (status,) = [job async for job in client.jobs()]
    assert status.state is JobState.UNSPECIFIED
