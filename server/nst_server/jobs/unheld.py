"""Jobs that no model server works on: their history is written by who changes them."""

import contextlib
from collections.abc import Callable

from nst.internal.v1.job_record_pb2 import Checkpoint, JobRecord, Lease
from nst.v1 import job_pb2
from nst_server.jobs.backbone import Backbone
from nst_server.jobs.belongings import ending_of, same_incarnation
from nst_server.jobs.events import EventLog, HistoryMoved, progress_by, state_event
from nst_server.jobs.left_over import LeftOver
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.records import JobNotFound, Records


class _Claimed(Exception):
    """A model server has the job."""


class UnheldJobs:
    """Changes the state of jobs that wait or are paused."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._records = Records(backbone, patience=patience)
        self._events = EventLog(backbone, patience=patience)
        self._tickets = TicketQueue(backbone, patience=patience)
        self._left = LeftOver(backbone, patience=patience)

    async def write(
        self, job_id: str, make_event: Callable[[JobRecord], job_pb2.JobEvent | None], *, again: bool = False
    ) -> None:
        """Appends a change of state, unless a model server works on the job, which will write it itself.

        Nothing is written to a job that has ended or, but for `again`, is in that state already, or when there is no
        event to make.

        Raises:
            JobNotFound: there is no such job.
        """
        while True:
            # Read in this order, so that what a claim writes in between makes the append fail.
            last = await self._events.last(job_id)
            record = await self._records.get(job_id)
            event = make_event(record)
            if event is None:
                return
            if record.lease.held:
                return
            if last is not None:  # else the store has lost the history, which begins anew
                if last.final or (last.event.job_state == event.job_state and not again):
                    return
                if (progress := progress_by(last.event)) is not None:
                    event.latest_progress.CopyFrom(progress)
            with contextlib.suppress(HistoryMoved):
                stored = await self._events.append(event, last)
                if event.job_state != job_pb2.JOB_STATE_QUEUED:
                    await self._withdraw(record)
                if stored.final:
                    await self.close(record, event)
                return

    async def cancel(self, job_id: str) -> None:
        """Ends the job if its client has cancelled it; see `write`."""
        await self.write(job_id, _cancelled)

    async def _withdraw(self, record: JobRecord) -> None:
        """Takes the job's ticket away, unless a model server has claimed it meanwhile: that one then sees to it."""

        def change(latest: JobRecord) -> None:
            if latest.lease.held or not same_incarnation(latest, record):
                raise _Claimed
            if latest.ticket == record.ticket:
                latest.ClearField("ticket")

        with contextlib.suppress(_Claimed, JobNotFound):
            await self._records.update(record.job_id, change)
            await self._tickets.remove(record.ticket)

    async def close(self, record: JobRecord, event: job_pb2.JobEvent) -> None:
        """Writes into the record how the job ended, and removes what it no longer needs."""

        before = Checkpoint()

        def change(latest: JobRecord) -> None:
            if same_incarnation(latest, record):
                if latest.HasField("checkpoint"):
                    before.CopyFrom(latest.checkpoint)
                latest.ending.CopyFrom(ending_of(event))
                latest.ClearField("checkpoint")

        with contextlib.suppress(JobNotFound):
            latest = await self._records.update(record.job_id, change)
            await self._left.clear(latest if same_incarnation(latest, record) else record, before)


def take_away(lease: Lease) -> None:
    """Fences the attempt of a model server that does not answer: nobody holds the job from then on."""
    lease.attempt += 1
    lease.held = False


def _cancelled(record: JobRecord) -> job_pb2.JobEvent | None:
    if not record.control.cancel:
        return None
    return state_event(record, job_pb2.JOB_STATE_CANCELLED, "cancelled while nobody worked on it")
