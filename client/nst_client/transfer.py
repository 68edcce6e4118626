"""Moving pictures in chunks, checked by their SHA-256."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import grpc

from nst.v1 import image_pb2
from nst.v1.style_transfer_service_pb2 import GetResultRequest, GetResultResponse, UploadImageRequest
from nst_client.errors import NstError
from nst_client.images import ImageRef, Picture, TensorForm
from nst_client.transport import Transport

CHUNK_BYTES = 512 * 1024
# More than the minute for which a server lets an upload wait for memory, unless that is set otherwise.
_SILENCE_SECONDS = 120.0


async def upload(transport: Transport, picture: Picture) -> ImageRef:
    """Store a picture on the server. The same bytes are stored once, so a broken upload starts over.

    Raises:
        NstError: the server refused it or stayed away.
    """
    digest = await asyncio.to_thread(_sha256, picture.data)
    header = image_pb2.ImageHeader(
        size=len(picture.data),
        sha256=digest,
        tensor=picture.tensor.to_proto() if picture.tensor else None,
    )

    async def attempt() -> ImageRef:
        async with _unless_silent() as moved:
            messages = _upload_messages(header, picture.data, moved)
            stored = await transport.transfer.UploadImage(messages, metadata=transport.metadata)
        return ImageRef(stored.reference.sha256, stored.width, stored.height)

    return await transport.repeat(attempt)


async def download(transport: Transport, job_id: str, form: image_pb2.ImageFormat | None) -> Picture:
    """The final picture of a job that succeeded, in the form asked for (None: the one the job was made with).

    Raises:
        NstError: there is no such result, or its bytes do not have the digest that was announced.
    """

    async def attempt() -> Picture:
        request = GetResultRequest(job_id=job_id, format=form)
        async with _unless_silent() as moved:
            return await _assemble(transport.transfer.GetResult(request, metadata=transport.metadata), moved)

    return await transport.repeat(attempt, patient=True)


@asynccontextmanager
async def _unless_silent() -> AsyncIterator[Callable[[], None]]:
    """What to call whenever something has moved. Raises TimeoutError once nothing has for too long."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_SILENCE_SECONDS) as timeout:

        def moved() -> None:
            with suppress(RuntimeError):  # the call has ended, and gRPC still takes chunks
                timeout.reschedule(loop.time() + _SILENCE_SECONDS)

        yield moved


async def _upload_messages(
    header: image_pb2.ImageHeader, data: bytes, moved: Callable[[], None]
) -> AsyncIterator[UploadImageRequest]:
    yield UploadImageRequest(header=header)
    for offset in range(0, len(data), CHUNK_BYTES):
        moved()
        piece = data[offset : offset + CHUNK_BYTES]
        yield UploadImageRequest(chunk=image_pb2.ImageChunk(offset=offset, data=piece))


async def _assemble(
    messages: grpc.aio.UnaryStreamCall[GetResultRequest, GetResultResponse], moved: Callable[[], None]
) -> Picture:
    header = image_pb2.ImageHeader()
    data = bytearray()
    async for message in messages:
        moved()
        if message.HasField("header"):
            header = message.header.image
        elif message.chunk.offset == len(data):
            data += message.chunk.data
        else:
            raise _damaged(f"a chunk for byte {message.chunk.offset} came at byte {len(data)}")
    if len(data) != header.size or (header.sha256 and await asyncio.to_thread(_sha256, data) != header.sha256):
        raise _damaged(f"{len(data)} bytes came that do not match the announced size {header.size} or digest")
    return Picture(bytes(data), TensorForm.from_proto(header.tensor) if header.HasField("tensor") else None)


def _damaged(what: str) -> NstError:
    return NstError(grpc.StatusCode.DATA_LOSS, f"the result was damaged on its way: {what}. Fetch it again")


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
