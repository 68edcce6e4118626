"""Every error that a client can meet, as a gRPC status with google.rpc details."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, message
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from nst_engine.options import OptionError
from nst_server.jobs.backbone import BackboneUnavailable, StoreFull
from nst_server.jobs.commands import RequestReused
from nst_server.jobs.pauses import TooManyPaused
from nst_server.jobs.queue import QueueFull, TenantQueueFull
from nst_server.jobs.records import JobNotFound
from nst_server.jobs.removal import JobNotEnded
from nst_server.jobs.updates import JobEnded, NotWaiting, TooManyChanges
from nst_server.pictures import PictureError

DOMAIN = "nst.v1"
QUEUE_RETRY_SECONDS = 5
OUTAGE_RETRY_SECONDS = 1
# The text is sent three times over, and gRPC drops a status of more than 8 KB.
MAX_TEXT = 1000
MAX_PATH = 200


@dataclass
class Refusal(Exception):
    """A call is refused. `fields` maps field paths to what is wrong with them."""

    code: int
    reason: str
    message: str
    fields: Mapping[str, str] = field(default_factory=dict)
    retry_seconds: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def status(self) -> status_pb2.Status:
        """The google.rpc.Status, with BadRequest, ErrorInfo and RetryInfo as they apply."""
        status = status_pb2.Status(code=self.code, message=_short(self.message, MAX_TEXT))
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        status.details.append(_packed(info))
        if self.fields:
            bad = error_details_pb2.BadRequest()
            for path, description in self.fields.items():
                bad.field_violations.add(field=_short(path, MAX_PATH), description=_short(description, MAX_TEXT))
            status.details.append(_packed(bad))
        if self.retry_seconds is not None:
            delay = Duration()
            delay.FromNanoseconds(int(self.retry_seconds * 1e9))
            status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        return status


def _short(text: str, length: int) -> str:
    """ASCII, because gRPC sends every other byte as three, and at most so many characters."""
    return text.encode("ascii", "backslashreplace")[:length].decode()


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def invalid(path: str, description: str, reason: str = "INVALID_FIELD") -> Refusal:
    """A field has a value that is not allowed."""
    return Refusal(code_pb2.INVALID_ARGUMENT, reason, f"{_short(path, MAX_PATH)}: {description}", {path: description})


@dataclass(frozen=True)
class PicturePath:
    """Where a request holds a picture: the field of its bytes, and the message that says what they are."""

    data: str
    form: str

    def refusal(self, error: PictureError) -> Refusal:
        """The error with the path of the field that it is about."""
        path = self.data if error.field == "data" else f"{self.form}.{error.field}"
        return invalid(path, error.message, error.reason)


def exhausted(limit: str, value: int, description: str, retry_seconds: float | None) -> Refusal:
    """A limit of the server is reached; with `retry_seconds` when waiting helps."""
    return Refusal(
        code_pb2.RESOURCE_EXHAUSTED,
        "LIMIT_REACHED",
        f"{description}; the limit is {limit} = {value}",
        retry_seconds=retry_seconds,
        metadata={"limit": limit},
    )


def _job_not_found(error: Exception) -> Refusal:
    return Refusal(code_pb2.NOT_FOUND, "JOB_NOT_FOUND", str(error), {"job_id": str(error)})


def _reused(error: Exception) -> Refusal:
    text = "this request_id was used for another request: use a new one"
    return Refusal(code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED", text, {"request_id": text})


def _no_room(reason: str, text: str, limit: str) -> Refusal:
    metadata = {"limit": limit}
    return Refusal(code_pb2.RESOURCE_EXHAUSTED, reason, text, retry_seconds=QUEUE_RETRY_SECONDS, metadata=metadata)


def _precondition(reason: str, text: str) -> Callable[[Exception], Refusal]:
    return lambda error: Refusal(code_pb2.FAILED_PRECONDITION, reason, text)


_REFUSALS: tuple[tuple[type[Exception], Callable[[Exception], Refusal]], ...] = (
    (JobNotFound, _job_not_found),
    (RequestReused, _reused),
    (JobEnded, _precondition("JOB_ENDED", "the job has ended: nothing about it can change")),
    (JobNotEnded, _precondition("JOB_NOT_ENDED", "the job has not ended: cancel it first")),
    (NotWaiting, _precondition("JOB_NOT_WAITING", "the job runs already: its priority cannot change")),
    (
        QueueFull,
        lambda error: _no_room(
            "QUEUE_FULL",
            "as many jobs wait or run as the limit max_queued_jobs allows: try again later",
            "max_queued_jobs",
        ),
    ),
    (TenantQueueFull, lambda error: _no_room("TENANT_QUEUE_FULL", f"{error}: try again later", "max_tenant_jobs")),
    (
        TooManyPaused,
        lambda error: _no_room(
            "TENANT_PAUSED_FULL", f"{error}: resume or cancel one, and try again", "max_tenant_paused_jobs"
        ),
    ),
    (
        TooManyChanges,
        lambda error: Refusal(
            code_pb2.RESOURCE_EXHAUSTED,
            "JOB_CHANGED_TOO_OFTEN",
            f"{error}: it may only be resumed, moved in the queue or cancelled now",
            metadata={"limit": "max_job_changes"},
        ),
    ),
    (
        StoreFull,
        lambda error: _no_room(
            "STORE_FULL",
            f"the job store is full, {error}: try again later, or delete jobs",
            error.limit,  # type: ignore[attr-defined]
        ),
    ),
    (
        BackboneUnavailable,
        lambda error: Refusal(
            code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE", str(error), retry_seconds=OUTAGE_RETRY_SECONDS
        ),
    ),
    (OptionError, lambda error: invalid(f"spec.options.{error.field}", error.message, "BAD_OPTION")),  # type: ignore[attr-defined]
)


def as_refusal(error: Exception) -> Refusal | None:
    """The refusal that an exception stands for; None for a fault of the server's own."""
    if isinstance(error, Refusal):
        return error
    for kind, refusal in _REFUSALS:
        if isinstance(error, kind):
            return refusal(error)
    return None


async def abort(context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal) -> None:
    """Ends the call with the refusal; raises, as `context.abort` does."""
    status = refusal.status()
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(_CODES[refusal.code], status.message, details)


_CODES = {code.value[0]: code for code in grpc.StatusCode}
