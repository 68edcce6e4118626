"""Pictures and checkpoints: large values in JetStream's object store."""

import asyncio
import contextlib
import hashlib
import io

from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import api
from nats.js.errors import DigestMismatchError, NotFoundError
from nats.js.object_store import ObjectStore

from nst_server.jobs.backbone import Backbone, persistently

CHUNK_BYTES = 512 * 1024
READ_BASE_SECONDS = 5.0
READ_BYTES_PER_SECOND = 5e6


class BlobNotFound(Exception):
    """The store has no such object."""


class BlobStore:
    """Named values of any size in one bucket."""

    def __init__(self, bucket: ObjectStore, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._bucket = bucket
        self._patience = patience

    async def exists(self, name: str) -> bool:
        """True when the object is there."""
        try:
            await persistently(lambda: self._bucket.get_info(name), seconds=self._patience)
        except NotFoundError:
            return False
        return True

    async def put(self, name: str, data: bytes) -> None:
        """Stores the object, in place of an older one of that name.

        Raises:
            StoreFull: there is no room.
        """

        async def attempt() -> None:
            meta = api.ObjectMeta(name=name, options=api.ObjectMetaOptions(max_chunk_size=CHUNK_BYTES))
            await self._bucket.put(name, data, meta=meta)

        await persistently(attempt, seconds=self._patience)

    async def get(self, name: str) -> bytes:
        """The object's bytes, their digest checked.

        Raises:
            BlobNotFound: there is no such object.
        """
        try:
            return await persistently(lambda: self._read(name), seconds=self._patience)
        except NotFoundError as error:
            raise BlobNotFound(name) from error

    async def delete(self, name: str) -> None:
        """Removes the object; no error if there is none."""
        with contextlib.suppress(NotFoundError):
            await persistently(lambda: self._bucket.delete(name), seconds=self._patience)

    async def _read(self, name: str) -> bytes:
        size = (await self._bucket.get_info(name)).size or 0
        buffer = io.BytesIO()
        try:
            # The library waits for ever for chunks that were replaced or lost under it.
            async with asyncio.timeout(READ_BASE_SECONDS + size / READ_BYTES_PER_SECOND):
                await self._bucket.get(name, writeinto=buffer)
        except (TimeoutError, DigestMismatchError) as error:
            raise NatsTimeoutError from error
        return buffer.getvalue()


class PictureStore:
    """Pictures by the SHA-256 of their bytes; the same bytes are stored once."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._blobs = BlobStore(backbone.pictures, patience=patience)

    async def put(self, data: bytes) -> str:
        """Stores the bytes and returns their digest, 64 lower-case hexadecimal digits.

        Raises:
            StoreFull: there is no room.
        """
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if not await self._blobs.exists(digest):
            await self._blobs.put(digest, data)
        return digest

    async def exists(self, digest: str) -> bool:
        """True when the picture is stored."""
        return await self._blobs.exists(digest)

    async def get(self, digest: str) -> bytes:
        """The picture's bytes.

        Raises:
            BlobNotFound: no such picture is stored.
        """
        return await self._blobs.get(digest)


class CheckpointStore:
    """Checkpoints, two alternating objects an attempt, so that the last whole one is never written over."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._blobs = BlobStore(backbone.checkpoints, patience=patience)

    async def put(self, name: str, data: bytes) -> None:
        """Stores a checkpoint under a name of `checkpoint_name`."""
        await self._blobs.put(name, data)

    async def get(self, name: str) -> bytes:
        """A checkpoint's bytes.

        Raises:
            BlobNotFound: it is gone.
        """
        return await self._blobs.get(name)

    async def delete_all(self, job_id: str, attempts: int) -> None:
        """Removes every checkpoint that attempts 1 to `attempts` of a job can have left."""
        for attempt in range(1, attempts + 1):
            for number in (0, 1):
                await self._blobs.delete(checkpoint_name(job_id, attempt, number))


def checkpoint_name(job_id: str, attempt: int, number: int) -> str:
    """The object that checkpoint `number` (0, 1, 2 ...) of an attempt is written to."""
    return f"{job_id}/{attempt}/{number % 2}"
