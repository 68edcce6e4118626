"""Pictures that arrive in chunks, held in bounded memory until they are whole."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from google.rpc import code_pb2

from nst.v1 import image_pb2
from nst.v1 import style_transfer_service_pb2 as service_pb2
from nst_server import pictures
from nst_server.config import GatewaySettings
from nst_server.gateway.errors import PicturePath, Refusal, invalid
from nst_server.gateway.fields import check_digest
from nst_server.gateway.upload_memory import Part, RequestMemory, UploadMemory

T = TypeVar("T")


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

    async def add(self, chunk: image_pb2.ImageChunk, part: Part) -> None:
        """Appends a chunk once there is memory for it.

        Raises:
            Refusal: it is not the next one, is empty, or goes past the announced size; or there is no memory.
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
        await part.grow(len(chunk.data))
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


class Arrival(Generic[T]):
    """The messages of one upload after the first, which must keep coming, and the memory that their bytes hold."""

    def __init__(self, requests: AsyncIterator[T], part: Part, settings: GatewaySettings) -> None:
        self._requests = requests
        self._part = part
        self._timeout = settings.upload_timeout_seconds
        self._pace = settings.min_upload_bytes_per_second
        self._received = 0
        self._started = math.inf

    async def next(self) -> T | None:
        """The next message, or None at the end of the stream.

        Raises:
            Refusal: the client has been silent for too long, or is too slow.
        """
        allowed = self._received / self._pace if self._pace else math.inf
        left = self._started + self._timeout + allowed - asyncio.get_running_loop().time()
        if left > self._timeout:
            return await _next(self._requests, self._timeout, _silent(self._timeout))
        return await _next(self._requests, left, _slow(self._pace))

    async def add(self, assembly: Assembly, chunk: image_pb2.ImageChunk) -> None:
        """Adds a chunk to its picture; see `Assembly.add`. The client answers for no time spent waiting here."""
        loop = asyncio.get_running_loop()
        came = loop.time()
        self._started = min(self._started, came)
        await assembly.add(chunk, self._part)
        self._started += loop.time() - came
        self._received += len(chunk.data)


class Uploads:
    """Reads chunked pictures off request streams."""

    def __init__(self, settings: GatewaySettings, limits: pictures.PictureLimits, messages: RequestMemory) -> None:
        """`messages` is for chunks that wait until there is memory for them."""
        self._settings = settings
        self._limits = limits
        self._memory = UploadMemory(settings, messages)

    @contextmanager
    def arrival(self, requests: AsyncIterator[T], tenant: str, size: int) -> Iterator[Arrival[T]]:
        """What follows the first message: pictures of `size` bytes in all; see `UploadMemory.part`."""
        with self._memory.part(tenant, size) as part:
            yield Arrival(requests, part, self._settings)

    def assembly(self, path: str, header: image_pb2.ImageHeader) -> Assembly:
        """Starts a picture; see `Assembly`."""
        return Assembly(path, header, self._limits)

    async def first(self, requests: AsyncIterator[T]) -> T | None:
        """The first message, or None if the stream ends without one.

        Raises:
            Refusal: the client has been silent for too long.
        """
        seconds = self._settings.upload_timeout_seconds
        return await _next(requests, seconds, _silent(seconds))

    async def read(
        self,
        requests: AsyncIterator[service_pb2.UploadImageRequest],
        tenant: str,
        admit: Callable[[str, int], Awaitable[None]],
        store: Callable[[str, PicturePath, bytes], Awaitable[T]],
    ) -> T:
        """Reads one whole upload of a tenant, whose size `admit` may refuse, and stores it while its memory is held."""
        first = await self.first(requests)
        if first is None or first.WhichOneof("message") != "header":
            raise invalid("header", "the first message of an upload must be the header")
        assembly = self.assembly("header", first.header)
        await admit(tenant, assembly.size)
        with self.arrival(requests, tenant, assembly.size) as arrival:
            while (request := await arrival.next()) is not None:
                if request.WhichOneof("message") != "chunk":
                    raise invalid("header", "must come first and once: after it only chunks may come")
                await arrival.add(assembly, request.chunk)
            stored = await asyncio.to_thread(assembly.finish)
            return await store(tenant, PicturePath("chunk.data", "header.tensor"), stored)


async def _next(requests: AsyncIterator[T], seconds: float, late: Refusal) -> T | None:
    try:
        return await asyncio.wait_for(anext(requests, None), seconds)
    except TimeoutError as error:
        raise late from error


def _silent(seconds: float) -> Refusal:
    text = f"no message came for upload_timeout_seconds = {seconds:g}: start again"
    return Refusal(code_pb2.DEADLINE_EXCEEDED, "UPLOAD_SILENT", text)


def _slow(pace: int) -> Refusal:
    text = f"the bytes come more slowly than min_upload_bytes_per_second = {pace}: send them faster, or send fewer"
    return Refusal(code_pb2.DEADLINE_EXCEEDED, "UPLOAD_SLOW", text)
