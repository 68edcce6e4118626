"""What one tenant may have and ask for, and that no tenant sees what is another's."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any
from uuid import uuid4

import grpc
import pytest
from gateway_support import (
    CONTENT,
    SECONDS,
    STYLE,
    Gateway,
    Refused,
    calls_by_job,
    cancel,
    code_of,
    delete,
    file_of,
    live_jobs,
    pixels,
    read_status,
    refusal_of,
    running_gateway,
    tiny_spec,
    update,
    upload,
    upload_messages,
    wait_until,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from stylize_stream import stylize as opened

from nst.v1 import image_pb2, job_pb2
from nst.v1 import job_service_pb2 as jobs_pb2
from nst.v1 import style_transfer_service_pb2 as making_pb2
from nst_calls import Calls, calls, samples
from nst_processes import Server, running_nats

LIMITS = {
    "NST_MAX_TENANT_JOBS": "2",
    "NST_MAX_TENANT_PAUSED_JOBS": "1",
    "NST_MAX_TENANT_CALLS": "4",
    "NST_MAX_JOB_CHANGES": "6",
    "NST_MAX_TENANT_BYTES": str(3 * 512 * 1024),
}
INFO = making_pb2.GetServerInfoRequest()


@pytest.fixture(scope="module")
def low(tmp_path_factory) -> Iterator[Gateway]:
    """A gateway with low limits and no model server."""
    folder = tmp_path_factory.mktemp("low")
    with running_nats(folder) as nats_url, running_gateway(folder, nats_url, **LIMITS) as gateway:
        yield gateway
        assert gateway.logged("call failed") == []


@pytest.fixture
def tenant(low) -> Iterator[Calls]:
    """Calls of a tenant that no other test is."""
    with calls(low.address, f"tenant-{uuid4()}") as call:
        yield call


@pytest.fixture
def stranger(low) -> Iterator[Calls]:
    """Calls of another."""
    with calls(low.address, f"stranger-{uuid4()}") as call:
        yield call


def refused_by(limit: str, call: Callable[[], Any], *, for_good: bool = False) -> Refused:
    refused = refusal_of(call)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.metadata == {"limit": limit}
    assert limit in refused.message
    assert (refused.retry_seconds is None) == for_good
    return refused


def refusals(gateway: Gateway, limit: str) -> float:
    found = samples(gateway.metrics_address).get("nst_refused_total", [])
    return sum(sample.value for sample in found if sample.labels == {"limit": limit})


def stylize(call: Calls, spec: job_pb2.JobSpec) -> grpc.Call:
    start = making_pb2.StylizeRequest(start=making_pb2.StylizeStart(spec=spec))
    return call.making.Stylize(iter([start]), timeout=SECONDS)


def test_a_tenant_has_a_limited_number_of_jobs_until_one_ends(low, tenant, stranger):
    before = refusals(low, "max_tenant_jobs")
    first = tenant.create(tiny_spec(), "first")
    second = tenant.create(tiny_spec(), "second")
    unseen = tiny_spec()
    unseen.content.encoded.data = file_of(pixels(seed=77))
    for call in (lambda: tenant.create(unseen), lambda: stylize(tenant, unseen)):
        refused_by("max_tenant_jobs", call)
    assert refusals(low, "max_tenant_jobs") == before + 2
    assert tenant.create(tiny_spec(), "second") == second  # what is in already is found again
    cancel(stranger, stranger.create(tiny_spec()))
    cancel(tenant, first)
    # The pictures of what was refused have not been stored.
    unseen.content.CopyFrom(stored(unseen.content.encoded.data))
    assert refusal_of(lambda: tenant.create(unseen)).reason == "PICTURE_NOT_FOUND"
    cancel(tenant, tenant.create(tiny_spec()))
    cancel(tenant, second)


def stored(data: bytes) -> image_pb2.Image:
    """A picture file by reference."""
    return image_pb2.Image(reference=image_pb2.ImageReference(sha256=sha256(data).hexdigest()))


def test_a_tenant_stores_a_limited_number_of_bytes(low, tenant, stranger):
    pictures = [file_of(pixels(seed=seed)) for seed in range(10, 14)]
    for picture in pictures[:3]:
        upload(tenant, picture)
    refused_by("max_tenant_bytes", lambda: upload(tenant, pictures[3]))
    # By its announced size, before its bytes are sent.
    header = next(upload_messages(pictures[3]))
    refused_by("max_tenant_bytes", lambda: tenant.making.UploadImage(iter([header]), timeout=SECONDS))
    spec = tiny_spec()
    refused_by("max_tenant_bytes", lambda: tenant.create(spec))
    spec.content.attached.name = "content"
    spec.content.attached.header.size = len(CONTENT)
    refused_by("max_tenant_bytes", lambda: stylize(tenant, spec))
    assert refusals(low, "max_tenant_bytes") >= 4
    # References need no room, and others have theirs.
    content, style = map(stored, pictures[:2])
    cancel(tenant, tenant.create(job_pb2.JobSpec(content=content, styles=[job_pb2.Style(image=style)])))
    assert upload(stranger, CONTENT).width == 48


def test_calls_of_a_tenant_come_at_a_limited_rate(tmp_path, low):
    nats = low.popen.args[low.popen.args.index("--nats") + 1]
    with running_gateway(tmp_path, nats, **LIMITS, NST_MAX_TENANT_REQUESTS_PER_SECOND="1") as gateway:
        with calls(gateway.address, "hasty") as hasty, calls(gateway.address, "calm") as calm:
            outcomes = [code_of(lambda: hasty.making.GetServerInfo(INFO, timeout=SECONDS)) for _ in range(4)]
            assert outcomes.count(grpc.StatusCode.OK) >= 2
            refused_by("max_tenant_requests_per_second", lambda: drained(hasty))
            assert calm.making.GetServerInfo(INFO, timeout=SECONDS).limits["max_tenant_requests_per_second"] == 1
            wait_until(lambda: code_of(lambda: hasty.making.GetServerInfo(INFO)) is grpc.StatusCode.OK, "a token")
        with grpc.insecure_channel(gateway.address) as channel:
            probe = health_pb2_grpc.HealthStub(channel)
            for _ in range(10):
                assert probe.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status
        assert refusals(gateway, "max_tenant_requests_per_second") >= 1


def test_messages_over_an_open_call_wait_for_their_turn(tmp_path, low):
    nats = low.popen.args[low.popen.args.index("--nats") + 1]
    with (
        running_gateway(tmp_path, nats, **LIMITS, NST_MAX_TENANT_REQUESTS_PER_SECOND="1") as gateway,
        calls(gateway.address, "talkative") as call,
        opened(call) as stream,
    ):
        stream.start(tiny_spec())
        job_id = next(iter(stream)).job_id
        for number in range(4):
            stream.send(update=job_pb2.JobUpdate(strength=number / 10))
        with calls(low.address, "talkative") as other:
            wait_until(lambda: other.get(job_id).control_version >= 1, "the first change")
            refused_by("max_tenant_requests_per_second", lambda: call.get(job_id))
            wait_until(lambda: other.get(job_id).control_version == 4, "the last change")
            cancel(other, job_id)


def test_a_tenant_has_a_limited_number_of_jobs_paused_until_one_goes_on(low, tenant):
    jobs = [tenant.create(tiny_spec()) for _ in range(2)]
    update(tenant, jobs[0], paused=True)
    refused_by("max_tenant_paused_jobs", lambda: update(tenant, jobs[1], paused=True))
    update(tenant, jobs[0], paused=False)
    update(tenant, jobs[1], paused=True)
    for job_id in jobs:
        cancel(tenant, job_id)


def test_a_change_that_a_limit_refuses_for_now_ends_a_stream_but_not_its_job(low, tenant):
    paused = tenant.create(tiny_spec())
    update(tenant, paused, paused=True)
    with opened(tenant) as stream:
        stream.start(tiny_spec())
        job_id = next(iter(stream)).job_id
        stream.send(update=job_pb2.JobUpdate(paused=True))
        assert refused_by("max_tenant_paused_jobs", lambda: stream).retry_seconds is not None
    for one in (paused, job_id):
        assert tenant.get(one).state != job_pb2.JOB_STATE_CANCELLED
        cancel(tenant, one)


def test_a_job_that_was_changed_too_often_goes_on_as_it_is(low, tenant):
    with opened(tenant) as stream:
        stream.start(tiny_spec())
        job_id = next(iter(stream)).job_id
        for number in range(1, 8):
            stream.send(update=job_pb2.JobUpdate(strength=number / 10))
        refused_by("max_job_changes", lambda: stream, for_good=True)
    refused_by("max_job_changes", lambda: update(tenant, job_id, strength=0.9), for_good=True)
    update(tenant, job_id, strength=0.6)  # as it is: a call whose answer was lost may come again
    job = tenant.get(job_id)
    assert (job.state, job.control_version) == (job_pb2.JOB_STATE_QUEUED, 6)
    cancel(tenant, job_id)


def test_a_tenant_has_a_limited_number_of_calls_open(low, tenant, stranger):
    job_id = tenant.create(tiny_spec())
    watches = [tenant.watch(job_id) for _ in range(4)]
    assert [next(watch).sequence for watch in watches] == [1] * 4
    refused_by("max_tenant_calls", lambda: tenant.watch(job_id))
    refused_by("max_tenant_calls", lambda: tenant.get(job_id))
    assert stranger.making.GetServerInfo(INFO, timeout=SECONDS).limits["max_tenant_calls"] == 4
    watches.pop().close()
    wait_until(lambda: code_of(lambda: tenant.get(job_id)) is grpc.StatusCode.OK, "a place")
    cancel(tenant, job_id)


def drained(call: Calls) -> None:
    """Calls until the tenant has no token left, unary calls and streams in turn."""
    for _ in range(20):
        call.making.GetServerInfo(INFO, timeout=SECONDS)
        list(call.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id="x"), timeout=SECONDS))


def test_the_job_of_another_tenant_is_not_there(tenant, stranger):
    job_id = tenant.create(tiny_spec())
    for request, method in calls_by_job(stranger).items():
        refused = refusal_of(lambda method=method, request=request: method(request(job_id=job_id), timeout=SECONDS))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    assert tenant.get(job_id).state == job_pb2.JOB_STATE_QUEUED
    assert job_id in [job.job_id for job in live_jobs(tenant)]
    assert job_id not in [job.job_id for job in live_jobs(stranger)]
    update(tenant, job_id, paused=True)
    cancel(tenant, job_id)
    assert [event.job_state for event in tenant.watch(job_id)][-1] == job_pb2.JOB_STATE_CANCELLED
    delete(tenant, job_id)


def test_every_call_that_takes_a_job_is_held_to_this(tenant):
    """A new call with a job's id has to be added to the test above."""
    services = (jobs_pb2.DESCRIPTOR, making_pb2.DESCRIPTOR)
    methods = [method for file in services for service in file.services_by_name.values() for method in service.methods]
    taking = {method.input_type.full_name for method in methods if "job_id" in method.input_type.fields_by_name}
    assert taking == {request.DESCRIPTOR.full_name for request in calls_by_job(tenant)}


def test_the_pictures_of_another_tenant_are_not_there(tenant, stranger):
    reference = image_pb2.Image(reference=upload(tenant, STYLE).reference)
    spec = job_pb2.JobSpec(content=reference, styles=[job_pb2.Style(image=reference)])
    refused = refusal_of(lambda: stranger.create(spec))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "PICTURE_NOT_FOUND")
    assert list(refused.fields) == ["spec.content.reference.sha256"]
    cancel(tenant, tenant.create(spec))
    assert upload(stranger, STYLE).reference == reference.reference
    cancel(stranger, stranger.create(spec))


def test_a_tenants_job_runs_to_its_result(server: Server):
    with calls(server.address, "a.tenant_with-dots") as call:
        *_, last = call.watch(call.create(tiny_spec()))
        assert last.result.image.encoded.data
        result = making_pb2.GetResultRequest(job_id=last.job_id)
        assert b"".join(part.chunk.data for part in call.making.GetResult(result, timeout=SECONDS))


@pytest.mark.parametrize("name", ["a b", "a/b", "x" * 65, "x" * 300, "*", ">"])
def test_a_tenant_has_a_name_of_letters_and_digits(low, name):
    with calls(low.address, name) as call:
        for method in (lambda: call.making.GetServerInfo(INFO, timeout=SECONDS), lambda: upload(call, CONTENT)):
            with pytest.raises(grpc.RpcError) as caught:
                method()
            refused = read_status(caught.value)
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
            assert list(refused.fields) == ["x-nst-tenant"]
            assert "1 to 64" in refused.message
