"""Stored pictures in the forms that clients ask for."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial

from nst.v1 import image_pb2, job_pb2
from nst_server import metrics, pictures
from nst_server.jobs.belongings import incarnation
from nst_server.jobs.blobs import BlobNotFound, PictureStore, PreviewStore

CACHE_BYTES = 64 * 2**20
EVENT_OVERHEAD_BYTES = 64 * 1024

Key = tuple[str, str, bytes]  # tenant, digest, form
Read = Callable[[], Awaitable[bytes]]


class Gallery:
    """Reads pictures from the store and transcodes them, remembering the latest."""

    def __init__(self, results: Callable[[str], PictureStore], previews: PreviewStore, max_message_bytes: int) -> None:
        self._results = results
        self._previews = previews
        self._max_picture_bytes = max_message_bytes - EVENT_OVERHEAD_BYTES
        self._cache: OrderedDict[Key, image_pb2.Image] = OrderedDict()
        self._cached_bytes = 0
        self._reading: dict[Key, asyncio.Task[image_pb2.Image]] = {}

    async def result(self, tenant: str, digest: str, form: image_pb2.ImageFormat) -> image_pb2.Image:
        """A tenant's stored result in the form asked for.

        Raises:
            BlobNotFound: it is not stored any more.
        """
        return await self._picture(partial(self._results(tenant).get, digest), tenant, digest, form)

    async def _preview(self, digest: str, job: job_pb2.Job) -> image_pb2.Image:
        read = partial(self._previews.get, incarnation(job), digest)
        return await self._picture(read, job.tenant, digest, job.spec.preview.format)

    async def _picture(self, read: Read, tenant: str, digest: str, form: image_pb2.ImageFormat) -> image_pb2.Image:
        key = (tenant, digest, form.SerializeToString(deterministic=True))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if key not in self._reading:
            # One reading for all who want the picture now; it goes on if one of them leaves.
            self._reading[key] = asyncio.create_task(self._read(read, key, form))
        return await asyncio.shield(self._reading[key])

    async def _read(self, read: Read, key: Key, form: image_pb2.ImageFormat) -> image_pb2.Image:
        try:
            image = await asyncio.to_thread(_transcoded, await read(), form)
            self._remember(key, image)
            return image
        finally:
            del self._reading[key]

    async def shown(self, event: job_pb2.JobEvent, job: job_pb2.Job, *, stale: bool) -> job_pb2.JobEvent:
        """The event with its picture, where it has one that fits into a message and is still stored."""
        kind = event.WhichOneof("event")
        if kind not in ("preview", "result"):
            return event
        if stale:
            metrics.PREVIEWS_DROPPED.inc()
            return event
        try:
            if kind == "result":
                image = await self.result(job.tenant, event.result.reference.sha256, job.spec.result_format)
            else:
                image = await self._preview(event.preview.reference.sha256, job)
        except BlobNotFound:
            return event
        if image.ByteSize() > self._max_picture_bytes:
            return event
        shown = job_pb2.JobEvent()
        shown.CopyFrom(event)
        getattr(shown, kind).image.CopyFrom(image)
        return shown

    def _remember(self, key: Key, image: image_pb2.Image) -> None:
        size = image.ByteSize()
        if size > CACHE_BYTES:
            return
        self._cache[key] = image
        self._cached_bytes += size
        while self._cached_bytes > CACHE_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.ByteSize()


def _transcoded(stored: bytes, form: image_pb2.ImageFormat) -> image_pb2.Image:
    codec = form.encoded.codec
    if form.WhichOneof("form") != "tensor" and codec in (image_pb2.CODEC_UNSPECIFIED, image_pb2.CODEC_PNG):
        return image_pb2.Image(encoded=image_pb2.EncodedImage(data=stored))
    return pictures.encode(pictures.read_file(stored, pictures.STORED), form)
