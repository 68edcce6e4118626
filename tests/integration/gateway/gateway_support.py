"""What the gateway's tests share: tiny jobs, gateways of their own, and statuses read with their details."""

import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray
from PIL import Image

from nst.v1 import image_pb2, job_pb2, job_service_pb2, options_pb2
from nst.v1 import style_transfer_service_pb2 as making_pb2
from nst_calls import SHALLOW_MESSAGES, Calls
from nst_processes import Process

SECONDS = 30
TINY = {"size": 32, "iterations": 3, "scales": 1}
LONG = {"size": 32, "iterations": 5000, "scales": 1}
# How a call may end, whatever was sent.
ANSWERS = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
FREE_PORTS = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")


class Gateway(Process):
    """`nst-server gateway` on a free port."""

    def __init__(self, folder: Path, nats_url: str, *arguments: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "gateway.log", "gateway", "--nats", nats_url, *FREE_PORTS, *arguments, **environment)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.wait_for_log('gateway ready')['port']}"

    @property
    def metrics_address(self) -> str:
        return f"127.0.0.1:{self.wait_for_log('gateway ready')['metrics_port']}"


@contextmanager
def running_gateway(folder: Path, nats_url: str, *arguments: str, **environment: str) -> Iterator[Gateway]:
    """A gateway for as long as the block runs."""
    gateway = Gateway(folder, nats_url, *arguments, **environment)
    try:
        yield gateway
    finally:
        gateway.stop()


def pixels(width: int = 48, height: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_of(values: NDArray[Any] | Image.Image, form: str = "PNG", **parameters: Any) -> bytes:
    """A picture file."""
    picture = values if isinstance(values, Image.Image) else Image.fromarray(values)
    file = io.BytesIO()
    picture.save(file, form, **parameters)
    return file.getvalue()


def encoded(data: bytes) -> image_pb2.Image:
    """A picture file as a message."""
    return image_pb2.Image(encoded=image_pb2.EncodedImage(data=data))


CONTENT = file_of(pixels(seed=1))
STYLE = file_of(pixels(40, 40, seed=2))


def tiny_spec(styles: int = 1, **options: Any) -> job_pb2.JobSpec:
    """A job of some tens of milliseconds, its pictures inline; `options` change it."""
    layers = {} if "model" in options else SHALLOW_MESSAGES
    return job_pb2.JobSpec(
        content=encoded(CONTENT),
        styles=[job_pb2.Style(image=encoded(STYLE))] * styles,
        options=options_pb2.StylizeOptions(**{**TINY, **layers, **options}),
        preview=job_pb2.PreviewOptions(interval=0),
    )


def update(call: Calls, job_id: str, **changes: Any) -> job_pb2.Job:
    """UpdateJob."""
    request = job_service_pb2.UpdateJobRequest(job_id=job_id, update=job_pb2.JobUpdate(**changes))
    return call.jobs.UpdateJob(request, timeout=SECONDS).job


def cancel(call: Calls, job_id: str) -> job_pb2.Job:
    """CancelJob."""
    return call.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=job_id), timeout=SECONDS).job


def delete(call: Calls, job_id: str) -> None:
    """DeleteJob."""
    call.jobs.DeleteJob(job_service_pb2.DeleteJobRequest(job_id=job_id), timeout=SECONDS)


def result_bytes(call: Calls, job_id: str, form: image_pb2.ImageFormat | None = None) -> bytes:
    """GetResult, put together."""
    request = making_pb2.GetResultRequest(job_id=job_id, format=form)
    return b"".join(response.chunk.data for response in call.making.GetResult(request, timeout=SECONDS))


def upload_messages(data: bytes, chunk: int = 512 * 1024, **header: Any) -> Iterator[making_pb2.UploadImageRequest]:
    """The messages of a whole upload; `header` sets or replaces fields of its header."""
    fields = {"size": len(data), **header}
    yield making_pb2.UploadImageRequest(header=image_pb2.ImageHeader(**fields))
    for offset in range(0, len(data), chunk):
        part = image_pb2.ImageChunk(offset=offset, data=data[offset : offset + chunk])
        yield making_pb2.UploadImageRequest(chunk=part)


def upload(call: Calls, data: bytes, chunk: int = 512 * 1024, **header: Any) -> making_pb2.UploadImageResponse:
    """UploadImage."""
    return call.making.UploadImage(upload_messages(data, chunk, **header), timeout=SECONDS)


def calls_by_job(call: Calls) -> dict[type, Callable[..., Any]]:
    """Each call that takes a job's id, by the type of its request."""
    return {
        job_service_pb2.GetJobRequest: call.jobs.GetJob,
        job_service_pb2.WatchJobRequest: call.jobs.WatchJob,
        job_service_pb2.UpdateJobRequest: call.jobs.UpdateJob,
        job_service_pb2.CancelJobRequest: call.jobs.CancelJob,
        job_service_pb2.DeleteJobRequest: call.jobs.DeleteJob,
        making_pb2.GetResultRequest: call.making.GetResult,
    }


def run_tiny(call: Calls, spec: job_pb2.JobSpec | None = None) -> job_pb2.JobEvent:
    """A job's last event."""
    *_, last = call.watch(call.create(spec or tiny_spec()))
    return last


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    """How a call ends."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Waits for what no call announces."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)


def live_jobs(call: Calls) -> list[job_pb2.Job]:
    """The jobs that wait or run."""
    states = [job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING]
    return list(call.jobs.ListJobs(job_service_pb2.ListJobsRequest(states=states), timeout=SECONDS).jobs)


def get(address: str, path: str) -> tuple[int, str]:
    """What a status port answers, and its text."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=SECONDS) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@dataclass(frozen=True)
class Refused:
    """A status with its details."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]
    retry_seconds: float | None


def refusal_of(call: Callable[[], Any]) -> Refused:
    """How a call is refused; a stream is read to its end."""

    def to_its_end() -> None:
        answer = call()
        if isinstance(answer, Iterable):
            list(answer)

    with pytest.raises(grpc.RpcError) as caught:
        to_its_end()
    return read_status(caught.value)


def read_status(error: Any) -> Refused:
    """The status of a failed call, which must carry an ErrorInfo of ours."""
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} {error.details()} without details"
    found: dict[str, Any] = {}
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
        detail = kind()
        if any(packed.Unpack(detail) for packed in status.details):
            found[kind.__name__] = detail
    info = found["ErrorInfo"]
    assert info.domain == "nst.v1"
    violations = found["BadRequest"].field_violations if "BadRequest" in found else ()
    delay = found["RetryInfo"].retry_delay.ToTimedelta().total_seconds() if "RetryInfo" in found else None
    return Refused(
        code=error.code(),
        message=error.details(),
        reason=info.reason,
        metadata=dict(info.metadata),
        fields={violation.field: violation.description for violation in violations},
        retry_seconds=delay,
    )


def assert_invalid(call: Callable[[], Any], request: Any, field: str, *words: str) -> None:
    """The call is refused because of one field of its request, and is told so in these words."""
    refused = refusal_of(call)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, refused
    assert list(refused.fields) == [field], refused
    assert_has_field(request.DESCRIPTOR, field)
    for word in words:
        assert word in refused.message, refused
        assert word in refused.fields[field], refused


def assert_has_field(message: Descriptor, path: str) -> None:
    """The path leads through fields that there are; a key of a map, or the name of a oneof, may end it."""
    for step in path.split("."):
        if message is options_pb2.LayerWeights.DESCRIPTOR or message.GetOptions().map_entry:
            return
        if step in message.oneofs_by_name:
            return
        name = re.sub(r"\[\d+\]$", "", step)
        assert name in message.fields_by_name, f"{path}: {message.full_name} has no {name}"
        message = message.fields_by_name[name].message_type
