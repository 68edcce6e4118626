"""What a client changes of a job that has not ended: its weights, its iterations, its priority, and pauses."""

import contextlib
from functools import partial
from typing import Literal

from nst.internal.v1.job_record_pb2 import JobRecord, Ticket
from nst.v1 import job_pb2
from nst_server.jobs.backbone import Backbone
from nst_server.jobs.events import EventLog, state_event
from nst_server.jobs.pauses import PausedJobs
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.records import Records
from nst_server.jobs.tickets import Flow
from nst_server.jobs.topology import LANES
from nst_server.jobs.unheld import UnheldJobs

REPLACED: tuple[Literal["style_shares", "content_layers", "style_layers"], ...] = (
    "style_shares",
    "content_layers",
    "style_layers",
)


class JobEnded(Exception):
    """The job has ended; nothing about it can change."""


class NotWaiting(Exception):
    """The change is only possible while the job waits."""


class TooManyChanges(Exception):
    """The job has been changed as often as one may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the job has been changed max_job_changes = {limit} times")


class _LetGo(Exception):
    """No model server has the job."""


class JobUpdates:
    """Writes changes into the records, and moves the tickets of jobs that wait."""

    def __init__(self, backbone: Backbone, *, patience: float, max_changes: int) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds."""
        self._max_changes = max_changes
        self._records = Records(backbone, patience=patience)
        self._events = EventLog(backbone, patience=patience)
        self._tickets = TicketQueue(backbone, patience=patience)
        self._unheld = UnheldJobs(backbone, patience=patience)
        self._paused = PausedJobs(backbone, patience=patience)

    async def apply(self, job_id: str, update: job_pb2.JobUpdate) -> JobRecord:
        """Stores a change; see `JobCommands.update`.

        Returns:
            The record as changed.
        """
        record = await self._live_record(job_id)
        self._check_all(record, update)
        if update.paused and not record.control.paused:
            await self._paused.note(record)
        if update.priority and update.priority != record.spec.priority:
            record = await self._move(record, update.priority)
        record = await self._records.update(job_id, lambda record: self._apply_weights(record, update))
        if update.HasField("paused") and update.paused != record.control.paused:
            record = await (self._pause(record) if update.paused else self._resume(record))
        return record

    def _check_all(self, record: JobRecord, update: job_pb2.JobUpdate) -> None:
        """Refuses what could only be done in part."""
        trial = JobRecord(control=record.control)
        self._apply_weights(trial, update)
        if update.paused and not record.control.paused:
            self._check_changes(trial)

    def _check_changes(self, record: JobRecord) -> None:
        if record.control.version >= self._max_changes:
            raise TooManyChanges(self._max_changes)

    async def _live_record(self, job_id: str) -> JobRecord:
        record = await self._records.get(job_id)
        last = await self._events.last(job_id)
        if last is not None and last.final:
            raise JobEnded(job_id)
        return record

    def _apply_weights(self, record: JobRecord, update: job_pb2.JobUpdate) -> None:
        wanted = record.control.weights
        before = wanted.SerializeToString(deterministic=True)
        weights = job_pb2.JobUpdate()
        weights.CopyFrom(update)
        weights.ClearField("paused")
        weights.ClearField("priority")
        for name in REPLACED:
            if getattr(weights, name):
                wanted.ClearField(name)  # merging would add to what is there
        wanted.MergeFrom(weights)
        if wanted.SerializeToString(deterministic=True) != before:
            self._check_changes(record)
            record.control.version += 1

    async def _pause(self, record: JobRecord) -> JobRecord:
        def change(record: JobRecord) -> None:
            self._check_changes(record)
            record.control.paused = True
            record.control.version += 1

        record = await self._records.update(record.job_id, change)
        paused = partial(_state_if, job_pb2.JOB_STATE_PAUSED, "paused before it ran", paused=True)
        await self._unheld.write(record.job_id, paused)
        return record

    async def _resume(self, record: JobRecord) -> JobRecord:
        with contextlib.suppress(_LetGo):
            return await self._take_pause_back(record)
        flow = Flow.of_job(record.tenant, record.spec)
        ticket = await self._tickets.put(record.job_id, flow)

        def change(record: JobRecord) -> None:
            if record.control.paused and not record.lease.held:
                record.ticket.CopyFrom(ticket)
            _go_on(record)

        record = await self._records.update(record.job_id, change)
        await self._paused.forget(record)
        if record.ticket == ticket:
            queued = partial(_state_if, job_pb2.JOB_STATE_QUEUED, "resumed", paused=False)
            # Even if the history tells of no pause: who is still to write that then sees that it has moved.
            await self._unheld.write(record.job_id, queued, again=True)
            await self._tickets.wake(flow)
        else:
            await self._tickets.remove(ticket)
        return record

    async def _take_pause_back(self, record: JobRecord) -> JobRecord:
        """Resumes a job whose model server has not noticed the pause yet, and keeps its ticket.

        Raises:
            _LetGo: it has, or there is none.
        """

        def change(record: JobRecord) -> None:
            if not record.lease.held:
                raise _LetGo
            _go_on(record)

        record = await self._records.update(record.job_id, change)
        await self._paused.forget(record)
        return record

    async def _move(self, record: JobRecord, priority: "job_pb2.Priority.ValueType") -> JobRecord:
        if record.lease.held:
            raise NotWaiting(record.job_id)  # rather than that there is no place in the queue
        flow = Flow.of_job(record.tenant, record.spec)._replace(lane=LANES[priority])
        ticket = await self._tickets.put(record.job_id, flow)
        old = Ticket()

        def change(record: JobRecord) -> None:
            if record.ticket == ticket:
                return  # an earlier try was written, and its answer lost
            if record.lease.held:
                raise NotWaiting(record.job_id)
            record.spec.priority = priority
            old.CopyFrom(record.ticket)
            record.ticket.CopyFrom(ticket)

        try:
            record = await self._records.update(record.job_id, change)
        except NotWaiting:
            await self._tickets.remove(ticket)
            raise
        # A paused job has no place in the queue to move to; its ticket comes when it is resumed.
        await self._tickets.remove(ticket if record.control.paused else old)
        await self._tickets.wake(flow)
        return record


def _state_if(
    state: "job_pb2.JobState.ValueType", reason: str, record: JobRecord, *, paused: bool
) -> job_pb2.JobEvent | None:
    """The change of state, unless somebody else has paused or resumed the job since."""
    return state_event(record, state, reason) if record.control.paused == paused else None


def _go_on(record: JobRecord) -> None:
    record.control.paused = False
    record.control.version += 1
