"""What is no picture, or too much of one, is refused with the reason."""

import struct
import warnings

import pytest
from pictures_by_hand import noise, png_chunk, refusal, saved

from nst_server.pictures import PictureLimits, check


@pytest.mark.parametrize("codec", ["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA"])
def test_other_formats_are_refused(codec):
    error = refusal(saved(noise(20, 20), codec))
    assert error.reason == "NOT_AN_IMAGE"
    assert "PNG, JPEG or WebP" in error.message


def test_no_bytes_and_other_bytes_are_refused():
    assert refusal(b"").reason == "EMPTY"
    assert refusal(b"hello, world").reason == "NOT_AN_IMAGE"


@pytest.mark.parametrize(
    ("codec", "parameters"), [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})]
)
def test_every_cut_is_noticed(codec, parameters):
    data = saved(noise(16, 16), codec, **parameters)
    for length in range(12, len(data)):
        assert refusal(data[:length]).reason == "TRUNCATED"


def test_damaged_pixels_are_refused():
    data = bytearray(saved(noise(40, 40), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert refusal(bytes(data)).reason == "TRUNCATED"


def header_only_png(width: int, height: int) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", body) + png_chunk(b"IDAT", b"\x78\x9c")


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(saved(noise(16, 16), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data[:-40])


def webp_that_claims(width: int, height: int) -> bytes:
    data = bytearray(saved(noise(16, 16, 4), "WEBP", exif=b"Exif\0\0II*\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


@pytest.mark.parametrize("claim", [header_only_png, jpeg_that_claims, webp_that_claims])
def test_the_size_is_refused_before_anything_is_decoded(claim):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = refusal(claim(50_000, 50_000))
    assert error.reason == "TOO_MANY_PIXELS"
    assert "max_image_pixels = 50000000" in error.message
    assert "50000 x 50000" in error.message
    # The same body under a size that is allowed: what is wrong with it was not reached above.
    assert refusal(claim(100, 200)).reason == "TRUNCATED"


@pytest.mark.parametrize(("codec", "lossless"), [("VP8L", True), ("VP8 ", False)])
def test_plain_webp_headers_are_read(codec, lossless):
    data = saved(noise(30, 20), "WEBP", lossless=lossless)
    assert data[12:16] == codec.encode()
    assert check(data, PictureLimits()) == (20, 30)
    assert "20 x 30" in refusal(data, PictureLimits(max_image_pixels=599)).message
    assert check(data, PictureLimits(max_image_pixels=600)) == (20, 30)


def test_the_limits_decide_and_not_pillows_own():
    roomy = PictureLimits(max_image_pixels=10**9, max_image_side=2**24)
    error = refusal(webp_that_claims(14_000, 14_000), roomy)
    assert "bomb" not in error.message


def test_every_limit_is_named():
    data = saved(noise(20, 40), "PNG")
    cases = {
        "max_image_bytes = 100": (PictureLimits(max_image_bytes=100), "TOO_MANY_BYTES"),
        "max_image_pixels = 799": (PictureLimits(max_image_pixels=799), "TOO_MANY_PIXELS"),
        "max_image_side = 39": (PictureLimits(max_image_side=39), "SIDE_TOO_LONG"),
        "min_image_side = 21": (PictureLimits(min_image_side=21), "SIDE_TOO_SHORT"),
    }
    for text, (limits, reason) in cases.items():
        error = refusal(data, limits)
        assert error.reason == reason
        assert text in error.message
    exact = PictureLimits(max_image_bytes=len(data), max_image_pixels=800, max_image_side=40, min_image_side=20)
    assert check(data, exact) == (40, 20)
