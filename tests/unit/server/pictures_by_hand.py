"""Picture files and profiles put together byte by byte, so that tests know what is in them; and refusals."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nst_server.pictures import PictureError, PictureLimits, check, decode

LIMITS = PictureLimits()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(size: tuple[int, int], depth: int, colour_type: int, rows: list[bytes], *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of packed rows (without filter bytes); `extra` chunks go before the pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def saved(picture: Image.Image | np.ndarray, codec: str, **parameters: object) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, codec, **parameters)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    """Smooth enough for a lossy codec to keep within a few levels, and different in every corner."""
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    planes = [40 + 180 * rows + 0 * columns, 20 + 200 * columns + 0 * rows, 60 + 60 * rows + 90 * columns]
    return np.stack(planes, axis=2).round().astype(np.uint8)


def icc_profile(red: tuple, green: tuple, blue: tuple, kind: bytes = b"RGB ") -> bytes:
    """A version 2 matrix profile (ICC.1:2001-04): D50 XYZ primaries and the sRGB tone curve."""
    levels = np.linspace(0, 1, 1024)
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + (linear * 65535).round().astype(">u2").tobytes()
    tags = {
        b"rXYZ": _xyz(red),
        b"gXYZ": _xyz(green),
        b"bXYZ": _xyz(blue),
        b"wtpt": _xyz((0.9642, 1.0, 0.8249)),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
    }
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += padded
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02100000, b"mntr", kind, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


def refusal(data: bytes, limits: PictureLimits = LIMITS) -> PictureError:
    """The error with which both `check` and `decode` refuse, for the same reason."""
    with pytest.raises(PictureError) as caught:
        check(data, limits)
    with pytest.raises(PictureError) as also:
        decode(data, limits)
    assert also.value.reason == caught.value.reason
    return caught.value
