"""Moving pictures in chunks, checked by their SHA-256."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc

from nst.v1 import image_pb2
from nst.v1.style_transfer_service_pb2 import GetResultRequest, GetResultResponse, UploadImageRequest
from nst_client.errors import NstError
from nst_client.images import ImageRef, Picture, TensorForm
from nst_client.transport import Transport

CHUNK_BYTES = 512 * 1024


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
        stored = await transport.transfer.UploadImage(
            _upload_messages(header, picture.data), metadata=transport.metadata
        )
        return ImageRef(stored.reference.sha256, stored.width, stored.height)

    return await transport.repeat(attempt)


async def download(transport: Transport, job_id: str, form: image_pb2.ImageFormat | None) -> Picture:
    """The final picture of a job that succeeded, in the form asked for (None: the one the job was made with).

    Raises:
        NstError: there is no such result, or its bytes do not have the digest that was announced.
    """

    async def attempt() -> Picture:
        request = GetResultRequest(job_id=job_id, format=form)
        return await _assemble(transport.transfer.GetResult(request, metadata=transport.metadata))

    return await transport.repeat(attempt, patient=True)


async def _upload_messages(header: image_pb2.ImageHeader, data: bytes) -> AsyncIterator[UploadImageRequest]:
    yield UploadImageRequest(header=header)
    for offset in range(0, len(data), CHUNK_BYTES):
        piece = data[offset : offset + CHUNK_BYTES]
        yield UploadImageRequest(chunk=image_pb2.ImageChunk(offset=offset, data=piece))


async def _assemble(messages: grpc.aio.UnaryStreamCall[GetResultRequest, GetResultResponse]) -> Picture:
    header = image_pb2.ImageHeader()
    data = bytearray()
    async for message in messages:
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
