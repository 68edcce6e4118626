"""Unusual pictures are taken end to end: stored upright, and stylised from the colours that they show.

Every file shows the same two areas. A job of strength 0 gives the content back, so its result tells
what the server has seen.
"""

import io

import numpy as np
import pytest
from gateway_support import STYLE, encoded, file_of, result_bytes, run_tiny, upload
from numpy.typing import NDArray
from PIL import Image, ImageCms

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst_calls import SHALLOW_MESSAGES

WIDTH, HEIGHT = 48, 32
LEFT, RIGHT = (200, 60, 40), (40, 90, 180)
TOLERANCE = 6.0


def shown(left: tuple[int, ...], right: tuple[int, ...]) -> NDArray[np.uint8]:
    values = np.empty((HEIGHT, WIDTH, len(left)), np.uint8)
    values[:, : WIDTH // 2], values[:, WIDTH // 2 :] = left, right
    return values


COLOUR = shown(LEFT, RIGHT)
GREY = shown((70,), (190,))[..., 0]
GREY_AS_RGB = np.repeat(GREY[..., None], 3, axis=2)


def rotated(orientation: int, turn: Image.Transpose) -> bytes:
    """A JPEG stored turned, whose EXIF says how it is to be shown."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(Image.fromarray(COLOUR).transpose(turn), "JPEG", quality=95, exif=exif)


def cmyk() -> bytes:
    inks = np.concatenate([255 - COLOUR, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=2)
    return file_of(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)


def transparent() -> bytes:
    """The left area half opaque over nothing, which shows as halfway to white."""
    return file_of(shown((*LEFT, 128), (*RIGHT, 255)))


def palette() -> bytes:
    return file_of(Image.fromarray(COLOUR).quantize(4))


def palette_without_left() -> bytes:
    """The left area's colour is declared transparent, which shows as white."""
    indexed = Image.fromarray(COLOUR).quantize(4)
    return file_of(indexed, transparency=indexed.getpixel((0, 0)))


def other_primaries() -> bytes:
    """Red and blue swapped, and an sRGB profile whose tag table swaps them back."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return file_of(np.ascontiguousarray(COLOUR[..., ::-1]), icc_profile=bytes(profile))


def sixteen_bit() -> bytes:
    return file_of(Image.fromarray(GREY.astype(np.uint16) * 257))


HALFWAY = tuple(round(value * 128 / 255 + 127) for value in LEFT)
PICTURES = {
    "RGB": (file_of(COLOUR), COLOUR),
    "grey": (file_of(GREY), GREY_AS_RGB),
    "grey JPEG": (file_of(GREY, "JPEG", quality=95), GREY_AS_RGB),
    "16-bit grey": (sixteen_bit(), GREY_AS_RGB),
    "two colours": (file_of(Image.fromarray(GREY > 128)), np.where(GREY_AS_RGB > 128, 255, 0)),
    "palette": (palette(), COLOUR),
    "palette with a transparent colour": (palette_without_left(), shown((255, 255, 255), RIGHT)),
    "half transparent": (transparent(), shown(HALFWAY, RIGHT)),
    "ICC profile": (other_primaries(), COLOUR),
    "CMYK": (cmyk(), COLOUR),
    "progressive JPEG": (file_of(COLOUR, "JPEG", quality=95, progressive=True), COLOUR),
    "lossless WebP": (file_of(COLOUR, "WEBP", lossless=True), COLOUR),
    "lossy WebP": (file_of(COLOUR, "WEBP", quality=95), COLOUR),
    "animated PNG": (
        file_of(Image.fromarray(COLOUR), save_all=True, append_images=[Image.fromarray(255 - COLOUR)]),
        COLOUR,
    ),
    "EXIF quarter turn": (rotated(6, Image.Transpose.ROTATE_90), COLOUR),
    "EXIF other quarter turn": (rotated(8, Image.Transpose.ROTATE_270), COLOUR),
    "EXIF half turn": (rotated(3, Image.Transpose.ROTATE_180), COLOUR),
    "EXIF mirrored": (rotated(2, Image.Transpose.FLIP_LEFT_RIGHT), COLOUR),
}


def seen_by_a_job(call, data: bytes) -> NDArray[np.uint8]:
    spec = job_pb2.JobSpec(
        content=image_pb2.Image(reference=upload(call, data).reference),
        styles=[job_pb2.Style(image=encoded(STYLE))],
        options=options_pb2.StylizeOptions(
            size=WIDTH, iterations=1, scales=1, strength=0, tv_weight=0, **SHALLOW_MESSAGES
        ),
    )
    last = run_tiny(call, spec)
    assert last.job_state == job_pb2.JOB_STATE_SUCCEEDED, last.error
    return np.asarray(Image.open(io.BytesIO(result_bytes(call, last.job_id))))


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_is_taken_for_what_it_shows(call, case):
    data, expected = PICTURES[case]
    answer = upload(call, data)
    assert (answer.width, answer.height) == (WIDTH, HEIGHT)
    seen = seen_by_a_job(call, data)
    assert seen.shape == (HEIGHT, WIDTH, 3)
    # Away from the edge, where JPEG and the resampling blur.
    inside = np.r_[4 : WIDTH // 2 - 4, WIDTH // 2 + 4 : WIDTH - 4]
    assert np.abs(seen[4:-4, inside].astype(float) - expected[4:-4, inside]).max() < TOLERANCE
