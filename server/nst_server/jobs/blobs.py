"""Pictures, previews and checkpoints: large values as chunks in streams.

A blob is its chunks on subjects of their own and, written last, a head that says how many there
are and what their digest is. Not JetStream's object store client: writing there again removes the
chunks under whoever reads, a write that is cancelled leaves chunks that nobody can find, and a
reader that is cancelled leaves a consumer. Here every subject follows from the name, so writing
again overwrites, and reading is a request a chunk.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from nst_server.jobs.backbone import Backbone, persistently
from nst_server.jobs.topology import CHECKPOINTS, PICTURES, PREVIEWS, Blobs, tenant_token

CHUNK_BYTES = 512 * 1024


class BlobNotFound(Exception):
    """The store has no such blob, or not whole any more."""


class BlobStore:
    """Named values of any size in one stream. A name is one token of a subject, or several."""

    def __init__(self, backbone: Backbone, blobs: Blobs, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._jetstream = backbone.jetstream
        self._stream = blobs.stream
        self._prefix = blobs.prefix
        self._patience = patience

    async def age(self, name: str) -> float | None:
        """Seconds since the blob was written; None when it is not there."""
        head = await self._last(f"{name}.head", direct=False)
        if head is None or head.time is None:
            return None
        return (datetime.now(UTC) - head.time.astimezone(UTC)).total_seconds()

    async def put(self, name: str, data: bytes) -> None:
        """Stores the blob, in place of an older one of that name.

        Raises:
            StoreFull: there is no room.
        """
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
        for number, chunk in enumerate(chunks):
            await self._publish(f"{name}.{number}", chunk)
        await self._publish(f"{name}.head", json.dumps({"chunks": len(chunks), "sha256": digest}).encode())

    async def get(self, name: str) -> bytes:
        """The blob's bytes, their digest checked.

        Raises:
            BlobNotFound: there is no such blob, or not all of it.
        """
        head = await self._last(f"{name}.head", direct=False)
        if head is None or head.data is None:
            raise BlobNotFound(name)
        about = json.loads(head.data)
        data = b"".join([await self._chunk(name, number) for number in range(about["chunks"])])
        if await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()) != about["sha256"]:
            raise BlobNotFound(name)
        return data

    async def delete(self, name: str) -> None:
        """Removes the blob; no error if there is none."""
        purge = partial(self._jetstream.purge_stream, self._stream, subject=f"{self._prefix}.{name}.>")
        await persistently(purge, seconds=self._patience)

    async def _chunk(self, name: str, number: int) -> bytes:
        subject = f"{name}.{number}"
        # Any replica may answer, which spares the leader; one that lags sends us to the leader.
        message = await self._last(subject, direct=True) or await self._last(subject, direct=False)
        if message is None or message.data is None:
            raise BlobNotFound(name)
        return message.data

    async def _publish(self, subject: str, data: bytes) -> None:
        publish = partial(self._jetstream.publish, f"{self._prefix}.{subject}", data)
        await persistently(publish, seconds=self._patience)

    async def _last(self, subject: str, *, direct: bool) -> RawStreamMsg | None:
        get = partial(self._jetstream.get_last_msg, self._stream, f"{self._prefix}.{subject}", direct=direct)
        try:
            return await persistently(get, seconds=self._patience)
        except NotFoundError:
            return None


class PictureStore:
    """A tenant's pictures by the SHA-256 of their bytes; the same bytes are stored once for each tenant."""

    def __init__(self, backbone: Backbone, tenant: str, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._backbone = backbone
        self._token = tenant_token(tenant)
        self._patience = patience
        self._blobs = BlobStore(backbone, PICTURES, patience=patience)
        self._renew_after = backbone.retention_seconds / 2

    async def put(self, data: bytes, *, admit: Callable[[int], Awaitable[None]] | None = None) -> str:
        """Stores the bytes and returns their digest, 64 lower-case hexadecimal digits.

        `admit` is called with the size before bytes are stored that were not yet; what it raises is
        raised here.

        Raises:
            StoreFull: there is no room.
        """
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if not await self._fresh(digest):
            if admit is not None:
                await admit(len(data))
            await self._blobs.put(self._name(digest), data)
        return digest

    async def keep(self, digest: str) -> bool:
        """False when the picture is not stored; else it will be for at least half the retention."""
        if not await self._fresh(digest):
            try:
                await self._blobs.put(self._name(digest), await self.get(digest))
            except BlobNotFound:
                return False
        return True

    async def get(self, digest: str) -> bytes:
        """The picture's bytes.

        Raises:
            BlobNotFound: no such picture is stored.
        """
        return await self._blobs.get(self._name(digest))

    async def size(self) -> int:
        """Bytes of all that the tenant has stored, each picture rounded up to whole chunks."""
        prefix = f"{PICTURES.prefix}.{self._token}."
        stream_info = partial(self._backbone.jetstream.stream_info, PICTURES.stream, subjects_filter=f"{prefix}>")
        info = await persistently(stream_info, seconds=self._patience)
        return CHUNK_BYTES * sum(not subject.endswith(".head") for subject in info.state.subjects or ())

    def _name(self, digest: str) -> str:
        return f"{self._token}.{digest}"

    async def _fresh(self, digest: str) -> bool:
        age = await self._blobs.age(self._name(digest))
        return age is not None and age < self._renew_after


class PreviewStore:
    """Previews by their SHA-256, in a stream of their own where the oldest make room for new ones."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._blobs = BlobStore(backbone, PREVIEWS, patience=patience)

    async def put(self, data: bytes) -> str:
        """Stores the bytes and returns their digest."""
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        await self._blobs.put(digest, data)
        return digest

    async def get(self, digest: str) -> bytes:
        """The preview's bytes.

        Raises:
            BlobNotFound: it is gone.
        """
        return await self._blobs.get(digest)


class CheckpointStore:
    """Checkpoints, two alternating blobs an attempt, so that the last whole one is never written over."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._blobs = BlobStore(backbone, CHECKPOINTS, patience=patience)

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
    """The blob that checkpoint `number` (0, 1, 2 ...) of an attempt is written to."""
    return f"{job_id}-{attempt}-{number % 2}"
