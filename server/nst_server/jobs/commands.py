"""What a gateway does to jobs: create, read, steer, cancel, delete."""

import asyncio
import contextlib
import hashlib
import time

from google.protobuf.timestamp_pb2 import Timestamp

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2
from nst_server.config import GatewaySettings
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.belongings import USE_NOTE_SECONDS, last_used
from nst_server.jobs.control import nudge
from nst_server.jobs.deadlines import Deadlines
from nst_server.jobs.events import ABANDONED_SECONDS, EventLog, HistoryMoved, Stored, progress_by, state_event
from nst_server.jobs.listing import Listing
from nst_server.jobs.queue import QueueFull, TenantQueueFull, TicketQueue
from nst_server.jobs.records import TENANT_DIGITS, JobExists, JobNotFound, Records, tenant_digits
from nst_server.jobs.removal import Remover
from nst_server.jobs.room import Room
from nst_server.jobs.tickets import Flow
from nst_server.jobs.topology import EVENTS, RECORDS
from nst_server.jobs.unheld import UnheldJobs
from nst_server.jobs.updates import JobUpdates

FILLED_BY_JOBS = (EVENTS, f"KV_{RECORDS}")


class RequestReused(Exception):
    """The request id was used before, for something else."""


class JobCommands:
    """Every change that a client can make, durable when the call returns."""

    def __init__(
        self, backbone: Backbone, *, patience: float, max_job_changes: int = GatewaySettings.max_job_changes
    ) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds."""
        self._backbone = backbone
        self.records = Records(backbone, patience=patience)
        self.events = EventLog(backbone, patience=patience)
        self.listing = Listing(backbone, self.records, patience=patience)
        self._tickets = TicketQueue(backbone, patience=patience)
        self._deadlines = Deadlines(backbone, patience=patience)
        self._unheld = UnheldJobs(backbone, patience=patience)
        self._updates = JobUpdates(backbone, patience=patience, max_changes=max_job_changes)
        self._room = Room(backbone, patience=patience)
        self._remover = Remover(backbone, patience=patience)
        self._creating: set[asyncio.Task[job_pb2.Job]] = set()

    async def create(
        self,
        request_id: str,
        tenant: str,
        spec: job_pb2.JobSpec,
        traceparent: str,
        asked: job_pb2.JobSpec | None = None,
    ) -> job_pb2.Job:
        """Stores and queues a job; the same request again returns the same job.

        `asked` is what tells requests apart: what the client has set, without the defaults that are in `spec` by now,
        and which may be others when it asks again. None is the spec itself.

        The ticket goes first, so that a full queue refuses before anything is written; a ticket
        whose record never follows is dropped by the model server that pulls it. Until then it holds a
        place in the queue: so what has begun is ended, though who asked for it leaves.

        Raises:
            QueueFull, TenantQueueFull: as many jobs as allowed wait or run, of all tenants or of this one.
            StoreFull: histories or records leave no room for another job.
            RequestReused: the request id belongs to another spec.
        """
        creating = asyncio.create_task(self._create(request_id, tenant, spec, traceparent, asked or spec))
        self._creating.add(creating)
        creating.add_done_callback(self._creating.discard)
        return await asyncio.shield(creating)

    async def _create(
        self, request_id: str, tenant: str, spec: job_pb2.JobSpec, traceparent: str, asked: job_pb2.JobSpec
    ) -> job_pb2.Job:
        job_id, flow = derive_job_id(tenant, request_id), Flow.of_job(tenant, spec)
        digest = hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()
        while (existing := await self._existing(job_id, digest)) is None:
            await asyncio.gather(*(self._room.check(stream) for stream in FILLED_BY_JOBS))
            record = JobRecord(
                job_id=job_id,
                request_id=request_id,
                request_digest=digest,
                tenant=tenant,
                spec=spec,
                create_time=_now(),
                traceparent=traceparent,
                ticket=await self._tickets.put(job_id, flow),
            )
            await self._deadlines.note(record)
            last = await self._begin_history(record)
            try:
                await self.records.create(record)
            except JobExists:
                await self._tickets.remove(record.ticket)
                continue
            await self._tickets.wake(flow)
            return _described(record, last)
        return existing

    async def _begin_history(self, record: JobRecord) -> Stored:
        """Appends the first event, once what a removed job of this id may have left is out of its way.

        Returns:
            The history's end.
        """
        event = state_event(record, job_pb2.JOB_STATE_QUEUED, "waits for a model server")
        while True:
            try:
                return await self.events.append(event, None)
            except HistoryMoved as moved:
                last = moved.last
            if last is None:
                continue
            if not last.final and last.age(time.time()) < ABANDONED_SECONDS / 2:
                return last  # an earlier try of this same request got this far
            try:
                await self.records.get(record.job_id)
                return last  # a twin of this request was quicker, and its job has gone on since
            except JobNotFound:
                await self.events.delete(record.job_id, last)

    async def check_room(self, request_id: str, tenant: str) -> None:
        """Refuses at little cost what `create` would refuse for want of room; see there."""
        try:
            await self._tickets.check_room(tenant)
        except (QueueFull, TenantQueueFull):
            if not await self.knows(request_id, tenant):
                raise

    async def knows(self, request_id: str, tenant: str) -> bool:
        """Whether there is a job of this request."""
        try:
            await self.records.get(derive_job_id(tenant, request_id))
        except JobNotFound:
            return False
        return True

    async def _existing(self, job_id: str, digest: str) -> job_pb2.Job | None:
        try:
            record = await self.records.get(job_id)
        except JobNotFound:
            return None
        if record.request_digest != digest:
            raise RequestReused(record.request_id)
        return await self.describe(record)

    async def get(self, job_id: str, tenant: str | None = None) -> job_pb2.Job:
        """The job as it stands.

        Raises:
            JobNotFound: there is no such job, or another than the given tenant made it.
        """
        record = await self.records.get(job_id)
        if tenant is not None and record.tenant != tenant:
            raise JobNotFound(job_id)
        await self._note_use(record)
        return await self.describe(record)

    async def _note_use(self, record: JobRecord) -> None:
        """Keeps a job that has ended from being removed for a while; others are not removed anyway."""
        if not record.HasField("ending") or time.time() - last_used(record) < USE_NOTE_SECONDS:
            return
        with contextlib.suppress(StoreFull):
            await self.records.update(record.job_id, lambda record: record.last_use_time.GetCurrentTime())

    async def describe(self, record: JobRecord) -> job_pb2.Job:
        """A record and the end of its history, as clients see a job."""
        return _described(record, await self.events.last(record.job_id))

    async def cancel(self, job_id: str) -> job_pb2.Job:
        """Ends a job that waits at once, and one that runs at its next iteration.

        Raises:
            JobNotFound: there is no such job.
        """
        last = await self.events.last(job_id)
        if last is not None and last.final:
            return await self.get(job_id)

        def change(record: JobRecord) -> None:
            record.control.cancel = True
            record.control.version += 1

        record = await self.records.update(job_id, change)
        await self._unheld.cancel(job_id)
        await nudge(self._backbone, job_id)
        return await self.describe(record)

    async def update(self, job_id: str, update: job_pb2.JobUpdate) -> job_pb2.Job:
        """Stores a change of weights, iterations or priority, or a pause; a model server applies it.

        Raises:
            JobNotFound: there is no such job.
            JobEnded: it has ended.
            NotWaiting: its priority cannot change any more.
            QueueFull, TenantQueueFull: there is no place in the queue to resume it, or to move it by way of.
            TooManyPaused: the tenant may have no more jobs paused.
            TooManyChanges: it may not be changed any more, but for being resumed.
            StoreFull: the job runs, and a pause could find no room for its checkpoint.
        """
        record = await self._updates.apply(job_id, update)
        await nudge(self._backbone, job_id)
        return await self.describe(record)

    async def delete(self, job_id: str) -> None:
        """Removes a job that has ended; see `Remover.remove`.

        Raises:
            JobNotFound: there is no such job.
            JobNotEnded: it waits or runs.
        """
        await self._remover.remove(job_id)


def derive_job_id(tenant: str, request_id: str) -> str:
    """The job's name: the same request makes the same one, so that two tries cannot make two jobs."""
    request = hashlib.sha256(f"{tenant}\n{request_id}".encode()).hexdigest()
    return tenant_digits(tenant) + request[: 32 - TENANT_DIGITS]


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now


def _described(record: JobRecord, last: Stored | None) -> job_pb2.Job:
    job = job_pb2.Job(
        job_id=record.job_id,
        request_id=record.request_id,
        spec=record.spec,
        create_time=record.create_time,
        attempt=record.lease.attempt,
        tenant=record.tenant,
        state=job_pb2.JOB_STATE_QUEUED,
        control_version=record.control.version,
        changes=record.control.weights if record.control.HasField("weights") else None,
    )
    if last is not None:
        _add_event(job, last.event)
    return job


def _add_event(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
    job.state = event.job_state
    job.last_sequence = event.sequence
    job.update_time.CopyFrom(event.time)
    if (progress := progress_by(event)) is not None:
        job.progress.CopyFrom(progress)
    if event.HasField("result"):
        job.result.CopyFrom(event.result)
    elif event.HasField("error"):
        job.error.CopyFrom(event.error)
