"""Pictures that are refused wherever they come in, and unusual ones that are taken for what they show."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from gateway_support import (
    CONTENT,
    SECONDS,
    STYLE,
    assert_invalid,
    encoded,
    file_of,
    pixels,
    upload_messages,
)

from nst.v1 import image_pb2, job_pb2
from nst.v1.style_transfer_service_pb2 import CreateJobRequest, UploadImageRequest


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header names a size that its few bytes of pixels do not have."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * 50_000 + 1))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b"")


def webp_claiming(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is of a size that it has no pixels for."""
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


NOISE = pixels(64, 64)
FILES = {
    "text": (b"This is no picture.", "PNG, JPEG or WebP"),
    "a GIF": (file_of(NOISE[..., 0], "GIF"), "PNG, JPEG or WebP"),
    "half a JPEG": (file_of(NOISE, "JPEG")[:1500], "send the whole file again"),
    "half a PNG": (file_of(NOISE)[:6000], "send the whole file again"),
    "half a WebP": (file_of(NOISE, "WEBP")[:1000], "send the whole file again"),
    "a PNG without its end": (file_of(NOISE)[:-12], "send the whole file again"),
    "a huge PNG": (png_claiming(50_000, 50_000), "max_image_pixels = 50000000"),
    "a huge WebP": (webp_claiming(16_384, 16_384), "max_image_pixels = 50000000"),
    "a long PNG": (png_claiming(20_000, 20), "max_image_side = 16384"),
    "a tiny PNG": (file_of(pixels(15, 64)), "min_image_side = 16"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_refused_when_it_is_uploaded(call, case):
    data, words = FILES[case]
    assert_invalid(
        lambda: call.making.UploadImage(upload_messages(data), timeout=SECONDS), UploadImageRequest, "chunk.data", words
    )


@pytest.mark.parametrize("case", [*FILES, "no bytes"])
def test_a_bad_file_is_refused_inside_a_job(call, case):
    data, words = {**FILES, "no bytes": (b"", "no bytes")}[case]
    spec = job_pb2.JobSpec(content=encoded(CONTENT), styles=[{"image": encoded(STYLE)}, {"image": encoded(data)}])
    request = CreateJobRequest(request_id="bad-file", spec=spec)
    assert_invalid(
        lambda: call.making.CreateJob(request, timeout=SECONDS), request, "spec.styles[1].image.encoded.data", words
    )


def peak_memory(pid: int) -> int:
    """The most bytes that a process has ever held."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def test_a_bomb_is_refused_before_it_is_decoded(server, call):
    gateway = server.status["pids"]["gateway"]
    before = peak_memory(gateway)
    for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (16_384, 3_100)):
        messages = upload_messages(png_claiming(width, height))
        assert_invalid(
            lambda messages=messages: call.making.UploadImage(messages, timeout=SECONDS),
            UploadImageRequest,
            "chunk.data",
            f"{width} x {height}",
            "max_image_pixels",
        )
    assert peak_memory(gateway) - before < 64 * 2**20


def tensor(values: np.ndarray, dtype: int = image_pb2.DATA_TYPE_FLOAT32, **replaced) -> image_pb2.Tensor:
    fields = {"dtype": dtype, "layout": image_pb2.LAYOUT_HWC, "shape": values.shape, "data": values.tobytes()}
    return image_pb2.Tensor(**{**fields, **replaced})


GREY = np.full((16, 16, 3), 0.5, np.float32)


def with_value(value: float) -> np.ndarray:
    values = GREY.copy()
    values[3, 5, 1] = value
    return values


TENSORS = {
    "nothing set": (image_pb2.Tensor(), "shape", "0 dimensions"),
    "no data": (tensor(GREY, data=b""), "data", "0 bytes"),
    "a byte too few": (tensor(GREY, data=GREY.tobytes()[:-1]), "data", "takes 3072"),
    "a byte too many": (tensor(GREY, data=GREY.tobytes() + b"0"), "data", "takes 3072"),
    "data of another dtype": (tensor(GREY, image_pb2.DATA_TYPE_FLOAT16), "data", "float16 takes 1536"),
    "NaN": (tensor(with_value(np.nan)), "data", "NaN"),
    "infinity": (tensor(with_value(np.inf)), "data", "infinity"),
    "minus infinity": (tensor(with_value(-np.inf)), "data", "infinity"),
    "half precision NaN": (tensor(with_value(np.nan).astype("<f2"), image_pb2.DATA_TYPE_FLOAT16), "data", "NaN"),
    "0 to 255 as floats": (tensor(GREY * 255), "data", "divide 0-255 values by 255"),
    "below 0": (tensor(with_value(-0.01)), "data", "from 0 to 1"),
    "no dtype": (tensor(GREY, 0), "dtype", "float32"),
    "an unknown dtype": (tensor(GREY, 99), "dtype", "float32"),
    "no layout": (tensor(GREY, layout=0), "layout", "CHW"),
    "an unknown layout": (tensor(GREY, layout=99), "layout", "CHW"),
    "the other layout": (tensor(GREY, layout=image_pb2.LAYOUT_CHW), "shape", "16 channels"),
    "two dimensions": (tensor(GREY, shape=[16, 48]), "shape", "three"),
    "four dimensions": (tensor(GREY, shape=[1, 16, 16, 3]), "shape", "three"),
    "two channels": (tensor(GREY, shape=[16, 24, 2]), "shape", "1 (grey), 3 (RGB) or 4 (RGBA)"),
    "no height": (tensor(GREY, shape=[0, 16, 3], data=b""), "shape", "min_image_side = 16"),
    "too small": (tensor(GREY, shape=[15, 16, 3]), "shape", "min_image_side = 16"),
    "too many pixels": (tensor(GREY, shape=[16_000, 16_000, 3]), "shape", "max_image_pixels = 50000000"),
    "too large for any computer": (tensor(GREY, shape=[2**32 - 1, 2**32 - 1, 3]), "shape", "max_image_pixels"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_bad_tensor_is_refused_and_its_field_named(call, case):
    image, field, words = TENSORS[case]
    request = CreateJobRequest(request_id="bad-tensor", spec=job_pb2.JobSpec(content=image_pb2.Image(tensor=image)))
    request.spec.styles.add(image=encoded(STYLE))
    assert_invalid(
        lambda: call.making.CreateJob(request, timeout=SECONDS), request, f"spec.content.tensor.{field}", words
    )
