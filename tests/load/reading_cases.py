"""Cases for the code that reads what clients send, called directly: each raises only what a client is told."""

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any

import numpy as np
from gateway_support import CONTENT, STYLE, file_of, pixels, tiny_spec
from PIL import Image
from random_messages import Fuzz

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst.v1 import job_service_pb2 as jobs_pb2
from nst.v1 import style_transfer_service_pb2 as making_pb2
from nst_server import pictures
from nst_server.config import GatewaySettings
from nst_server.gateway.calls import _parser
from nst_server.gateway.errors import Refusal, as_refusal
from nst_server.gateway.fields import check_digest, check_form, check_request_id
from nst_server.gateway.job_service import _decoded
from nst_server.gateway.quotas import PictureQuota
from nst_server.gateway.specs import SpecReader
from nst_server.gateway.upload_memory import RequestMemory
from nst_server.gateway.uploads import Uploads
from nst_server.options import options_from_proto, options_to_proto
from nst_server.pictures import PictureError, PictureLimits

LIMITS = PictureLimits(max_image_bytes=100_000, max_image_pixels=100_000)
SETTINGS = GatewaySettings(max_image_bytes=100_000, max_image_pixels=100_000, max_upload_bytes=400_000)
# gRPC drops a status that is larger.
LARGEST_STATUS = 8000
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

REQUESTS = (
    making_pb2.UploadImageRequest,
    making_pb2.CreateJobRequest,
    making_pb2.StylizeRequest,
    making_pb2.GetResultRequest,
    making_pb2.GetServerInfoRequest,
    jobs_pb2.GetJobRequest,
    jobs_pb2.ListJobsRequest,
    jobs_pb2.WatchJobRequest,
    jobs_pb2.UpdateJobRequest,
    jobs_pb2.CancelJobRequest,
    jobs_pb2.DeleteJobRequest,
)


@cache
def picture_files() -> tuple[bytes, ...]:
    """Small picture files of every kind that is read, and of some that are not."""
    colours, opaque = (
        Image.fromarray(pixels(19, 17)),
        Image.fromarray(np.dstack([pixels(19, 17), pixels(19, 17)[..., :1]])),
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = colours.convert("L")
    deep = Image.fromarray(np.arange(17 * 19, dtype=np.uint16).reshape(17, 19) * 200)
    files = [CONTENT, STYLE]
    files += [file_of(picture) for picture in (colours, opaque, grey, grey.convert("1"), deep, opaque.convert("LA"))]
    files += [file_of(colours.quantize(16), transparency=3), file_of(grey, transparency=7), file_of(colours, exif=exif)]
    files += [file_of(colours, save_all=True, append_images=[grey.convert("RGB")])]
    files += [file_of(colours, "JPEG", exif=exif), file_of(colours, "JPEG", progressive=True), file_of(grey, "JPEG")]
    files += [
        file_of(colours.convert("CMYK"), "JPEG"),
        file_of(colours, "WEBP"),
        file_of(opaque, "WEBP", lossless=True),
    ]
    files += [file_of(colours, "WEBP", save_all=True, append_images=[grey.convert("RGB")])]
    files += [file_of(colours, form) for form in ("GIF", "TIFF", "BMP", "PPM", "ICO")]
    files += [b"nst-tensor/1 uint8 HWC 17,19,3\n" + bytes(17 * 19 * 3)]
    files += [b"nst-tensor/1 float16 CHW 4,17,19\n" + pixels(19, 17).tobytes()[: 17 * 19] * 8]
    return tuple(files)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums that they should, so that damage gets past them."""
    if not data.startswith(PNG_MAGIC):
        return data
    fixed, position = bytearray(data), len(PNG_MAGIC)
    while position + 12 <= len(data):
        end = position + 8 + struct.unpack_from(">I", data, position)[0]
        if end + 4 > len(data):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


def damaged_pictures(fuzz: Fuzz) -> None:
    """A damaged file is a picture for `check` and `decode` alike, or a PictureError for both."""
    data = fuzz.data()
    if fuzz.rng.random() < 0.5:
        data = with_checksums(data)
    seen: list[Any] = []
    for read in (pictures.check, pictures.decode):
        try:
            answer = read(data, LIMITS)
        except PictureError as error:
            seen.append(error.reason)
        else:
            seen.append(answer if isinstance(answer, tuple) else (answer.shape[1], answer.shape[0]))
    assert seen[0] == seen[1], f"check says {seen[0]}, decode {seen[1]}"
    if isinstance(seen[0], str):
        raise PictureError(seen[0], "as both say")


def tensors(fuzz: Fuzz) -> None:
    """A tensor's form and data agree, or are refused."""
    rng, tensor = fuzz.rng, fuzz.message(image_pb2.Tensor)
    if rng.random() < 0.8:
        shape = [rng.choice((1, 3, 4, 16, 17, 40)) for _ in range(3)]
        tensor = image_pb2.Tensor(dtype=rng.randint(1, 4), layout=rng.randint(1, 2), shape=shape)
        size = int(np.prod(shape)) * (1, 2, 2, 4)[tensor.dtype - 1]
        floats = np.full(size // 2 + 1, rng.choice((0.0, 0.5, 1.0, np.nan, np.inf, -1.0)), "<f2")
        tensor.data = rng.choice(
            (bytes(size), floats.tobytes()[:size], rng.randbytes(max(0, size + rng.choice((-1, 0, 1)))))
        )
    values = pictures.decode(pictures.stored_bytes(tensor), LIMITS)
    assert values.dtype == np.uint8 or (values.min() >= 0 and values.max() <= 1)


def encodings(fuzz: Fuzz) -> None:
    """A form that is allowed can be made."""
    form = fuzz.message(image_pb2.ImageFormat)
    check_form("format", form)
    pictures.encode(pixels(17, 16), form)


def options(fuzz: Fuzz) -> None:
    """Options that are taken come out again as they went in."""
    taken = options_from_proto(fuzz.message(options_pb2.StylizeOptions))
    assert options_from_proto(options_to_proto(taken)) == taken


def specs(fuzz: Fuzz) -> None:
    """A spec that is taken is stored with every picture a reference."""
    asked = tiny_spec()
    asked.MergeFrom(fuzz.message(job_pb2.JobSpec))
    if fuzz.rng.random() < 0.5:
        asked = tiny_spec()
        asked.options.MergeFrom(fuzz.message(options_pb2.StylizeOptions))
    store = _Store()
    reader = _reader(store)
    spec = asyncio.run(reader.complete("tenant", asked, reader.check(asked), {"photo": CONTENT}))
    assert spec.content.reference.sha256 in store.kept
    assert options_from_proto(spec.options)
    spec.SerializeToString()


def updates(fuzz: Fuzz) -> None:
    """An update that is taken leaves options that are allowed."""
    job = job_pb2.Job(job_id="job", spec=tiny_spec(styles=fuzz.rng.randint(1, 3)))
    if fuzz.rng.random() < 0.5:
        job.spec.options.strength = 0.5
    _reader(_Store()).check_update(job, fuzz.message(job_pb2.JobUpdate))


def names(fuzz: Fuzz) -> None:
    """Names and tokens of all sorts."""
    check = fuzz.rng.choice((_decoded, check_request_id, lambda text: check_digest("sha256", text)))
    check(fuzz.text())


def uploads(fuzz: Fuzz) -> None:
    """Messages of an upload in any order."""
    data = fuzz.data()[:5000]
    header = making_pb2.UploadImageRequest(
        header={"size": len(data) + fuzz.rng.choice((0, 0, 0, 1, -1)) if data else 0}
    )
    messages = [header, *_chunks(fuzz, data)]
    for _ in range(fuzz.rng.choice((0, 0, 1, 2))):
        odd = fuzz.message(making_pb2.UploadImageRequest) if fuzz.rng.random() < 0.5 else fuzz.rng.choice(messages)
        messages.insert(fuzz.rng.randint(0, len(messages)), odd)
    if fuzz.rng.random() < 0.2:
        fuzz.rng.shuffle(messages)
    asyncio.run(_upload(messages))


def _chunks(fuzz: Fuzz, data: bytes) -> list[making_pb2.UploadImageRequest]:
    chunks, offset = [], 0
    while offset < len(data):
        piece = data[offset : offset + fuzz.rng.randint(1, 3000)]
        chunks.append(making_pb2.UploadImageRequest(chunk={"offset": offset, "data": piece}))
        offset += len(piece)
    return chunks


async def _upload(messages: list[making_pb2.UploadImageRequest]) -> None:
    async def requests() -> AsyncIterator[making_pb2.UploadImageRequest]:
        for message in messages:
            yield message

    store = _Store()

    async def admitted(tenant: str, size: int) -> None:
        return

    uploads = Uploads(SETTINGS, LIMITS, RequestMemory(SETTINGS))
    digest, _, _ = await uploads.read(requests(), "tenant", admitted, _reader(store).store)
    assert digest in store.kept


def wire_bytes(fuzz: Fuzz) -> None:
    """Damaged bytes of a request are a message or malformed."""
    kind = fuzz.rng.choice(REQUESTS)
    data = fuzz.message(kind).SerializeToString()
    if fuzz.rng.random() < 0.8:
        data = fuzz.damaged(data)
    _parser(kind.FromString)(data).SerializeToString()


class _Store:
    """Holds pictures as the store would."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def put(self, data: bytes, admit: Callable[[int], Awaitable[None]]) -> str:
        digest = pictures.digest(data)
        self.kept[digest] = bytes(data)
        return digest

    async def keep(self, digest: str) -> bool:
        return digest in self.kept

    async def size(self) -> int:
        return 0

    async def get(self, digest: str) -> bytes:
        return self.kept[digest]


def _reader(store: _Store) -> SpecReader:
    def stored(tenant: str) -> _Store:
        return store

    return SpecReader(stored, PictureQuota(stored, SETTINGS), SETTINGS, LIMITS)  # type: ignore[arg-type]


CASES: dict[str, Callable[[Fuzz], None]] = {
    case.__name__: case
    for case in (damaged_pictures, tensors, encodings, options, specs, updates, names, uploads, wire_bytes)
}


def run_case(kind: str, fuzz: Fuzz) -> str:
    """The reason that the case is refused for, "" when it is taken.

    Raises:
        Exception: whatever a client must not cause.
    """
    try:
        CASES[kind](fuzz)
    except PictureError as error:
        return error.reason
    except Exception as error:
        refusal = as_refusal(error)
        if refusal is None:
            raise
        return _told(refusal)
    return ""


def _told(refusal: Refusal) -> str:
    size = refusal.status().ByteSize()
    assert size < LARGEST_STATUS, f"the status has {size} bytes"
    return refusal.reason
