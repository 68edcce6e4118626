"""What operators meet: health, reflection, metrics, TLS and an orderly end."""

import hashlib
import threading
from collections.abc import Iterator

import grpc
import pytest
from gateway_certificate import make_certificate
from gateway_support import (
    CONTENT,
    LONG,
    SECONDS,
    Gateway,
    cancel,
    get,
    read_status,
    run_tiny,
    running_gateway,
    tiny_spec,
    upload_messages,
    wait_until,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from stylize_stream import is_running, stylize

from nst.v1 import job_pb2
from nst.v1.job_service_pb2 import WatchJobRequest
from nst.v1.style_transfer_service_pb2 import GetServerInfoRequest, UploadImageRequest
from nst_calls import Calls, metric, samples, until

SERVICES = ("nst.v1.StyleTransferService", "nst.v1.JobService")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_is_told_for_the_server_and_each_service(server, service):
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS).status == SERVING


def test_health_of_a_service_that_is_not_here(server):
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nst.v2"), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services_and_describes_them(server):
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in SERVICES),
    ]
    with grpc.insecure_channel(server.address) as channel:
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, *files = reflection.ServerReflectionInfo(iter(requests), timeout=SECONDS)
    assert {*SERVICES, "grpc.health.v1.Health"} <= {service.name for service in listed.list_services_response.service}
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in files)


def jobs_run(server) -> float:
    return metric(server.status["model_metrics_address"], "nst_job_run_seconds_count")


def test_metrics_of_both_processes_after_a_job(server, call):
    before = jobs_run(server)
    run_tiny(call)
    wait_until(lambda: jobs_run(server) > before, "the job counted, which it is after its last event")
    gateway = samples(server.status["metrics_address"])
    calls_ok = [
        sample.value
        for sample in gateway["grpc_server_handled_total"]
        if sample.labels["grpc_method"] == "CreateJob" and sample.labels["grpc_code"] == "OK"
    ]
    assert sum(calls_ok) >= 1
    started = gateway["grpc_server_started_total"][0].labels
    assert set(started) == {"grpc_type", "grpc_service", "grpc_method"}
    assert gateway["grpc_server_handling_seconds_count"]
    assert {sample.labels["priority"] for sample in gateway["nst_queue_depth"]} == {"interactive", "batch"}
    assert {"nst_watchers", "nst_previews_dropped_total"} <= gateway.keys()
    model_server = samples(server.status["model_metrics_address"])
    states = {sample.labels["state"]: sample.value for sample in model_server["nst_jobs_total"]}
    assert states["succeeded"] >= 1
    assert model_server["nst_engine_iterations_total"][0].value >= 3
    for name in ("nst_job_queue_seconds", "nst_job_run_seconds", "nst_iteration_seconds", "nst_batch_size"):
        assert model_server[f"{name}_count"][0].value >= 1
    assert model_server["nst_device_memory_bytes"][0].value > 0
    # Neither shows the other's as zeros, which would end up in sums and averages.
    ours = {name for name in gateway.keys() & model_server.keys() if name.startswith(("nst_", "grpc_"))}
    assert ours <= {"nst_jobs_total", "nst_jobs_created", "nst_event_loop_tasks"}


def test_memory_is_tidied_while_it_serves(server):
    def collections() -> float:
        return metric(server.status["metrics_address"], "python_gc_collections_total", generation="2")

    before = collections()
    wait_until(lambda: collections() > before, "a search of all that was made")


def test_refused_calls_are_counted_by_their_code(server, call):
    def refused() -> float:
        return sum(
            sample.value
            for sample in samples(server.status["metrics_address"])["grpc_server_handled_total"]
            if (sample.labels["grpc_method"], sample.labels["grpc_code"]) == ("GetJob", "NOT_FOUND")
        )

    with pytest.raises(grpc.RpcError):
        call.get("0" * 32)
    before = refused()
    with pytest.raises(grpc.RpcError):
        call.get("0" * 32)
    assert refused() == before + 1


@pytest.mark.parametrize("part", ["metrics_address", "model_metrics_address"])
def test_http_probes(server, part):
    address = server.status[part]
    assert [get(address, path)[0] for path in ("/healthz", "/readyz", "/nowhere")] == [200, 200, 404]


@pytest.fixture
def gateway(server, tmp_path) -> Iterator[Gateway]:
    """A second gateway of the shared server, which a test may stop."""
    with running_gateway(tmp_path, server.status["nats"], NST_DRAIN_SECONDS="5") as gateway:
        yield gateway


def health_changes(channel: grpc.Channel, service: str) -> Iterator[int]:
    request = health_pb2.HealthCheckRequest(service=service)
    for response in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=SECONDS):
        yield response.status


def test_a_gateway_that_is_stopped_says_so_and_sends_watchers_away(call, gateway):
    with grpc.insecure_channel(gateway.address) as channel:
        leaving = Calls(channel)
        health = [health_changes(channel, service) for service in ("", *SERVICES)]
        assert [next(changes) for changes in health] == [SERVING] * 3
        watched = leaving.create(tiny_spec(**LONG))
        watch = leaving.jobs.WatchJob(WatchJobRequest(job_id=watched), timeout=SECONDS)
        next(watch)
        with stylize(leaving) as stream:
            stream.start(tiny_spec(**LONG))
            streamed = until(iter(stream), is_running)[-1].job_id
            gateway.popen.terminate()
            assert [next(changes) for changes in health] == [NOT_SERVING] * 3
            for responses in (watch, stream.responses):
                with pytest.raises(grpc.RpcError) as caught:
                    list(responses)
                refused = read_status(caught.value)
                assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "GATEWAY_DRAINING")
                assert refused.retry_seconds is not None
    assert gateway.stop() == 0
    # Nobody asked for an end of the jobs, not even of the stream's: another gateway goes on with them.
    for job_id in (watched, streamed):
        there = call.get(job_id).last_sequence
        until(call.watch(job_id, there), lambda event: event.progress.iteration > 0)
        cancel(call, job_id)


def uploads_begun(gateway: Gateway) -> float:
    return metric(gateway.metrics_address, "grpc_server_started_total", grpc_method="UploadImage")


def test_a_call_in_hand_is_finished_before_the_end(gateway):
    draining = threading.Event()

    def messages() -> Iterator[UploadImageRequest]:
        header, *chunks = upload_messages(CONTENT, chunk=1000)
        yield header
        yield chunks[0]
        assert draining.wait(SECONDS)
        yield from chunks[1:]

    with grpc.insecure_channel(gateway.address) as channel:
        health = health_changes(channel, "")
        assert next(health) == SERVING
        running = Calls(channel).making.UploadImage.future(messages(), timeout=SECONDS)
        wait_until(lambda: uploads_begun(gateway), "the upload begun")
        gateway.popen.terminate()
        assert next(health) == NOT_SERVING
        draining.set()
        assert running.result().reference.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_readyz_fails_while_a_stopped_gateway_drains(gateway):
    address = gateway.metrics_address
    with grpc.insecure_channel(gateway.address) as channel:
        health = health_changes(channel, "")
        assert next(health) == SERVING
        assert get(address, "/readyz")[0] == 200
        gateway.popen.terminate()
        assert next(health) == NOT_SERVING
        # The open health watch holds the drain up, so the port still answers.
        assert [get(address, path)[0] for path in ("/readyz", "/healthz")] == [503, 200]


def test_tls(server, tmp_path):
    certificate, key = make_certificate(tmp_path)
    arguments = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    with running_gateway(tmp_path, server.status["nats"], *arguments) as gateway:
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        target = gateway.address.replace("127.0.0.1", "localhost")
        with grpc.secure_channel(target, trusted) as channel:
            assert run_tiny(Calls(channel)).job_state == job_pb2.JOB_STATE_SUCCEEDED
        for stranger in (grpc.insecure_channel(target), grpc.secure_channel(target, grpc.ssl_channel_credentials())):
            with stranger as channel, pytest.raises(grpc.RpcError) as caught:
                Calls(channel).making.GetServerInfo(GetServerInfoRequest(), timeout=SECONDS)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
