"""Pixels come back in the form that was asked for."""

import io

import numpy as np
import pytest
import torch
from pictures_by_hand import gradient, noise
from PIL import Image

from nst.v1 import image_pb2
from nst_server.pictures import (
    PictureError,
    PictureLimits,
    check_format,
    decode,
    encode,
    encode_png,
    shrink,
    stored_bytes,
)


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def encoded(codec: int, quality: int | None = None) -> image_pb2.ImageFormat:
    return image_pb2.ImageFormat(encoded=image_pb2.EncodedFormat(codec=codec, quality=quality))


def as_tensor(dtype: int, layout: int = image_pb2.LAYOUT_HWC) -> image_pb2.ImageFormat:
    return image_pb2.ImageFormat(tensor=image_pb2.TensorFormat(dtype=dtype, layout=layout))


@pytest.mark.parametrize("form", [image_pb2.ImageFormat(), encoded(0), encoded(image_pb2.CODEC_PNG)])
def test_png_is_lossless_and_the_default(form):
    pixels = noise(20, 30)
    picture = opened(encode(pixels, form).encoded.data)
    assert picture.format == "PNG"
    assert np.array_equal(np.asarray(picture), pixels)


def test_encode_png():
    pixels = noise(20, 30)
    picture = opened(encode_png(pixels))
    assert picture.format == "PNG"
    assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize(("codec", "name"), [(image_pb2.CODEC_JPEG, "JPEG"), (image_pb2.CODEC_WEBP, "WEBP")])
def test_lossy_files_follow_the_quality(codec, name):
    pixels = gradient(64, 80)
    fine, plain, coarse = (encode(pixels, encoded(codec, quality)).encoded.data for quality in (100, None, 5))
    for data in (fine, plain):
        assert opened(data).format == name
        assert np.abs(np.asarray(opened(data)).astype(int) - pixels).mean() < 3
    assert len(coarse) < len(plain) < len(fine)


@pytest.mark.parametrize("layout", [image_pb2.LAYOUT_HWC, image_pb2.LAYOUT_CHW])
@pytest.mark.parametrize("name", ["UINT8", "FLOAT16", "BFLOAT16", "FLOAT32"])
def test_tensors_are_what_torch_would_write(name, layout):
    pixels = noise(20, 30)
    # Every level once, so that every rounding is seen.
    pixels.reshape(-1)[:256] = np.arange(256)
    form = as_tensor(image_pb2.DataType.Value(f"DATA_TYPE_{name}"), layout)
    image = encode(pixels, form)
    reference = torch.from_numpy(pixels)
    if name != "UINT8":
        reference = (reference.float() / 255).to(getattr(torch, name.lower()))
    if layout == image_pb2.LAYOUT_CHW:
        reference = reference.permute(2, 0, 1)
    assert (image.tensor.dtype, image.tensor.layout) == (form.tensor.dtype, layout)
    assert list(image.tensor.shape) == list(reference.shape)
    assert image.tensor.data == reference.contiguous().view(torch.uint8).numpy().tobytes()
    read = decode(stored_bytes(image.tensor), PictureLimits())
    expected = reference.permute(1, 2, 0) if layout == image_pb2.LAYOUT_CHW else reference
    assert np.array_equal(read, expected.to(torch.uint8 if name == "UINT8" else torch.float32).numpy())


@pytest.mark.parametrize(
    ("shape", "max_size", "expected"),
    [((60, 100), 50, (30, 50)), ((100, 60), 50, (50, 30)), ((60, 100), 100, (60, 100)), ((16, 300), 4, (1, 4))],
)
def test_previews_are_shrunk_and_never_enlarged(shape, max_size, expected):
    assert shrink(gradient(*shape), max_size).shape == (*expected, 3)


def test_shrinking_keeps_the_picture():
    blocks = gradient(64, 96).reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrink(gradient(64, 96), 48) - blocks).max() < 3


def test_strided_pixels_are_taken():
    pixels = noise(20, 30)[::2, ::-1]
    assert np.array_equal(np.asarray(opened(encode_png(pixels))), pixels)


@pytest.mark.parametrize(
    ("form", "reason", "named"),
    [
        (encoded(9), "UNKNOWN_CODEC", "PNG, JPEG, WEBP"),
        (encoded(image_pb2.CODEC_PNG, 90), "BAD_QUALITY", "leave quality unset"),
        (encoded(0, 90), "BAD_QUALITY", "leave quality unset"),
        (encoded(image_pb2.CODEC_JPEG, 0), "BAD_QUALITY", "from 1 to 100"),
        (encoded(image_pb2.CODEC_JPEG, 101), "BAD_QUALITY", "101"),
        (encoded(image_pb2.CODEC_WEBP, 4_000_000_000), "BAD_QUALITY", "4000000000"),
        (as_tensor(0), "UNKNOWN_DTYPE", "uint8"),
        (as_tensor(77), "UNKNOWN_DTYPE", "77"),
        (as_tensor(image_pb2.DATA_TYPE_UINT8, 0), "UNKNOWN_LAYOUT", "CHW"),
        (as_tensor(image_pb2.DATA_TYPE_UINT8, 7), "UNKNOWN_LAYOUT", "7"),
    ],
)
def test_forms_that_do_not_exist_are_refused(form, reason, named):
    for call in (lambda: check_format(form), lambda: encode(noise(20, 20), form)):
        with pytest.raises(PictureError) as caught:
            call()
        assert caught.value.reason == reason
        assert caught.value.field == reason.rpartition("_")[2].lower()
        assert named in caught.value.message


@pytest.mark.parametrize("quality", [1, 100, None])
def test_forms_that_exist_are_taken(quality):
    check_format(encoded(image_pb2.CODEC_JPEG, quality))
    check_format(encoded(image_pb2.CODEC_WEBP, quality))
