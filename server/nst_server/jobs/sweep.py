"""One pass over the store: what has had its time, is in the way, or belongs to nobody is removed."""

import asyncio
import contextlib
import logging
import math
from collections import Counter, deque
from collections.abc import Iterable, Set

from nst.internal.v1.job_record_pb2 import JobRecord, Ticket
from nst.v1 import job_pb2
from nst_server.config import StoreSettings
from nst_server.jobs import store_metrics
from nst_server.jobs.announcements import announcements
from nst_server.jobs.backbone import Backbone, StoreFull, persistently
from nst_server.jobs.belongings import in_use, incarnation, last_used, pictures_of, same_incarnation
from nst_server.jobs.blobs import UNKEPT_SECONDS, BlobStore, Head
from nst_server.jobs.deadlines import Deadlines
from nst_server.jobs.events import ABANDONED_SECONDS, EventLog, state_event
from nst_server.jobs.notes import RELEASED, Notes
from nst_server.jobs.pauses import PausedJobs
from nst_server.jobs.queue import QueueFull, TenantQueueFull, TicketQueue
from nst_server.jobs.records import JobNotFound, Records
from nst_server.jobs.removal import JobInUse, JobNotEnded, Remover
from nst_server.jobs.tickets import Flow
from nst_server.jobs.topology import CHECKPOINTS, EVENTS, PICTURES, PREVIEWS, RECORDS
from nst_server.jobs.unheld import UnheldJobs, take_away

log = logging.getLogger(__name__)

# Jobs go when a stream is fuller than the one, until it is as empty as the other: before what is new is
# refused for want of room (`room.FOR_WHAT_IS_NEW`).
HIGH_WATER = 0.7
LOW_WATER = 0.5


class Sweep:
    """A pass at one moment.

    What is stored is listed before the records are read, and ages count from before that. Previews and
    checkpoints are written for jobs that have a record: those that are listed and have none belong to
    nobody, or were written by somebody who is far too late. Pictures and a job's first event come before
    the record: those that have none stay while a job may still be made of them.
    """

    def __init__(self, backbone: Backbone, settings: StoreSettings, now: float, *, patience: float) -> None:
        """`now` is the time, in Unix seconds."""
        self._backbone = backbone
        self._settings = settings
        self._now = now
        self._patience = patience
        self._records = Records(backbone, patience=patience)
        self._events = EventLog(backbone, patience=patience)
        self._released = Notes(backbone, RELEASED, patience=patience)
        self._pictures, self._previews, self._checkpoints = (
            BlobStore(backbone, blobs, patience=patience) for blobs in (PICTURES, PREVIEWS, CHECKPOINTS)
        )
        self._tickets = TicketQueue(backbone, patience=patience)
        self._paused = PausedJobs(backbone, patience=patience)
        self._deadlines = Deadlines(backbone, patience=patience)
        self._unheld = UnheldJobs(backbone, patience=patience)
        self._remover = Remover(backbone, patience=patience)
        self._jobs: dict[str, JobRecord] = {}
        self._references: Counter[str] = Counter()

    async def run(self) -> None:
        """The whole pass."""
        released = await self._released.all()
        paused = await self._paused.noted()
        deadlines = await self._deadlines.noted()
        histories = await self._events.job_ids()
        pictures = await self._pictures.names()
        previews = await self._previews.names()
        checkpoints = await self._checkpoints.names()
        found = await self._records.all()
        for record in found.values():
            if record is not None:
                self._add(record)
                await asyncio.sleep(0)  # calls come first
        await self._add_missing(found.keys())
        await self._settle()
        await self._remove_unknown(histories)
        await self._queue_again()
        old, removable = await asyncio.to_thread(self._removable)
        for record in old:
            await self._remove(record)
        await self._make_room(removable, pictures)
        await self._collect_pictures(pictures)
        for name in released - pictures:
            await self._released.drop(name)
        await self._collect_previews(previews)
        await self._collect_checkpoints(checkpoints)
        await self._collect_histories(histories)
        # Last, as there may be no room for what is written here.
        await self._paused.correct(paused, list(self._jobs.values()))
        await self._deadlines.complete(deadlines, list(self._jobs.values()))

    async def _add_missing(self, found: Set[str]) -> None:
        """Reads what the batches left out, which any replica may have sent: the stream's leader knows them all."""
        for job_id in await self._records.job_ids() - found:
            with contextlib.suppress(JobNotFound):
                self._add(await self._records.get(job_id))

    def _add(self, record: JobRecord) -> None:
        self._jobs[record.job_id] = record
        self._references.update(pictures_of(record))

    def _drop(self, job_id: str) -> list[str]:
        """Forgets the job; its pictures that no other job has."""
        pictures = pictures_of(self._jobs.pop(job_id))
        self._references.subtract(pictures)
        return [name for name in pictures if not self._references[name]]

    async def _settle(self) -> None:
        """Finishes the records of jobs that ended, and cancellations, whose writers stopped half way.

        Lost histories are begun anew. What there is no room to write is left to a later pass: the rest of
        this one makes some.
        """
        for record in [record for record in self._jobs.values() if not record.HasField("ending")]:
            last = await self._events.last(record.job_id)
            with contextlib.suppress(JobNotFound, StoreFull):
                if last is None:
                    await self._unheld.write(record.job_id, _first_event)
                elif last.final:
                    await self._unheld.close(record, last.event)
                    await self._read_again(record.job_id)
                elif record.control.cancel:
                    await self._take_from_the_dead(record)
                    await self._unheld.cancel(record.job_id)
                    await self._read_again(record.job_id)

    async def _take_from_the_dead(self, cancelled: JobRecord) -> None:
        """Fences the attempt of a model server that is no more: until another has room for its jobs, nobody ends them.

        One that only was not heard of for a while loses a job that it was to end.
        """

        def change(latest: JobRecord) -> None:
            if latest.lease == cancelled.lease and same_incarnation(latest, cancelled):
                take_away(latest.lease)

        if not cancelled.lease.held:
            return
        alive = {one.server.name for one in await announcements(self._backbone, patience=self._patience)}
        if cancelled.lease.server not in alive:
            await self._records.update(cancelled.job_id, change)

    async def _remove_unknown(self, histories: set[str]) -> None:
        """Removes jobs that have ended and whose history is lost: nobody knows how they did, and they seem to wait."""
        for job_id in self._jobs.keys() - histories:
            if self._jobs[job_id].HasField("ending") and await self._events.last(job_id) is None:
                await self._remove(self._jobs[job_id])

    async def _queue_again(self) -> None:
        """Gives another ticket to jobs that have lost theirs: without one no model server ever comes to them.

        Who takes a ticket away has written before that the job needs it no more.
        """
        for read in [record for record in self._jobs.values() if _needs_ticket(record)]:
            if not await self._tickets.has(read.ticket):
                with contextlib.suppress(JobNotFound, QueueFull, TenantQueueFull, StoreFull):
                    await self._put_ticket(await self._records.get(read.job_id), read.ticket)

    async def _put_ticket(self, record: JobRecord, lost: Ticket) -> None:
        last = await self._events.last(record.job_id)
        if record.ticket != lost or not _needs_ticket(record) or (last is not None and last.final):
            return
        flow = Flow.of_job(record.tenant, record.spec)
        ticket = await self._tickets.put(record.job_id, flow)

        def change(latest: JobRecord) -> None:
            if latest.ticket == lost and _needs_ticket(latest):
                latest.ticket.CopyFrom(ticket)
                # Its deliveries count from one again: as though a holder had been given it, and has one lease.
                latest.lease.delivery = 1

        record = await self._records.update(record.job_id, change)
        if record.ticket != ticket:
            await self._tickets.remove(ticket)
            return
        log.warning("a job had lost its ticket, and has another one", extra={"job_id": record.job_id})
        await self._tickets.wake(flow)

    async def _read_again(self, job_id: str) -> None:
        self._drop(job_id)
        with contextlib.suppress(JobNotFound):
            self._add(await self._records.get(job_id))

    def _removable(self) -> tuple[list[JobRecord], deque[JobRecord]]:
        """Jobs that have ended and that nobody reads: those kept long enough, and the rest in the order of removal.

        Each time it is the least recently used of the tenant with most.
        """
        free = [one for one in self._jobs.values() if one.HasField("ending") and not in_use(one, self._now)]
        oldest = self._now - self._settings.retention_hours * 3600.0
        old = {one.job_id: one for one in free if one.ending.time.ToNanoseconds() / 1e9 < oldest}
        by_tenant: dict[str, list[tuple[float, str]]] = {}
        for used, job_id in sorted((last_used(one), one.job_id) for one in free if one.job_id not in old):
            by_tenant.setdefault(self._jobs[job_id].tenant, []).append((used, job_id))
        # Those that the tenant has with it, and after it: so no tenant makes room for another that has more.
        left = [(place - len(own), *one) for own in by_tenant.values() for place, one in enumerate(own)]
        return list(old.values()), deque(self._jobs[job_id] for _, _, job_id in sorted(left))

    async def _remove(self, record: JobRecord) -> list[str]:
        """Removes the job, if it is as it was read; its pictures that no other job has."""
        try:
            await self._remover.remove(record.job_id, lambda latest: latest == record)
        except (JobInUse, JobNotEnded):
            await self._read_again(record.job_id)
            return []
        except JobNotFound:
            pass  # its client was quicker
        return self._drop(record.job_id)

    async def _make_room(self, removable: deque[JobRecord], pictures: set[str]) -> None:
        for stream in (EVENTS, f"KV_{RECORDS}"):
            if await self._is_above(HIGH_WATER, stream):
                while removable and await self._is_above(LOW_WATER, stream):
                    await self._remove(removable.popleft())
        staying, limit = await self._bytes(PICTURES.stream)
        if staying > HIGH_WATER * limit:
            staying -= await self._bytes_going(pictures)
            # An upload that no job uses can be sent again, and a result would have to be computed again: the
            # uploads go first, and those that may be about to be used are no reason for a result to go.
            for head, name in await self._unused(pictures):
                old = head.time < self._now - UNKEPT_SECONDS
                if old and staying > LOW_WATER * limit and await self._pictures.remove(name, head):
                    store_metrics.REMOVED.labels("picture").inc()
                staying -= head.size
            while removable and staying > LOW_WATER * limit:
                staying -= await self._size(await self._remove(removable.popleft()))

    async def _unused(self, pictures: set[str]) -> list[tuple[Head, str]]:
        """Uploads that no job uses, the oldest first."""
        names = [name for name in pictures - await self._released.all() if not self._references[name]]
        heads = [(await self._pictures.head(name), name) for name in names]
        return sorted(((head, name) for head, name in heads if head is not None), key=lambda upload: upload[0].time)

    async def _is_above(self, share: float, stream: str) -> bool:
        stored, limit = await self._bytes(stream)
        return stored > share * limit

    async def _bytes(self, stream: str) -> tuple[int, float]:
        """How many are stored, and may be: as the stream has it, for a gateway started later may want it otherwise."""
        info = await persistently(lambda: self._backbone.jetstream.stream_info(stream), seconds=self._patience)
        limit = info.config.max_bytes or -1
        return int(info.state.bytes), limit if limit > 0 else math.inf

    async def _bytes_going(self, pictures: set[str]) -> int:
        """The size of the pictures that no job has any more, but that are kept a little longer."""
        return await self._size(name for name in await self._released.all() & pictures if not self._references[name])

    async def _size(self, pictures: Iterable[str]) -> int:
        heads = [await self._pictures.head(name) for name in pictures]
        return sum(head.size for head in heads if head is not None)

    async def _collect_pictures(self, pictures: set[str]) -> None:
        released = await self._released.all()
        orphan_time = self._now - max(self._settings.orphan_hours * 3600.0, UNKEPT_SECONDS)
        for name in [name for name in pictures if not self._references[name]]:
            head = await self._pictures.head(name)
            if head is None:
                removed = await self._pictures.remove_remains(name, orphan_time)
            else:
                time = self._now - UNKEPT_SECONDS if name in released else orphan_time
                removed = head.time < time and await self._pictures.remove(name, head)
            if removed:
                await self._released.drop(name)
                store_metrics.REMOVED.labels("picture").inc()

    async def _collect_previews(self, previews: set[str]) -> None:
        owners = {incarnation(record) for record in self._jobs.values()}
        for owner in {name.split(".")[0] for name in previews} - owners:
            await self._remover.remove_previews(owner)

    async def _collect_checkpoints(self, checkpoints: set[str]) -> None:
        """Removes checkpoints that no attempt will continue from."""
        live = {incarnation(record): record for record in self._jobs.values() if not record.HasField("ending")}
        for name in checkpoints:
            owner, attempt, _ = name.split(".")
            record = live.get(owner)
            # An attempt that has let go writes no more: of its two only the latest is of use.
            over = record is not None and int(attempt) < record.lease.attempt + (not record.lease.held)
            if record is None or (over and name != record.checkpoint.object):
                await self._remover.remove_checkpoints(name)

    async def _collect_histories(self, histories: set[str]) -> None:
        for job_id in histories - self._jobs.keys():
            last = await self._events.last(job_id)
            if last is None or last.age(self._now) < ABANDONED_SECONDS:
                continue
            try:
                await self._records.get(job_id)
            except JobNotFound:
                await self._remover.remove_history(job_id, last)


def _first_event(record: JobRecord) -> job_pb2.JobEvent:
    state = job_pb2.JOB_STATE_PAUSED if record.control.paused else job_pb2.JOB_STATE_QUEUED
    return state_event(record, state, "the store has lost what was before")


def _needs_ticket(record: JobRecord) -> bool:
    """Whether the job waits or runs."""
    return not (record.HasField("ending") or record.control.paused)
