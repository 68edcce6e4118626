"""Whatever the bytes are: a picture or a PictureError, and `check` and `decode` of one mind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_by_hand import icc_profile, noise, saved
from PIL import Image

from nst_server.pictures import PictureError, PictureLimits, check, decode

LIMITS = PictureLimits(max_image_bytes=100_000, max_image_pixels=100_000)
PROFILE = icc_profile((0.4, 0.2, 0.1), (0.4, 0.7, 0.1), (0.1, 0.1, 0.7))
EXIF = Image.Exif()
EXIF[0x0112] = 6
VALID = [
    saved(noise(17, 19), "PNG", icc_profile=PROFILE, exif=EXIF),
    saved(noise(17, 19, 4), "PNG"),
    saved(Image.fromarray(noise(17, 19)).quantize(16), "PNG", transparency=3),
    saved(Image.fromarray(noise(17, 19)), "PNG", save_all=True, append_images=[Image.fromarray(noise(17, 19))]),
    saved(noise(17, 19), "JPEG", icc_profile=PROFILE, exif=EXIF),
    saved(noise(17, 19), "JPEG", progressive=True),
    saved(noise(17, 19), "WEBP", icc_profile=PROFILE, exif=EXIF),
    saved(noise(17, 19, 4), "WEBP", lossless=True),
    b"nst-tensor/1 uint8 HWC 17,19,3\n" + noise(17, 19).tobytes(),
    b"nst-tensor/1 bfloat16 CHW 3,17,19\n" + (noise(17, 19).astype("<u2") + 0x3E00).tobytes(),
]
MAGICS = [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff\xe0", b"RIFF\xff\0\0\0WEBPVP8", b"nst-tensor/1 "]


def outcome(call, data: bytes) -> tuple[int, int] | str:
    try:
        result = call(data, LIMITS)
    except PictureError as error:
        return error.reason
    if isinstance(result, np.ndarray):
        assert result.ndim == 3
        assert result.shape[2] == 3
        return result.shape[1], result.shape[0]
    return result


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["set", "cut", "drop", "insert"]))
        if kind == "set":
            data[start : start + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del data[start:]
        elif kind == "drop":
            del data[start : start + draw(st.integers(1, 40))]
        else:
            data[start:start] = draw(st.binary(min_size=1, max_size=40))
    return bytes(data)


def test_the_seeds_are_valid():
    assert {outcome(check, data) for data in VALID} == {(19, 17), (17, 19)}


@pytest.mark.filterwarnings("ignore:::PIL")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(mutated())
def test_mutated_files(data):
    assert outcome(check, data) == outcome(decode, data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([b"", *MAGICS]), st.binary(max_size=200))
def test_random_bytes(magic, data):
    assert outcome(check, magic + data) == outcome(decode, magic + data)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=60), st.integers(0, len(PROFILE)))
def test_mutated_profiles(patch, start):
    profile = PROFILE[:start] + patch + PROFILE[start + len(patch) :]
    assert outcome(decode, saved(noise(17, 19), "PNG", icc_profile=profile)) == (19, 17)
