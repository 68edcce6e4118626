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
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from nats.js.api import Header, RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from nst_server.jobs.backbone import WRONG_LAST_SEQUENCE, Backbone, persistently, stored_subjects
from nst_server.jobs.notes import RELEASED, Notes
from nst_server.jobs.room import Room
from nst_server.jobs.topology import CHECKPOINTS, PICTURES, PREVIEWS, Blobs, picture_name, tenant_token

CHUNK_BYTES = 512 * 1024
KEPT_SECONDS = 150.0  # longer than a job takes to make
UNKEPT_SECONDS = 2 * KEPT_SECONDS


class BlobNotFound(Exception):
    """The store has no such blob, or not whole any more."""


@dataclass(frozen=True)
class Head:
    """What says that a blob is whole.

    `sequence` is its place in the stream, `time` when it was written, in Unix seconds.
    """

    sequence: int
    time: float
    chunks: int
    size: int
    sha256: str


class BlobStore:
    """Named values of any size in one stream. A name is one token of a subject, or several."""

    def __init__(self, backbone: Backbone, blobs: Blobs, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._backbone = backbone
        self._jetstream = backbone.jetstream
        self._stream = blobs.stream
        self._prefix = blobs.prefix
        self._patience = patience

    async def head(self, name: str) -> Head | None:
        """The blob's head; None when the blob is not there, or not whole."""
        message = await self._last(f"{name}.head", direct=False)
        if message is None or message.data is None:
            return None
        about = json.loads(message.data)
        return Head(
            sequence=message.seq or 0,
            time=_time(message),
            chunks=about["chunks"],
            size=about.get("size", 0),
            sha256=about["sha256"],
        )

    async def put(self, name: str, data: bytes) -> None:
        """Stores the blob, in place of an older one of that name.

        Raises:
            StoreFull: there is no room.
        """
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
        for number, chunk in enumerate(chunks):
            await self._publish(f"{name}.{number}", chunk)
        await self._publish(f"{name}.head", _packed(len(chunks), len(data), digest))

    async def stamp(self, name: str, head: Head) -> bool:
        """Writes the head again, with the time of now; False if that is not the head any more."""
        data = _packed(head.chunks, head.size, head.sha256)
        expected = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(head.sequence)}
        try:
            await self._publish(f"{name}.head", data, expected)
        except APIError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            return False
        return True

    async def get(self, name: str) -> bytes:
        """The blob's bytes, their digest checked.

        Raises:
            BlobNotFound: there is no such blob, or not all of it.
        """
        head = await self.head(name)
        if head is None:
            raise BlobNotFound(name)
        data = b"".join([await self._chunk(name, number) for number in range(head.chunks)])
        if await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()) != head.sha256:
            raise BlobNotFound(name)
        return data

    async def names(self, below: str = "") -> set[str]:
        """The names of all blobs, or of those that begin with `below` and a `.`; whole or not."""
        pattern = f"{self._prefix}.{below}.>" if below else f"{self._prefix}.>"
        subjects = await stored_subjects(self._backbone, self._stream, pattern, seconds=self._patience)
        return {subject.removeprefix(f"{self._prefix}.").rpartition(".")[0] for subject in subjects}

    async def remove(self, name: str, head: Head) -> bool:
        """Removes the blob with this head, but nothing of one that was stored or stamped since."""
        await self._purge(f"{name}.head", head.sequence)
        if await self.head(name) is not None:
            return False
        await self._purge(f"{name}.>", head.sequence)
        return True

    async def remove_remains(self, name: str, before: float) -> bool:
        """Removes a blob that has no head if nothing of it was written since `before`, in Unix seconds."""
        newest = await self._last(f"{name}.>", direct=False)
        if newest is None or newest.seq is None or _time(newest) >= before:
            return False
        await self._purge(f"{name}.>", newest.seq)
        return True

    async def remove_all(self, below: str) -> int:
        """Removes every blob whose name begins with `below` and a `.`; how many there were."""
        names = await self.names(below)
        if names:
            await self._purge(f"{below}.>", None)
        return len(names)

    async def _purge(self, subject: str, up_to: int | None) -> None:
        """Removes the subject's messages up to a place in the stream; the server compares, so none that came later."""
        sequence = None if up_to is None else up_to + 1
        purge = partial(self._jetstream.purge_stream, self._stream, sequence, f"{self._prefix}.{subject}")
        await persistently(purge, seconds=self._patience)

    async def _chunk(self, name: str, number: int) -> bytes:
        subject = f"{name}.{number}"
        # Any replica may answer, which spares the leader; one that lags sends us to the leader.
        message = await self._last(subject, direct=True) or await self._last(subject, direct=False)
        if message is None or message.data is None:
            raise BlobNotFound(name)
        return message.data

    async def _publish(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        subject = f"{self._prefix}.{subject}"
        publish = partial(self._jetstream.publish, subject, data)
        await persistently(
            lambda: publish(headers={**headers} if headers else None), seconds=self._patience, stream=self._stream
        )

    async def _last(self, subject: str, *, direct: bool) -> RawStreamMsg | None:
        get = partial(self._jetstream.get_last_msg, self._stream, f"{self._prefix}.{subject}", direct=direct)
        try:
            return await persistently(get, seconds=self._patience)
        except NotFoundError:
            return None


class PictureStore:
    """A tenant's pictures by the SHA-256 of their bytes; the same bytes are stored once for each tenant.

    Who makes a job keeps its pictures first and creates the record soon after. Who removes pictures
    reads all records and removes what none refers to, but nothing whose head is younger than
    `UNKEPT_SECONDS`. A picture that was kept has a head of less than `KEPT_SECONDS`, and the record
    comes less than `KEPT_SECONDS` later: so it comes before the picture is old enough to go.
    """

    def __init__(self, backbone: Backbone, tenant: str, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._backbone = backbone
        self._tenant = tenant
        self._patience = patience
        self._blobs = BlobStore(backbone, PICTURES, patience=patience)
        self._released = Notes(backbone, RELEASED, patience=patience)

    async def put(self, data: bytes, *, admit: Callable[[int], Awaitable[None]] | None = None) -> str:
        """Stores the bytes and returns their digest, 64 lower-case hexadecimal digits.

        `admit` is called with the size before bytes are stored that were not yet; what it raises is
        raised here.

        Raises:
            StoreFull: there is no room.
        """
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if not await self.keep(digest):
            if admit is not None:
                await admit(len(data))
            await self._blobs.put(self._name(digest), data)
        return digest

    async def keep(self, digest: str) -> bool:
        """False when the picture is not stored; else it will be for `KEPT_SECONDS` at least.

        Raises:
            StoreFull: there is no room to say so.
        """
        name = self._name(digest)
        await self._released.drop(name)
        while (head := await self._blobs.head(name)) is not None:
            if time.time() - head.time < KEPT_SECONDS or await self._blobs.stamp(name, head):
                return True
        return False

    async def get(self, digest: str) -> bytes:
        """The picture's bytes.

        Raises:
            BlobNotFound: no such picture is stored.
        """
        return await self._blobs.get(self._name(digest))

    async def check_room(self) -> None:
        """Refuses uploads where the results of jobs need what is left; see `Room.check`."""
        await Room(self._backbone, patience=self._patience).check(PICTURES.stream)

    async def size(self) -> int:
        """Bytes of all that the tenant has stored, each picture rounded up to whole chunks."""
        prefix = f"{PICTURES.prefix}.{tenant_token(self._tenant)}."
        subjects = await stored_subjects(self._backbone, PICTURES.stream, f"{prefix}>", seconds=self._patience)
        return CHUNK_BYTES * sum(not subject.endswith(".head") for subject in subjects)

    def _name(self, digest: str) -> str:
        return picture_name(self._tenant, digest)


class PreviewStore:
    """Previews, each below its job, in a stream of their own where the oldest make room for new ones."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._blobs = BlobStore(backbone, PREVIEWS, patience=patience)

    async def put(self, owner: str, data: bytes) -> str:
        """Stores a preview of the job with this `incarnation`, and returns its SHA-256."""
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        await self._blobs.put(f"{owner}.{digest}", data)
        return digest

    async def get(self, owner: str, digest: str) -> bytes:
        """The preview's bytes.

        Raises:
            BlobNotFound: it is gone.
        """
        return await self._blobs.get(f"{owner}.{digest}")

    async def remove_all(self, owner: str) -> int:
        """Removes every preview of a job; how many there were."""
        return await self._blobs.remove_all(owner)


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

    async def remove_all(self, owner: str) -> int:
        """Removes every checkpoint of the job with this `incarnation`; how many there were."""
        return await self._blobs.remove_all(owner)


def checkpoint_name(owner: str, attempt: int, number: int) -> str:
    """The blob that checkpoint `number` (0, 1, 2 ...) of an attempt is written to."""
    return f"{owner}.{attempt}.{number % 2}"


def _packed(chunks: int, size: int, sha256: str) -> bytes:
    return json.dumps({"chunks": chunks, "size": size, "sha256": sha256}).encode()


def _time(message: RawStreamMsg) -> float:
    return message.time.timestamp() if message.time is not None else 0.0
