"""Removing a job that has ended, with all that it has."""

import contextlib
from collections.abc import Callable

from nst.internal.v1.job_record_pb2 import JobRecord
from nst_server.jobs import store_metrics
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.belongings import ending_of, incarnation, pictures_of
from nst_server.jobs.blobs import CheckpointStore, PreviewStore
from nst_server.jobs.deadlines import Deadlines
from nst_server.jobs.events import EventLog, Stored
from nst_server.jobs.notes import RELEASED, Notes
from nst_server.jobs.records import Records


class JobNotEnded(Exception):
    """The job still waits or runs."""


class JobInUse(Exception):
    """The job is not to be removed as it stands now."""


class Remover:
    """Removes jobs: first the record, which is what makes a job be there, then what belonged to it.

    What is left when this is interrupted has no record any more, and is collected by the keeper. The
    parts that a job made anew under the same id could share are compared or named so that nothing of
    the new job is removed.
    """

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._records = Records(backbone, patience=patience)
        self._events = EventLog(backbone, patience=patience)
        self._checkpoints = CheckpointStore(backbone, patience=patience)
        self._previews = PreviewStore(backbone, patience=patience)
        self._released = Notes(backbone, RELEASED, patience=patience)
        self._deadlines = Deadlines(backbone, patience=patience)

    async def remove(self, job_id: str, wanted: Callable[[JobRecord], bool] = lambda record: True) -> None:
        """Removes the job. Its pictures are released only: the keeper knows who else has them.

        Raises:
            JobNotFound: there is no such job.
            JobNotEnded: it waits or runs.
            JobInUse: its record is not `wanted`.
        """

        async def ending(record: JobRecord) -> Stored | None:
            if not wanted(record):
                raise JobInUse(job_id)
            last = await self._events.last(job_id)
            if last is not None and not last.final:
                raise JobNotEnded(job_id)
            return last

        record, last = await self._records.remove(job_id, ending)
        store_metrics.REMOVED.labels("job").inc()
        if last is not None:
            record.ending.CopyFrom(ending_of(last.event))
            await self.remove_history(job_id, last)
        await self.remove_checkpoints(incarnation(record))
        await self.remove_previews(incarnation(record))
        await self._deadlines.forget(record)
        for picture in pictures_of(record):
            with contextlib.suppress(StoreFull):  # it goes as an upload does, later
                await self._released.put(picture)

    async def remove_history(self, job_id: str, last: Stored) -> None:
        """Removes a job's history up to its end."""
        await self._events.delete(job_id, last)
        store_metrics.REMOVED.labels("history").inc()

    async def remove_checkpoints(self, owner: str) -> None:
        """Removes every checkpoint of the job with this `incarnation`."""
        store_metrics.REMOVED.labels("checkpoint").inc(await self._checkpoints.remove_all(owner))

    async def remove_previews(self, owner: str) -> None:
        """Removes every preview of the job with this `incarnation`."""
        store_metrics.REMOVED.labels("preview").inc(await self._previews.remove_all(owner))
