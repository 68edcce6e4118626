"""Deadlines: a job with a time limit ends when it has passed, with the best picture so far."""

from dataclasses import dataclass

from google.rpc import code_pb2

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import image_pb2, job_pb2
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.belongings import incarnation
from nst_server.jobs.blobs import BlobNotFound, PictureStore, PreviewStore
from nst_server.jobs.events import EventLog
from nst_server.jobs.notes import DEADLINE, Notes

REASON = "DEADLINE_EXCEEDED"


@dataclass(frozen=True, order=True)
class Deadline:
    """When the time of which job is up, in Unix milliseconds."""

    milliseconds: int
    job_id: str

    @property
    def time(self) -> float:
        """In Unix seconds."""
        return self.milliseconds / 1e3


def deadline_of(record: JobRecord) -> Deadline | None:
    """The job's deadline; None if it has no time limit."""
    if not record.spec.HasField("time_limit"):
        return None
    nanoseconds = record.create_time.ToNanoseconds() + record.spec.time_limit.ToNanoseconds()
    return Deadline(nanoseconds // 10**6, record.job_id)


def is_overdue(record: JobRecord, now: float) -> bool:
    """True when the job's time was up by `now`, in Unix seconds."""
    deadline = deadline_of(record)
    return deadline is not None and deadline.time <= now


def deadline_error(record: JobRecord, partial: job_pb2.Result | None) -> job_pb2.JobError:
    """What ends a job whose time is up, with its best picture so far."""
    limit = record.spec.time_limit.ToNanoseconds() / 1e9
    state = f"the best picture so far, of iteration {partial.iterations}, is kept" if partial else "there is no picture"
    message = f"the time limit of {limit:g} s has passed, and {state}"
    return job_pb2.JobError(code=code_pb2.DEADLINE_EXCEEDED, reason=REASON, message=message, partial=partial)


class Deadlines:
    """The notes of all deadlines, by which the keeper finds those that pass while nobody works on the job."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._notes = Notes(backbone, DEADLINE, patience=patience)

    async def note(self, record: JobRecord) -> None:
        """Makes a note of the job's deadline, if it has one."""
        if deadline := deadline_of(record):
            await self._notes.put(_name(deadline))

    async def forget(self, record: JobRecord) -> None:
        """Drops the note of a job that has ended, if it has a deadline."""
        if deadline := deadline_of(record):
            await self.drop(deadline)

    async def noted(self) -> set[str]:
        """What there are notes of, for `complete`."""
        return await self._notes.all()

    async def complete(self, noted: set[str], records: list[JobRecord]) -> None:
        """Makes the notes that records of jobs that have not ended lack: the store may have lost them."""
        for record in records:
            deadline = deadline_of(record)
            if deadline and not record.HasField("ending") and _name(deadline) not in noted:
                await self.note(record)

    async def drop(self, deadline: Deadline) -> None:
        """Drops the note, if there is one."""
        await self._notes.drop(_name(deadline))

    async def passed(self, now: float) -> list[Deadline]:
        """The deadlines that have passed by `now`, in Unix seconds; the oldest first."""
        notes = [name.split(".") for name in await self._notes.all()]
        deadlines = [Deadline(int(milliseconds), job_id) for milliseconds, job_id in notes]
        return sorted(deadline for deadline in deadlines if deadline.time <= now)


class LastPictures:
    """The best pictures so far of jobs that nobody works on."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._backbone = backbone
        self._patience = patience
        self._events = EventLog(backbone, patience=patience)
        self._previews = PreviewStore(backbone, patience=patience)

    async def overdue_error(self, record: JobRecord) -> job_pb2.JobError:
        """As `deadline_error`, with the picture that the job was let go with, or else its latest preview."""
        let_go = record.checkpoint.picture if record.checkpoint.HasField("picture") else None
        return deadline_error(record, let_go or await self._keep_latest(record))

    async def _keep_latest(self, record: JobRecord) -> job_pb2.Result | None:
        preview = progress = None
        async for stored in self._events.read(record.job_id):
            if stored.event.HasField("progress"):
                progress = stored.event.progress
            elif stored.event.HasField("preview"):
                preview = stored.event.preview
        if preview is None:
            return None
        try:
            data = await self._previews.get(incarnation(record), preview.reference.sha256)
        except BlobNotFound:
            return None
        pictures = PictureStore(self._backbone, record.tenant, patience=self._patience)
        try:
            digest = await pictures.put(data)
        except StoreFull:
            return None
        return job_pb2.Result(
            iterations=preview.iteration,
            width=preview.width,
            height=preview.height,
            reference=image_pb2.ImageReference(sha256=digest),
            progress=progress,
            run_seconds=record.checkpoint.run_seconds,
        )


def _name(deadline: Deadline) -> str:
    return f"{deadline.milliseconds}.{deadline.job_id}"
