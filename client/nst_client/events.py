"""A job's history as typed events, and a job as it stands."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, cast, get_args

import grpc

from nst_client.formats import EncodedFormat, TensorFormat, choose
from nst_client.images import Decoded, ImageRef, Picture
from nst_client.spec import Priority, Style


class JobState(enum.IntEnum):
    """Where a job is in its life; the numbers are those of nst.v1.JobState."""

    UNSPECIFIED = 0
    QUEUED = 1
    RUNNING = 2
    PAUSED = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6

    @classmethod
    def _missing_(cls, value: object) -> "JobState":
        # A state that a later server may add is not worth an exception.
        return cls.UNSPECIFIED

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self >= JobState.SUCCEEDED


StateName = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
STATES: Mapping[StateName, JobState] = {name: JobState[name.upper()] for name in get_args(StateName)}


def read_states(states: Any) -> list[JobState]:
    """The states that are given, by themselves or by their names; one may stand alone.

    Raises:
        TypeError, ValueError: one is no such state; the text lists those.
    """
    alone = isinstance(states, JobState | str) or not isinstance(states, Iterable)
    return [_read_state(state) for state in ([states] if alone else states)]


def _read_state(state: Any) -> JobState:
    if not isinstance(state, JobState | str):
        raise TypeError(f"states: must be JobState, or one of {', '.join(STATES)}, not {state!r}")
    name = state.name.lower() if isinstance(state, JobState) else state
    return choose("states", cast(StateName, name), STATES)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the optimisation is.

    Attributes:
        iteration, iterations: done, and in all; the latter falls when a scale ends early.
        scale, scales: the one worked on, from 1, and their number.
        width, height: of the working picture, in pixels.
        total_loss: the weighted sum that is minimised.
        losses: its weighted parts by name.
        iterations_per_second: the current pace.
        seconds_left: an estimate of the time to the result.
        undone: how many of the iterations so far diverged, and were undone.
        control_version: the latest change that this iteration obeyed, by the number in `JobStatus`, with all
            those before it; 0 for none.
    """

    iteration: int
    iterations: int
    scale: int
    scales: int
    width: int
    height: int
    total_loss: float
    losses: dict[str, float]
    iterations_per_second: float
    seconds_left: float
    undone: int
    control_version: int


@dataclass(frozen=True, kw_only=True)
class Partial:
    """The best picture so far of a job that was out of time.

    Attributes:
        iterations: done when it was taken.
        width, height: in pixels.
        reference: the stored picture, a PNG; `stylize` takes it as content or style.
        progress: the losses then; None if the server does not know them.
        run_seconds: computing time behind it, over all attempts; what an attempt lost is not counted.
    """

    iterations: int
    width: int
    height: int
    reference: ImageRef
    progress: Progress | None
    run_seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job failed.

    Attributes:
        code: what the status would be if the job were one call.
        reason: a constant in capitals, for programs; DEADLINE_EXCEEDED when the time limit passed.
        message: for people.
        partial: the best picture so far of a job that was out of time, if there is one.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    partial: Partial | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One entry of a job's history.

    Attributes:
        job_id: the job.
        sequence: 1, 2, 3 ... within the job.
        time: when it happened, UTC.
        attempt: which attempt it belongs to; 0 before the first.
        job_state: the job's state after this event.
    """

    job_id: str
    sequence: int
    time: datetime
    attempt: int
    job_state: JobState


@dataclass(frozen=True, kw_only=True)
class StateEvent(Event):
    """The job changed to `state`; an attempt starts from `from_iteration`."""

    state: JobState
    reason: str
    from_iteration: int


@dataclass(frozen=True, kw_only=True)
class ProgressEvent(Progress, Event):
    """The optimisation moved on."""


@dataclass(frozen=True, kw_only=True)
class _PictureEvent(Event):
    width: int
    height: int
    reference: ImageRef
    picture: Picture | None

    @cached_property
    def image(self) -> Decoded | None:
        """The picture, decoded: a PIL picture, or an array if a tensor was asked for; None if it was not sent."""
        return self.picture.decode() if self.picture else None


@dataclass(frozen=True, kw_only=True)
class PreviewEvent(_PictureEvent):
    """An intermediate picture.

    Attributes:
        iteration: the one it shows.
        width, height: in pixels.
        reference: the digest of the preview as it is stored; no call takes it.
        picture: the bytes that were sent; None when the server left them out. While the preview is stored they come
            whenever the history is read with its pictures.
    """

    iteration: int


@dataclass(frozen=True, kw_only=True)
class ResultEvent(_PictureEvent):
    """The final picture; the last event of a job that succeeded.

    Attributes:
        iterations: done.
        width, height: in pixels.
        reference: the stored picture, a PNG; `stylize` takes it as content or style.
        picture: the bytes that were sent; None when it is too big for an event (`Job.result` fetches it).
        progress: the losses at the end.
        run_seconds: computing time behind it, over all attempts; what an attempt lost is not counted.
        stop_reason: "iterations", "improvement" (it stood still), "threshold" (of the content loss) or
            "divergence" (no step led on from the best picture, which this is); None if the server does not say.
    """

    iterations: int
    progress: Progress
    run_seconds: float
    stop_reason: str | None


@dataclass(frozen=True, kw_only=True)
class ErrorEvent(Failure, Event):
    """The job failed; its last event."""


AnyEvent = StateEvent | ProgressEvent | PreviewEvent | ResultEvent | ErrorEvent


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job as it stands.

    Attributes:
        job_id: the server's name for the job.
        request_id: the client's name for the request that made it.
        state: where it is in its life.
        content, styles, options, priority: the work; every picture and mask as an `ImageRef`, every option filled in.
            `stylize` takes the options as **options.
        initial: the picture it started from; None if it was not given one.
        subject: the mask of what is protected; None if it was not given one.
        hole: the mask of what alone may change; None if it was not given one.
        control_version: the number of the latest change that was asked of it, 0 before the first; what
            `steer`, `pause`, `resume` and `cancel` return has that of their own.
        changes: what it was steered to since it was made, as `steer` takes it: this counts instead of what
            `options` and `styles` say.
        time_limit: how long after its creation it may take, in seconds; None for ever.
        result_format, preview_format: the forms of its pictures; None for those of a later version.
        preview_interval: iterations between previews; 0 for none.
        preview_max_size: long side of previews in pixels; None for the working size.
        create_time, update_time: when it was stored, and when its latest event happened, UTC.
        attempt: how often a model server has started on it.
        last_sequence: of its latest event.
        progress: the latest; None before the first.
        result: the final picture, when it has succeeded.
        error: why it failed, when it has.
        tenant: who made it.
    """

    job_id: str
    request_id: str
    state: JobState
    content: ImageRef
    styles: tuple[Style, ...]
    options: dict[str, Any]
    priority: Priority
    create_time: datetime
    update_time: datetime
    attempt: int
    last_sequence: int
    progress: Progress | None
    result: ImageRef | None
    error: Failure | None
    tenant: str
    initial: ImageRef | None
    subject: ImageRef | None
    hole: ImageRef | None
    control_version: int
    changes: dict[str, Any]
    time_limit: float | None
    result_format: EncodedFormat | TensorFormat | None
    preview_format: EncodedFormat | TensorFormat | None
    preview_interval: int
    preview_max_size: int | None


def ends_history(event: AnyEvent) -> bool:
    """Whether no event can follow this one."""
    return isinstance(event, ResultEvent | ErrorEvent) or (
        isinstance(event, StateEvent) and event.state is JobState.CANCELLED
    )
