"""A job with a time limit ends when it has passed, whatever it is doing then, with the best picture so far."""

import hashlib
import io
from collections.abc import Iterator

import grpc
import pytest
from gateway_support import (
    LONG,
    assert_invalid,
    cancel,
    refusal_of,
    result_bytes,
    running_gateway,
    tiny_spec,
    update,
)
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from PIL import Image

from nst.v1 import job_pb2
from nst.v1 import style_transfer_service_pb2 as making_pb2
from nst_calls import Calls, assert_gapless, calls, samples, until
from nst_processes import Process, running_nats


def limited_spec(seconds: float, preview_interval: int = 0) -> job_pb2.JobSpec:
    """A job that takes far longer than it has time."""
    spec = tiny_spec(**LONG)
    spec.preview.interval = preview_interval
    spec.time_limit.FromNanoseconds(int(seconds * 1e9))
    return spec


def assert_out_of_time(call: Calls, events: list[job_pb2.JobEvent], seconds: float) -> job_pb2.JobError:
    """The history ends as it should, no earlier than it may."""
    assert_gapless(events)
    last = events[-1]
    assert last.job_state == job_pb2.JOB_STATE_FAILED
    assert (last.error.code, last.error.reason) == (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert f"{seconds:g} s" in last.error.message
    job = call.get(last.job_id)
    assert last.time.ToNanoseconds() - job.create_time.ToNanoseconds() >= seconds * 1e9 - 1e6
    assert job.error == last.error
    return last.error


def assert_picture(call: Calls, job_id: str, error: job_pb2.JobError) -> None:
    """The picture so far is there, and is what the error says."""
    assert not error.partial.HasField("image")
    data = result_bytes(call, job_id)
    assert hashlib.sha256(data).hexdigest() == error.partial.reference.sha256
    assert Image.open(io.BytesIO(data)).size == (error.partial.width, error.partial.height)


def test_a_running_job_ends_with_the_picture_that_it_has(call):
    job_id = call.create(limited_spec(1.5))
    events = list(call.watch(job_id))
    error = assert_out_of_time(call, events, 1.5)
    assert error.partial.iterations == events[-2].progress.iteration > 0
    assert error.partial.progress == events[-2].progress
    assert_picture(call, job_id, error)


def test_the_picture_so_far_is_content_for_another_job(call):
    events = list(call.watch(call.create(limited_spec(1.0))))
    spec = tiny_spec()
    spec.content.reference.CopyFrom(events[-1].error.partial.reference)
    *_, last = call.watch(call.create(spec))
    assert last.job_state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_job_that_is_done_in_time_succeeds(call):
    spec = tiny_spec()
    spec.time_limit.seconds = 3600
    *_, last = call.watch(call.create(spec))
    assert last.job_state == job_pb2.JOB_STATE_SUCCEEDED
    assert call.get(last.job_id).spec.time_limit.seconds == 3600


def test_a_waiting_job_ends_without_a_picture(idle):
    job_id = idle.create(limited_spec(0.5))
    error = assert_out_of_time(idle, list(idle.watch(job_id)), 0.5)
    assert not error.HasField("partial")
    refused = refusal_of(lambda: result_bytes(idle, job_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_RESULT")


@pytest.mark.parametrize("interval", [0, 10_000])
def test_a_paused_job_ends_with_the_picture_that_it_was_paused_with(call, interval):
    """Whole, and not the one preview that was due before."""
    spec = limited_spec(3.0, preview_interval=interval)
    spec.preview.max_size = 16
    job_id = call.create(spec)
    watching = call.watch(job_id)
    seen = until(watching, lambda event: event.progress.iteration > 1)
    update(call, job_id, paused=True)
    seen += list(watching)
    assert job_pb2.JOB_STATE_PAUSED in [event.job_state for event in seen]
    error = assert_out_of_time(call, seen, 3.0)
    *_, last = (event.progress.iteration for event in seen if event.HasField("progress"))
    assert error.partial.iterations == last > 1
    assert max(error.partial.width, error.partial.height) == spec.options.size
    assert any(event.HasField("preview") for event in seen) == (interval > 0)
    assert_picture(call, job_id, error)


@pytest.mark.parametrize(
    "limit",
    [Duration(), Duration(seconds=-1), Duration(nanos=-1), Duration(seconds=7 * 24 * 3600, nanos=1)],
    ids=["nothing", "seconds ago", "a moment ago", "over the limit"],
)
def test_time_limits_that_no_job_can_have(call, limit):
    spec = tiny_spec()
    spec.time_limit.CopyFrom(limit)
    request = making_pb2.CreateJobRequest(request_id="request", spec=spec)
    assert_invalid(
        lambda: call.making.CreateJob(request, timeout=30), request, "spec.time_limit", "max_time_limit_seconds", "s"
    )


def test_another_gateway_takes_over_from_one_that_was_killed(tmp_path):
    with (
        running_nats(tmp_path) as nats_url,
        running_gateway(tmp_path / "first", nats_url) as first,
        calls(first.address) as call,
    ):
        list(call.watch(call.create(limited_spec(0.1))))  # it keeps the store
        with running_gateway(tmp_path / "second", nats_url) as second, calls(second.address) as other:
            first.kill()
            assert_out_of_time(other, list(other.watch(other.create(limited_spec(0.5)))), 0.5)
            assert samples(second.metrics_address)["nst_store_bytes"]


@pytest.fixture(scope="module")
def solitary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Calls, Process]]:
    """Calls to a gateway, and its only model server, which has memory for small jobs and is not started again."""
    folder = tmp_path_factory.mktemp("solitary")
    with (
        running_nats(folder) as nats_url,
        running_gateway(folder, nats_url, NST_LEASE_SECONDS="0.5") as gateway,
        calls(gateway.address) as call,
    ):
        arguments = ("model-server", "--nats", nats_url, "--metrics-listen", "127.0.0.1:0")
        model_server = Process(folder / "model.log", *arguments, NST_MEMORY_LIMIT_BYTES="200000000")
        try:
            model_server.wait_for_log("model server ready")
            yield call, model_server
        finally:
            model_server.stop()


def test_a_job_that_waits_for_memory_ends_without_a_picture(solitary):
    call, _ = solitary
    running = call.create(tiny_spec(**LONG))
    until(call.watch(running), lambda event: event.HasField("progress"))
    large = limited_spec(2.5)
    large.options.size = 512
    events = list(call.watch(call.create(large)))
    error = assert_out_of_time(call, events, 2.5)
    assert not error.HasField("partial")
    assert job_pb2.JOB_STATE_RUNNING in [event.job_state for event in events], "it was taken from the queue"
    cancel(call, running)


def test_a_job_whose_model_server_died_ends_with_its_latest_preview(solitary):
    """The last one, as it leaves no model server."""
    call, model_server = solitary
    job_id = call.create(limited_spec(3.0, preview_interval=1))
    watching = call.watch(job_id)
    seen = until(watching, lambda event: event.HasField("preview"))
    model_server.kill()
    seen += list(watching)
    error = assert_out_of_time(call, seen, 3.0)
    assert error.partial.reference == [event.preview.reference for event in seen if event.HasField("preview")][-1]
    assert_picture(call, job_id, error)
