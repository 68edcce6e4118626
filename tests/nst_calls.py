"""Bare calls through the generated stubs, for tests that must not depend on the SDK."""

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from nst.v1 import (
    image_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    options_pb2,
    style_transfer_service_pb2,
    style_transfer_service_pb2_grpc,
)
from nst_engine.options import StylizeOptions
from nst_server.options import options_to_proto

# For jobs whose looks are of no account: the deeper layers, which most models have by other names, would take most of
# the time. As the SDK has it, and as messages.
SHALLOW = {"content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}}
SHALLOW_MESSAGES = {name: {"weights": weights} for name, weights in SHALLOW.items()}


class Calls:
    """Both services over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.making = style_transfer_service_pb2_grpc.StyleTransferServiceStub(channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)

    def create(self, spec: job_pb2.JobSpec, request_id: str = "") -> str:
        """A new job's id."""
        request = style_transfer_service_pb2.CreateJobRequest(request_id=request_id or str(uuid4()), spec=spec)
        return str(self.making.CreateJob(request, timeout=30).job.job_id)

    def watch(self, job_id: str, after: int = 0) -> Iterator[job_pb2.JobEvent]:
        """The job's events to its last."""
        request = job_service_pb2.WatchJobRequest(job_id=job_id, after_sequence=after)
        for response in self.jobs.WatchJob(request, timeout=150):
            if response.HasField("event"):
                yield response.event

    def get(self, job_id: str) -> job_pb2.Job:
        """The job as it stands."""
        return self.jobs.GetJob(job_service_pb2.GetJobRequest(job_id=job_id), timeout=30).job


class _AsTenant(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the tenant's name to every call."""

    def __init__(self, tenant: str) -> None:
        self._metadata = [("x-nst-tenant", tenant)]

    def _intercept(self, continuation: Callable[..., Any], details: grpc.ClientCallDetails, request: Any) -> Any:
        return continuation(details._replace(metadata=[*(details.metadata or ()), *self._metadata]), request)

    intercept_unary_unary = intercept_unary_stream = _intercept
    intercept_stream_unary = intercept_stream_stream = _intercept


@contextmanager
def calls(address: str, tenant: str = "") -> Iterator[Calls]:
    """Calls to a gateway, of a tenant or of nobody in particular."""
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield Calls(grpc.intercept_channel(channel, _AsTenant(tenant)) if tenant else channel)


def job_spec(content: Path, style: Path, *, preview_interval: int = 0, **options: int | float) -> job_pb2.JobSpec:
    """A spec with both pictures inline."""
    return job_pb2.JobSpec(
        content=inline(content),
        styles=[job_pb2.Style(image=inline(style))],
        options=options_pb2.StylizeOptions(**options),  # type: ignore[arg-type]
        preview=job_pb2.PreviewOptions(interval=preview_interval),
    )


def stored_spec() -> job_pb2.JobSpec:
    """A complete spec, as it is stored, whose pictures nobody will look for."""
    reference = image_pb2.Image(reference=image_pb2.ImageReference(sha256="0" * 64))
    return job_pb2.JobSpec(
        content=reference,
        styles=[job_pb2.Style(image=reference, weight=1)],
        options=options_to_proto(StylizeOptions()),
        priority=job_pb2.PRIORITY_INTERACTIVE,
    )


def inline(path: Path) -> image_pb2.Image:
    """A picture file as a message."""
    return image_pb2.Image(encoded=image_pb2.EncodedImage(data=path.read_bytes()))


def samples(address: str) -> dict[str, list[Sample]]:
    """What a status port's /metrics holds, by the samples' names."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
        text = response.read().decode()
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def metric(address: str, name: str, **labels: str) -> float:
    """The value of one sample at a status port; 0 when it is not there yet."""
    values = (sample.value for sample in samples(address).get(name, []) if labels.items() <= sample.labels.items())
    return float(next(values, 0.0))


def assert_gapless(events: list[job_pb2.JobEvent]) -> None:
    """The numbers are 1, 2, 3 ... and only the last event is final."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    final = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
    assert [event.job_state in final for event in events] == [False] * (len(events) - 1) + [True]


def until(events: Iterator[job_pb2.JobEvent], done: Callable[[job_pb2.JobEvent], bool]) -> list[job_pb2.JobEvent]:
    """Events up to and with the first that fits."""
    seen = []
    for event in events:
        seen.append(event)
        if done(event):
            return seen
    raise AssertionError("the history ended first")
