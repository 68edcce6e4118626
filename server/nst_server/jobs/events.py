"""The history of a job: numbered events on one subject, each appended after the last or not at all."""

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from nats.js.api import Header, RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2
from nst_server import metrics
from nst_server.jobs.backbone import WRONG_LAST_SEQUENCE, Backbone, persistently, stored_subjects
from nst_server.jobs.batches import next_messages, sequence_of
from nst_server.jobs.topology import EVENTS

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 600.0  # a history without a record is that of no job any more; far longer than a job takes to make

FINAL_STATES = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})


@dataclass(frozen=True)
class Stored:
    """An event and where the stream keeps it."""

    event: job_pb2.JobEvent
    stream_sequence: int

    @property
    def final(self) -> bool:
        """True when no event can follow."""
        return self.event.job_state in FINAL_STATES

    def age(self, now: float) -> float:
        """Seconds from the event to `now`, in Unix seconds."""
        return now - self.event.time.ToNanoseconds() / 1e9


def state_event(record: JobRecord, state: "job_pb2.JobState.ValueType", reason: str) -> job_pb2.JobEvent:
    """A change of state, for the history of the record's job."""
    return job_pb2.JobEvent(
        job_id=record.job_id,
        attempt=record.lease.attempt,
        job_state=state,
        state=job_pb2.StateChange(state=state, reason=reason),
    )


def progress_by(event: job_pb2.JobEvent) -> job_pb2.Progress | None:
    """The job's latest progress, as of an event; None before the first."""
    if event.HasField("progress"):
        return event.progress
    return event.latest_progress if event.HasField("latest_progress") else None


class HistoryMoved(Exception):
    """Somebody else appended first; `last` is what stands there now."""

    def __init__(self, last: Stored | None) -> None:
        super().__init__("the history has moved on")
        self.last = last


def subject(job_id: str) -> str:
    """Where a job's events are stored."""
    return f"nst.event.{job_id}"


def stored_subject(job_id: str) -> str:
    """Where a job's events are heard once they are stored."""
    return f"nst.stored.{job_id}"


class EventLog:
    """The histories of all jobs."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._backbone = backbone
        self._jetstream = backbone.jetstream
        self._patience = patience

    async def append(self, event: job_pb2.JobEvent, last: Stored | None) -> Stored:
        """Appends the event after `last`, numbering it and stamping the time.

        The stream itself compares the position, so of two writers one succeeds. A write whose
        answer was lost is recognised by its message id and not repeated.

        Raises:
            HistoryMoved: the history's end is not `last`.
        """
        event.sequence = last.event.sequence + 1 if last else 1
        event.time.GetCurrentTime()
        message_id = uuid4().hex
        headers = {
            Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(last.stream_sequence if last else 0),
            Header.MSG_ID.value: message_id,
        }
        data = event.SerializeToString()
        try:
            ack = await persistently(
                lambda: self._jetstream.publish(subject(event.job_id), data, headers={**headers}),
                seconds=self._patience,
                stream=EVENTS,
            )
        except APIError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            return await self._own_or_moved(event, message_id)
        self._count(event)
        return Stored(event, ack.seq)

    def _count(self, event: job_pb2.JobEvent) -> None:
        if not event.HasField("progress") and not event.HasField("preview"):
            metrics.JOBS.labels(job_pb2.JobState.Name(event.job_state).removeprefix("JOB_STATE_").lower()).inc()

    async def _own_or_moved(self, event: job_pb2.JobEvent, message_id: str) -> Stored:
        message = await self._last_message(event.job_id)
        if message is not None and (message.headers or {}).get(Header.MSG_ID.value) == message_id:
            self._count(event)
            return Stored(event, message.seq or 0)
        raise HistoryMoved(_stored(message))

    async def last(self, job_id: str) -> Stored | None:
        """The latest event, or None when there is none."""
        return _stored(await self._last_message(job_id))

    async def read(self, job_id: str, after_stream_sequence: int = 0) -> AsyncGenerator[Stored]:
        """The events stored so far, from a place in the stream on, oldest first.

        The stream's leader says what comes next and where the end is; what follows that without a
        gap is taken from a batch, which any replica may send.
        """
        position = after_stream_sequence
        while (first := await self._next(job_id, position + 1)) is not None:
            for stored in (first, *await self._following(first)):
                position = stored.stream_sequence
                yield stored

    async def _following(self, first: Stored) -> list[Stored]:
        """Some of the events that follow one, as far as their numbers have no gap."""
        read = partial(next_messages, self._backbone.nats, EVENTS, subject(first.event.job_id), first.stream_sequence)
        following: list[Stored] = []
        for message in await persistently(read, seconds=self._patience):
            stored = Stored(job_pb2.JobEvent.FromString(message.data), sequence_of(message))
            if stored.event.sequence != first.event.sequence + len(following) + 1:
                break
            following.append(stored)
        return following

    async def delete(self, job_id: str, last: Stored) -> None:
        """Removes a history up to its end, but nothing of one that has begun since."""
        purge = partial(self._jetstream.purge_stream, EVENTS, last.stream_sequence + 1, subject(job_id))
        await persistently(purge, seconds=self._patience)

    async def job_ids(self) -> set[str]:
        """The jobs that have a history."""
        subjects = await stored_subjects(self._backbone, EVENTS, subject("*"), seconds=self._patience)
        return {stored.removeprefix(subject("")) for stored in subjects}

    async def _last_message(self, job_id: str) -> RawStreamMsg | None:
        # Not a direct get: the stream's leader answers, so a replica that lags cannot.
        try:
            return await persistently(
                lambda: self._jetstream.get_last_msg(EVENTS, subject(job_id)), seconds=self._patience
            )
        except NotFoundError:
            return None

    async def _next(self, job_id: str, stream_sequence: int) -> Stored | None:
        try:
            message = await persistently(
                lambda: self._jetstream.get_msg(EVENTS, seq=stream_sequence, subject=subject(job_id), next=True),
                seconds=self._patience,
            )
        except NotFoundError:
            return None
        return _stored(message)


def _stored(message: RawStreamMsg | None) -> Stored | None:
    if message is None or message.data is None or message.seq is None:
        return None
    return Stored(job_pb2.JobEvent.FromString(message.data), message.seq)
