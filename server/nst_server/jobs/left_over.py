"""What a job no longer needs when it ends, or goes on from another checkpoint."""

import contextlib

from nst.internal.v1.job_record_pb2 import Checkpoint, JobRecord
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.belongings import incarnation, pictures_of
from nst_server.jobs.blobs import CheckpointStore
from nst_server.jobs.deadlines import Deadlines
from nst_server.jobs.notes import RELEASED, Notes
from nst_server.jobs.pauses import PausedJobs
from nst_server.jobs.topology import picture_name


class LeftOver:
    """Removes it. What is left when this is interrupted is collected by the keeper."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._checkpoints = CheckpointStore(backbone, patience=patience)
        self._deadlines = Deadlines(backbone, patience=patience)
        self._paused = PausedJobs(backbone, patience=patience)
        self._released = Notes(backbone, RELEASED, patience=patience)

    async def clear(self, record: JobRecord, checkpoint: Checkpoint) -> None:
        """After the record says how the job ended: its checkpoints, of which this was the last, and its notes."""
        await self._checkpoints.remove_all(incarnation(record))
        await self._deadlines.forget(record)
        if record.control.paused:
            await self._paused.forget(record)
        await self.release_picture(record, checkpoint)

    async def release_picture(self, record: JobRecord, checkpoint: Checkpoint) -> None:
        """Notes that the picture of a former checkpoint, if it had one, need not be kept like an upload."""
        name = picture_name(record.tenant, checkpoint.picture.reference.sha256)
        if checkpoint.HasField("picture") and name not in pictures_of(record):
            with contextlib.suppress(StoreFull):
                await self._released.put(name)
