"""What a job shows: previews on the way, and the picture that it ends with."""

import asyncio
import logging
import time

from nst.v1 import image_pb2, job_pb2
from nst_server import pictures
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.belongings import incarnation
from nst_server.jobs.blobs import PictureStore, PreviewStore
from nst_server.jobs.lease import Lease
from nst_server.model_server.seats import Step

log = logging.getLogger(__name__)

ROOM_SECONDS = 300.0  # some rounds of the keeper, who makes room
ROOM_PAUSE_SECONDS = 2.0


class JobPictures:
    """Stores the pictures of one leased job, encoded beside the event loop."""

    def __init__(self, backbone: Backbone, lease: Lease) -> None:
        self.store = PictureStore(backbone, lease.record.tenant, patience=None)
        self._previews = PreviewStore(backbone, patience=None)
        self._lease = lease

    async def preview(self, step: Step) -> job_pb2.Preview | None:
        """The step's picture, shrunk to what the client wants; None if there is no room for it."""
        record = self._lease.record
        assert step.picture is not None
        picture = step.picture
        if limit := record.spec.preview.max_size:
            picture = await asyncio.to_thread(pictures.shrink, picture, limit)
        height, width = picture.shape[:2]
        data = await asyncio.to_thread(pictures.encode_png, picture)
        try:
            digest = await self._previews.put(incarnation(record), data)
        except StoreFull:
            log.warning("no room for a preview, leaving it out", extra={"job_id": self._lease.job_id})
            return None
        reference = image_pb2.ImageReference(sha256=digest)
        return job_pb2.Preview(iteration=step.report.iteration, width=width, height=height, reference=reference)

    async def result(
        self, step: Step, progress: job_pb2.Progress, run_seconds: float, *, room_seconds: float = ROOM_SECONDS
    ) -> job_pb2.Result:
        """The step's picture, as what the job ends with.

        Raises:
            StoreFull: there is no room, and none was made in `room_seconds`.
        """
        assert step.picture is not None
        height, width = step.picture.shape[:2]
        digest = await self._stored(await asyncio.to_thread(pictures.encode_png, step.picture), room_seconds)
        return job_pb2.Result(
            iterations=step.report.iteration,
            width=width,
            height=height,
            reference=image_pb2.ImageReference(sha256=digest),
            progress=progress,
            run_seconds=run_seconds,
        )

    async def _stored(self, data: bytes, room_seconds: float) -> str:
        deadline = time.monotonic() + room_seconds
        while True:
            try:
                return await self.store.put(data)
            except StoreFull:
                if time.monotonic() > deadline:
                    raise
                log.warning("no room for a result, trying again", extra={"job_id": self._lease.job_id})
            await asyncio.sleep(ROOM_PAUSE_SECONDS)
