"""A model server's hold on one job: writing its history, and letting it go.

Every write is fenced. Events are appended after the one this attempt saw last, or not at all;
the record is changed only while it names this attempt. Who finds the place taken by a later
attempt raises `Superseded` and drops the job without a further word.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from math import ceil

from nats.aio.msg import Msg

from nst.internal.v1.job_record_pb2 import Checkpoint, JobRecord
from nst.v1 import job_pb2
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.belongings import ending_of, incarnation, same_incarnation
from nst_server.jobs.blobs import CheckpointStore, checkpoint_name
from nst_server.jobs.events import EventLog, HistoryMoved, Stored, progress_by, state_event
from nst_server.jobs.left_over import LeftOver
from nst_server.jobs.records import JobNotFound, Records
from nst_server.jobs.suspicion import clear, is_suspected

log = logging.getLogger(__name__)

NO_ROOM_SECONDS = 5.0
# However long a lease is: gateways with other settings may make it shorter while it is held.
EXTENDED_EVERY_SECONDS = 1.0
UNTOLD_SECONDS = 0.5  # of computing on the way to the history, besides what it leaves untold


def extension_seconds(lease_seconds: float) -> float:
    """How long after one extension of a lease the next is due."""
    return min(lease_seconds / 4, EXTENDED_EVERY_SECONDS)


class Superseded(Exception):
    """A later attempt has taken the job, or it has ended."""


class _CancelWanted(Exception):
    """The client has cancelled the job, and nobody else will end it."""


class _StillWanted(Exception):
    """The client has taken the pause back."""


class _NotLost(Exception):
    """The attempt does not count as lost."""


class Lease:
    """One attempt at one job."""

    def __init__(
        self,
        backbone: Backbone,
        record: JobRecord,
        message: Msg,
        lease_seconds: Callable[[], float],
        progress_seconds: float,
    ) -> None:
        """`record` is the job's and names this attempt; `message` is the ticket, leased for so long by now."""
        self._records = Records(backbone, patience=None)
        self._events = EventLog(backbone, patience=None)
        self._checkpoints = CheckpointStore(backbone, patience=None)
        self._left = LeftOver(backbone, patience=None)
        self.record = record
        self.job_id = record.job_id
        self.attempt = record.lease.attempt
        self.last: Stored | None = None
        self._message = message
        self._lease_seconds = lease_seconds
        self._untold_seconds = progress_seconds + UNTOLD_SECONDS
        self._leaving = False
        self._checkpoints_written = 0
        self._latest_progress: job_pb2.Progress | None = None

    @property
    def suspected(self) -> bool:
        """Whether the job is to have its model server to itself; see `suspicion`."""
        return is_suspected(self.record)

    @property
    def reached(self) -> int:
        """The furthest iteration that any attempt so far may have reached, what it did untold included.

        Short of the end by so much that a checkpoint can still lie beyond.
        """
        furthest = max(self.record.checkpoint.iteration, self.record.lease.furthest)
        if (last := self._latest_progress) is None:
            return furthest
        untold = ceil(self._untold_seconds * last.iterations_per_second)
        return max(furthest, last.iteration, min(last.iteration + untold, last.iterations - 2))

    async def read_history(self) -> None:
        """Takes up the history where the attempt before has left it."""
        self.last = await self._events.last(self.job_id)
        if self.last is not None:
            self._latest_progress = progress_by(self.last.event)

    async def note_reached(self) -> None:
        """Keeps how far the attempts that were lost have come."""
        reached = self.reached

        def change(record: JobRecord) -> None:
            record.lease.furthest = reached

        await self._update(change)

    def redelivered(self, message: Msg) -> bool:
        """The queue gave this server the job's ticket again: the newer message counts.

        Returns:
            False when it is another ticket of the job, or the job is being let go: it is not this attempt's.
        """
        if self._leaving or message.metadata.sequence.stream != self._message.metadata.sequence.stream:
            return False
        self._message = message
        return True

    async def keep_alive(self) -> None:
        """Extends the lease until cancelled."""
        while True:
            try:
                await self._message.in_progress()
            except Exception:
                log.warning("lease not extended", extra={"job_id": self.job_id}, exc_info=True)
            await asyncio.sleep(extension_seconds(self._lease_seconds()))

    async def refresh(self) -> JobRecord:
        """Reads the record again, for what the client wants now.

        Raises:
            Superseded: a later attempt has the job, or it was deleted.
        """
        async with self._superseded_by_deletion():
            record = await self._records.get(self.job_id)
        self._check_fence(record)
        self.record = record
        return record

    async def append(self, event: job_pb2.JobEvent) -> None:
        """Appends an event to the job's history.

        Raises:
            Superseded: a later attempt has the job, or it has ended.
        """
        self._complete(event)
        while True:
            if self.last is not None and (self.last.final or self.last.event.attempt > self.attempt):
                raise Superseded
            try:
                self.last = await self._events.append(event, self.last)
                return
            except HistoryMoved as moved:
                # What moved may be the history of a job made anew under this id. That one's first event is stored
                # only once our record is gone, so a record that is still ours tells. If there is no history at all
                # then, the store has lost it, and it begins anew.
                await self.refresh()
                self.last = moved.last

    async def cancel(self) -> None:
        """Ends the job as its client asked."""
        await self.append_state(job_pb2.JOB_STATE_CANCELLED, "asked for by the client")
        await self.close()

    def _complete(self, event: job_pb2.JobEvent) -> None:
        event.job_id = self.job_id
        event.attempt = self.attempt
        if event.HasField("progress"):
            self._latest_progress = event.progress
        elif self._latest_progress is not None:
            event.latest_progress.CopyFrom(self._latest_progress)

    async def append_state(self, state: "job_pb2.JobState.ValueType", reason: str, from_iteration: int = 0) -> None:
        """Appends a change of state; see `append`."""
        change = job_pb2.StateChange(state=state, reason=reason, from_iteration=from_iteration)
        await self.append(job_pb2.JobEvent(job_state=state, state=change))

    async def load_checkpoint(self) -> bytes:
        """The bytes of the record's checkpoint; see `CheckpointStore.get`."""
        return await self._checkpoints.get(self.record.checkpoint.object)

    async def save_checkpoint(self, data: bytes, checkpoint: Checkpoint) -> None:
        """Stores a checkpoint, then points the record at it. That the job has come this far shows in any case.

        Raises:
            Superseded: a later attempt has the job.
            StoreFull: there is no room for it.
        """
        checkpoint.object = checkpoint_name(incarnation(self.record), self.attempt, self._checkpoints_written)
        try:
            await self._checkpoints.put(checkpoint.object, data)
        except StoreFull:
            if is_suspected(self.record):
                await self._update(lambda record: clear(record, checkpoint.iteration))
            raise

        before = Checkpoint()

        def change(record: JobRecord) -> None:
            before.CopyFrom(record.checkpoint)
            record.checkpoint.CopyFrom(checkpoint)
            clear(record, checkpoint.iteration)

        await self._update(change)
        await self._left.release_picture(self.record, before)
        # Only now: one that could not be stored is not to be followed by one in the place of the last good one.
        self._checkpoints_written += 1

    async def fail(self, error: job_pb2.JobError) -> None:
        """Ends the job as failed."""
        await self.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_FAILED, error=error))
        await self.close()

    async def pause_or_hand_back(self) -> None:
        """Lets the job go until its client resumes it; if that has happened already, to go on at once."""

        def change(record: JobRecord) -> None:
            if not record.control.paused:
                raise _StillWanted

        try:
            if not await self._let_go(change):
                return
        except _StillWanted:
            await self.hand_back("resumed")
            return
        if self.last is not None and self.last.event.job_state != job_pb2.JOB_STATE_PAUSED:
            await self._append_unless_moved(job_pb2.JOB_STATE_PAUSED, "asked for by the client")
        await self._message.ack()

    async def hand_back(self, reason: str, *, alone: bool = False) -> None:
        """Lets the job go for another model server to continue at once; `alone` if it ran out of memory.

        One that has ended is closed instead: who was doing that may have been cut short.
        """
        if self.last is not None and self.last.final:
            await self.close()
            return
        reached = self.reached

        def change(record: JobRecord) -> None:
            if alone:
                record.lease.alone = True
                record.lease.furthest = reached

        if await self._let_go(change):
            await self._append_unless_moved(job_pb2.JOB_STATE_QUEUED, reason)
            await self._message.nak()

    async def _append_unless_moved(self, state: "job_pb2.JobState.ValueType", reason: str) -> None:
        """The state of a job that has been let go, unless who has paused, resumed or ended it since has said it."""
        event = state_event(self.record, state, reason)
        self._complete(event)
        with contextlib.suppress(HistoryMoved):
            await self._events.append(event, self.last)

    async def _let_go(self, change: Callable[[JobRecord], None]) -> bool:
        """Holds the job no longer, with a change; False when it has ended instead, as its client has cancelled it."""
        self._leaving = True

        def unless_cancelled(record: JobRecord) -> None:
            if record.control.cancel:
                raise _CancelWanted
            change(record)
            record.lease.held = False

        try:
            await self._update(unless_cancelled)
        except _CancelWanted:
            await self.cancel()
            return False
        return True

    async def abandon(self) -> None:
        """Leaves the job to another model server, as a loss."""
        self._leaving = True
        await self._message.nak()

    async def step_back(self) -> None:
        """Lets the job go without a word, for which its history has no room, until there may be some again."""
        self._leaving = True

        def change(record: JobRecord) -> None:
            record.lease.held = False

        with contextlib.suppress(StoreFull):  # where records are what is full, it counts as lost by this server
            await self._update(change)
        await self._message.nak(NO_ROOM_SECONDS)

    async def take_back_loss(self) -> None:
        """Once superseded: that its model server still lives shows that the job has not ended it."""

        def change(record: JobRecord) -> None:
            if not same_incarnation(record, self.record) or self.attempt not in record.lease.lost_attempts:
                raise _NotLost
            record.lease.lost_attempts.remove(self.attempt)

        with contextlib.suppress(_NotLost, JobNotFound, StoreFull):
            await self._records.update(self.job_id, change)

    async def close(self) -> None:
        """After the last event: removes what the job no longer needs and takes its ticket away."""
        self._leaving = True
        last = self.last
        assert last is not None

        before = Checkpoint()

        def change(record: JobRecord) -> None:
            if record.HasField("checkpoint"):  # not when this is tried again after an answer that was lost
                before.CopyFrom(record.checkpoint)
            record.lease.held = False
            record.ending.CopyFrom(ending_of(last.event))
            record.ClearField("checkpoint")

        await self._update(change)
        await self._left.clear(self.record, before)
        await self._message.ack()

    async def _update(self, change: Callable[[JobRecord], None]) -> None:
        def fenced(record: JobRecord) -> None:
            self._check_fence(record)
            change(record)

        async with self._superseded_by_deletion():
            self.record = await self._records.update(self.job_id, fenced)

    @contextlib.asynccontextmanager
    async def _superseded_by_deletion(self) -> AsyncIterator[None]:
        try:
            yield
        except JobNotFound as error:
            await self._message.ack()  # its client has deleted it, at its last event, and nobody needs the ticket
            raise Superseded from error

    def _check_fence(self, record: JobRecord) -> None:
        if record.lease.attempt != self.attempt or not same_incarnation(record, self.record):
            raise Superseded
