"""Stored pictures in the forms that clients ask for."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from nst.v1 import image_pb2, job_pb2
from nst.v1 import job_service_pb2 as pb
from nst_server import pictures
from nst_server.config import GatewaySettings
from nst_server.gateway import metrics
from nst_server.gateway.feeds import Entry
from nst_server.gateway.shared_cache import SharedCache
from nst_server.jobs.belongings import incarnation
from nst_server.jobs.blobs import BlobNotFound, PictureStore, PreviewStore

EVENT_OVERHEAD_BYTES = 64 * 1024

Read = Callable[[], Awaitable[bytes]]


class Gallery:
    """Reads pictures from the store and transcodes them, remembering the latest."""

    def __init__(
        self, results: Callable[[str], PictureStore], previews: PreviewStore, settings: GatewaySettings
    ) -> None:
        self._results = results
        self._previews = previews
        self._max_picture_bytes = settings.max_message_bytes - EVENT_OVERHEAD_BYTES
        half = settings.picture_cache_bytes // 2
        self._images: SharedCache[image_pb2.Image] = SharedCache(half, lambda image: image.ByteSize())
        self._responses: SharedCache[bytes] = SharedCache(half, len)

    async def result(self, tenant: str, digest: str, form: image_pb2.ImageFormat) -> image_pb2.Image:
        """A tenant's stored result in the form asked for.

        Raises:
            BlobNotFound: it is not stored any more.
        """
        key = (tenant, digest, form.SerializeToString(deterministic=True))
        read = partial(self._results(tenant).get, digest)
        return await self._images.get(key, partial(_read, read, form))

    async def shown(self, entry: Entry, job: job_pb2.Job, *, stale: bool) -> bytes:
        """The response that shows the event, with its picture where it has one that fits and is still stored."""
        kind = entry.event.WhichOneof("event")
        if kind not in ("preview", "result"):
            return entry.response
        if stale:
            metrics.PREVIEWS_DROPPED.inc()
            return entry.response
        # Neither its place in the stream nor its number is enough: what NATS has lost begins anew, and counts from 1.
        key = (incarnation(job), entry.event.sequence, entry.event.time.ToNanoseconds())
        try:
            return await self._responses.get(key, partial(self._pictured, entry, job, kind))
        except BlobNotFound:
            return entry.response

    async def _pictured(self, entry: Entry, job: job_pb2.Job, kind: str) -> bytes:
        digest = getattr(entry.event, kind).reference.sha256
        if kind == "preview":
            read = partial(self._previews.get, incarnation(job), digest)
            image = await _read(read, job.spec.preview.format)
        else:
            image = await self.result(job.tenant, digest, job.spec.result_format)
        if image.ByteSize() > self._max_picture_bytes:
            return entry.response
        return await asyncio.to_thread(_serialized, entry.event, kind, image)


def _serialized(event: job_pb2.JobEvent, kind: str, image: image_pb2.Image) -> bytes:
    response = pb.WatchJobResponse(event=event)
    getattr(response.event, kind).image.CopyFrom(image)
    return response.SerializeToString()


async def _read(read: Read, form: image_pb2.ImageFormat) -> image_pb2.Image:
    return await asyncio.to_thread(_transcoded, await read(), form)


def _transcoded(stored: bytes, form: image_pb2.ImageFormat) -> image_pb2.Image:
    codec = form.encoded.codec
    if form.WhichOneof("form") != "tensor" and codec in (image_pb2.CODEC_UNSPECIFIED, image_pb2.CODEC_PNG):
        return image_pb2.Image(encoded=image_pb2.EncodedImage(data=stored))
    return pictures.encode(pictures.read_file(stored, pictures.STORED), form)
