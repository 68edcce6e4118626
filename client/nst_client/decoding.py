"""From the messages of nst.v1 to this library's own types."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, get_args

from google.protobuf.timestamp_pb2 import Timestamp

from nst.v1 import image_pb2, job_pb2
from nst_client.errors import status_code
from nst_client.events import (
    AnyEvent,
    ErrorEvent,
    Failure,
    JobState,
    JobStatus,
    Partial,
    PreviewEvent,
    Progress,
    ProgressEvent,
    ResultEvent,
    StateEvent,
)
from nst_client.formats import decode_format
from nst_client.images import ImageRef, Picture
from nst_client.options import options_dict, short_names
from nst_client.spec import Priority, Style, priority_number

_PRIORITIES: Mapping[int, Priority] = {priority_number(priority): priority for priority in get_args(Priority)}
_STOP_REASONS = short_names(job_pb2.StopReason.DESCRIPTOR)


def decode_event(message: job_pb2.JobEvent) -> AnyEvent | None:
    """The event in a message; None for a kind that this version of the library does not know."""
    kind = message.WhichOneof("event")
    if kind is None:
        return None
    common = {
        "job_id": message.job_id,
        "sequence": message.sequence,
        "time": _time(message.time),
        "attempt": message.attempt,
        "job_state": JobState(message.job_state),
    }
    event, fields = _EVENTS[kind]
    return event(**common, **fields(getattr(message, kind)))


def decode_status(job: job_pb2.Job) -> JobStatus:
    """The job in a message."""
    return JobStatus(
        job_id=job.job_id,
        request_id=job.request_id,
        state=JobState(job.state),
        content=_reference(job.spec.content.reference),
        styles=tuple(_style(style) for style in job.spec.styles),
        options=options_dict(job.spec.options),
        priority=_PRIORITIES.get(job.spec.priority, "interactive"),
        create_time=_time(job.create_time),
        update_time=_time(job.update_time),
        attempt=job.attempt,
        last_sequence=job.last_sequence,
        progress=Progress(**_progress(job.progress)) if job.HasField("progress") else None,
        result=_reference(job.result.reference, job.result) if job.HasField("result") else None,
        error=Failure(**_failure(job.error)) if job.HasField("error") else None,
        tenant=job.tenant,
        initial=_optional(job.spec, "initial"),
        subject=_optional(job.spec, "subject"),
        hole=_optional(job.spec, "hole"),
        control_version=job.control_version,
        changes=_changes(job.changes),
        time_limit=job.spec.time_limit.ToNanoseconds() / 1e9 if job.spec.HasField("time_limit") else None,
        result_format=decode_format(job.spec.result_format),
        preview_format=decode_format(job.spec.preview.format),
        preview_interval=job.spec.preview.interval,
        preview_max_size=job.spec.preview.max_size if job.spec.preview.HasField("max_size") else None,
    )


def _changes(update: job_pb2.JobUpdate) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for field, value in update.ListFields():
        changes[field.name] = dict(value) if field.message_type else list(value) if field.is_repeated else value
    return changes


def _state_change(change: job_pb2.StateChange) -> Mapping[str, Any]:
    return {"state": JobState(change.state), "reason": change.reason, "from_iteration": change.from_iteration}


def _progress(progress: job_pb2.Progress) -> Mapping[str, Any]:
    fields = {field.name: getattr(progress, field.name) for field in progress.DESCRIPTOR.fields}
    return {**fields, "losses": dict(progress.losses)}


def _picture(event: job_pb2.Preview | job_pb2.Result) -> Mapping[str, Any]:
    return {
        "width": event.width,
        "height": event.height,
        "reference": _reference(event.reference, event),
        "picture": Picture.from_proto(event.image),
    }


def _preview(preview: job_pb2.Preview) -> Mapping[str, Any]:
    return {"iteration": preview.iteration, **_picture(preview)}


def _result(result: job_pb2.Result) -> Mapping[str, Any]:
    progress = Progress(**_progress(result.progress))
    return {
        "iterations": result.iterations,
        "progress": progress,
        "run_seconds": result.run_seconds,
        "stop_reason": _STOP_REASONS.get(result.stop_reason),
        **_picture(result),
    }


def _failure(error: job_pb2.JobError) -> Mapping[str, Any]:
    return {
        "code": status_code(error.code),
        "reason": error.reason,
        "message": error.message,
        "partial": _partial(error.partial) if error.HasField("partial") else None,
    }


def _partial(result: job_pb2.Result) -> Partial:
    return Partial(
        iterations=result.iterations,
        width=result.width,
        height=result.height,
        reference=_reference(result.reference, result),
        progress=Progress(**_progress(result.progress)) if result.HasField("progress") else None,
        run_seconds=result.run_seconds,
    )


_EVENTS: Mapping[str, tuple[Callable[..., AnyEvent], Callable[[Any], Mapping[str, Any]]]] = {
    "state": (StateEvent, _state_change),
    "progress": (ProgressEvent, _progress),
    "preview": (PreviewEvent, _preview),
    "result": (ResultEvent, _result),
    "error": (ErrorEvent, _failure),
}


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _style(message: job_pb2.Style) -> Style:
    return Style(
        _reference(message.image.reference),
        weight=message.weight if message.HasField("weight") else 1.0,
        region=_optional(message, "region"),
        source_region=_optional(message, "source_region"),
        scale=message.scale if message.HasField("scale") else None,
    )


def _optional(message: job_pb2.JobSpec | job_pb2.Style, field: str) -> ImageRef | None:
    """The picture of a field that may be unset."""
    return _reference(getattr(message, field).reference) if message.HasField(field) else None  # type: ignore[arg-type]


def _reference(reference: image_pb2.ImageReference, size: job_pb2.Preview | job_pb2.Result | None = None) -> ImageRef:
    return ImageRef(reference.sha256, size.width, size.height) if size else ImageRef(reference.sha256)
