"""Stored pictures in the forms that clients ask for."""

import asyncio
from collections import OrderedDict

from nst.v1 import image_pb2, job_pb2

from nst_server import metrics, pictures
from nst_server.jobs.blobs import BlobNotFound, PictureStore

CACHE_BYTES = 64 * 2**20
EVENT_OVERHEAD_BYTES = 64 * 1024
STORED = pictures.PictureLimits(2**62, 2**62, 2**31, 1)


class Gallery:
    """Reads pictures from the store and transcodes them, remembering the latest."""

    def __init__(self, store: PictureStore, max_message_bytes: int) -> None:
        self._store = store
        self._max_picture_bytes = max_message_bytes - EVENT_OVERHEAD_BYTES
        self._cache: OrderedDict[tuple[str, bytes], image_pb2.Image] = OrderedDict()
        self._cached_bytes = 0

    async def picture(self, digest: str, form: image_pb2.ImageFormat) -> image_pb2.Image:
        """A stored PNG in the form asked for.

        Raises:
            BlobNotFound: it is not stored any more.
        """
        key = (digest, form.SerializeToString(deterministic=True))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        stored = await self._store.get(digest)
        image = await asyncio.to_thread(_transcoded, stored, form)
        self._remember(key, image)
        return image

    async def shown(self, event: job_pb2.JobEvent, spec: job_pb2.JobSpec, *, stale: bool) -> job_pb2.JobEvent:
        """The event with its picture, where it has one that fits into a message and is still stored."""
        kind = event.WhichOneof("event")
        if kind not in ("preview", "result"):
            return event
        if stale:
            metrics.PREVIEWS_DROPPED.inc()
            return event
        form = spec.preview.format if kind == "preview" else spec.result_format
        try:
            image = await self.picture(getattr(event, kind).reference.sha256, form)
        except BlobNotFound:
            return event
        if image.ByteSize() > self._max_picture_bytes:
            return event
        shown = job_pb2.JobEvent()
        shown.CopyFrom(event)
        getattr(shown, kind).image.CopyFrom(image)
        return shown

    def _remember(self, key: tuple[str, bytes], image: image_pb2.Image) -> None:
        size = image.ByteSize()
        if size > CACHE_BYTES or key in self._cache:
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
    return pictures.encode(pictures.read_file(stored, STORED), form)
