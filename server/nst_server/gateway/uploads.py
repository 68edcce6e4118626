"""Pictures that arrive in chunks, held in bounded memory until they are whole."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from google.rpc import code_pb2

from nst.v1 import image_pb2
from nst.v1 import style_transfer_service_pb2 as service_pb2
from nst_server import pictures
from nst_server.config import GatewaySettings
from nst_server.gateway.errors import PicturePath, Refusal, exhausted, invalid
from nst_server.gateway.specs import check_digest

RETRY_SECONDS = 2
T = TypeVar("T")


class UploadMemory:
    """What all uploads in flight may hold together."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._limit = settings.max_upload_bytes
        self._held = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Sets `size` bytes aside for as long as the block runs.

        Raises:
            Refusal: there is no room, now or ever.
        """
        if size > self._limit:
            raise exhausted("max_upload_bytes", self._limit, f"these {size} bytes never fit: send less at once", None)
        if self._held + size > self._limit:
            raise exhausted(
                "max_upload_bytes", self._limit, "too many uploads are in flight: try again later", RETRY_SECONDS
            )
        self._held += size
        try:
            yield
        finally:
            self._held -= size


class Assembly:
    """One picture being put together from its chunks."""

    def __init__(self, path: str, header: image_pb2.ImageHeader, limits: pictures.PictureLimits) -> None:
        """`path` is the header's, for errors.

        Raises:
            Refusal: the header is wrong, or the picture is over a limit.
        """
        self._path = path
        self._header = header
        self._received = bytearray()
        if header.sha256:
            check_digest(f"{path}.sha256", header.sha256)
        place = PicturePath(f"{path}.size", f"{path}.tensor")
        try:
            limits.check_bytes(header.size)
            self._prefix = pictures.tensor_header(header.tensor) if header.HasField("tensor") else b""
        except pictures.PictureError as error:
            raise place.refusal(error) from error

    @property
    def size(self) -> int:
        """The announced number of bytes."""
        return self._header.size

    @property
    def whole(self) -> bool:
        """True when every byte is here."""
        return len(self._received) == self._header.size

    def add(self, chunk: image_pb2.ImageChunk) -> None:
        """Appends a chunk.

        Raises:
            Refusal: it is not the next one, is empty, or goes past the announced size.
        """
        here = len(self._received)
        if chunk.offset != here:
            raise invalid(
                "chunk.offset", f"is {chunk.offset}, but {here} bytes of this picture came before: send chunks in order"
            )
        if not chunk.data:
            raise invalid("chunk.data", "is empty: send at least one byte")
        if here + len(chunk.data) > self._header.size:
            raise invalid(
                "chunk.data",
                f"reaches {here + len(chunk.data)} bytes, but the header announced {self._header.size}",
            )
        self._received += chunk.data

    def finish(self) -> bytes:
        """The stored form of the whole picture.

        Raises:
            Refusal: bytes are missing, or their digest is not the announced one.
        """
        if not self.whole:
            raise invalid(
                "chunk",
                f"the stream ended after {len(self._received)} of {self._header.size} announced bytes: send them all",
                "TRUNCATED",
            )
        if self._header.sha256 and hashlib.sha256(self._received).hexdigest() != self._header.sha256:
            raise invalid(f"{self._path}.sha256", "the bytes have another digest: send them again", "BAD_DIGEST")
        return self._prefix + bytes(self._received)


class Uploads:
    """Reads chunked pictures off request streams."""

    def __init__(self, settings: GatewaySettings, limits: pictures.PictureLimits) -> None:
        self._settings = settings
        self._limits = limits
        self._memory = UploadMemory(settings)

    def hold(self, size: int) -> AbstractContextManager[None]:
        """See `UploadMemory.hold`."""
        return self._memory.hold(size)

    def assembly(self, path: str, header: image_pb2.ImageHeader) -> Assembly:
        """Starts a picture; see `Assembly`."""
        return Assembly(path, header, self._limits)

    async def next(self, requests: AsyncIterator[T]) -> T | None:
        """The next message, or None at the end of the stream.

        Raises:
            Refusal: the client has been silent for too long.
        """
        seconds = self._settings.upload_timeout_seconds
        try:
            return await asyncio.wait_for(anext(requests, None), seconds)
        except TimeoutError as error:
            raise Refusal(
                code_pb2.DEADLINE_EXCEEDED,
                "UPLOAD_SILENT",
                f"no message came for upload_timeout_seconds = {seconds:g}: start again",
            ) from error

    async def read(
        self,
        requests: AsyncIterator[service_pb2.UploadImageRequest],
        admit: Callable[[int], Awaitable[None]],
        store: Callable[[PicturePath, bytes], Awaitable[T]],
    ) -> T:
        """Reads one whole upload, whose size `admit` may refuse, and stores it while its memory is held."""
        first = await self.next(requests)
        if first is None or first.WhichOneof("message") != "header":
            raise invalid("header", "the first message of an upload must be the header")
        assembly = self.assembly("header", first.header)
        await admit(assembly.size)
        with self.hold(first.header.size):
            while (request := await self.next(requests)) is not None:
                if request.WhichOneof("message") != "chunk":
                    raise invalid("header", "must come first and once: after it only chunks may come")
                assembly.add(request.chunk)
            stored = await asyncio.to_thread(assembly.finish)
            return await store(PicturePath("chunk.data", "header.tensor"), stored)
