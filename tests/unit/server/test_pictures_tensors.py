"""Tensors become the right values, or the right refusal."""

import hashlib

import numpy as np
import pytest
import torch
from pictures_by_hand import noise, refusal

from nst.v1 import image_pb2
from nst_server.pictures import (
    PictureError,
    PictureLimits,
    check,
    check_mask,
    decode,
    decode_mask,
    digest,
    stored_bytes,
    tensor_header,
)

LIMITS = PictureLimits()
DTYPES = {
    "uint8": image_pb2.DATA_TYPE_UINT8,
    "float16": image_pb2.DATA_TYPE_FLOAT16,
    "bfloat16": image_pb2.DATA_TYPE_BFLOAT16,
    "float32": image_pb2.DATA_TYPE_FLOAT32,
}


def tensor(values: np.ndarray, dtype: str = "", layout: str = "HWC") -> image_pb2.Tensor:
    return image_pb2.Tensor(
        dtype=DTYPES[dtype or values.dtype.name],
        layout=image_pb2.Layout.Value(f"LAYOUT_{layout}"),
        shape=values.shape,
        data=np.ascontiguousarray(values).tobytes(),
    )


def fractions(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(8).random((height, width, channels), np.float32)


def test_the_stored_form_is_the_contracts():
    values = fractions(240, 320)
    stored = stored_bytes(tensor(values))
    assert stored == b"nst-tensor/1 float32 HWC 240,320,3\n" + values.astype("<f4").tobytes()
    assert digest(stored) == hashlib.sha256(stored).hexdigest()
    header = image_pb2.TensorHeader(dtype=DTYPES["bfloat16"], layout=image_pb2.LAYOUT_CHW, shape=[1, 16, 4294967295])
    assert tensor_header(header) == b"nst-tensor/1 bfloat16 CHW 1,16,4294967295\n"


def test_a_file_is_stored_as_it_is():
    assert stored_bytes(image_pb2.EncodedImage(data=b"anything")) == b"anything"


def test_bytes_stay_bytes():
    pixels = noise(20, 30)
    for layout, values in (("HWC", pixels), ("CHW", pixels.transpose(2, 0, 1))):
        stored = stored_bytes(tensor(values, layout=layout))
        assert check(stored, LIMITS) == (30, 20)
        read = decode(memoryview(stored), LIMITS)
        assert read.dtype == np.uint8
        assert read.flags.writeable
        assert read.flags.c_contiguous
        assert np.array_equal(read, pixels)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_floats_are_read_as_torch_reads_them(dtype, layout):
    reference = torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(9)).to(getattr(torch, dtype))
    reference[0, 0] = torch.tensor([0.0, 1.0, 0.5])
    ordered = (reference if layout == "HWC" else reference.permute(2, 0, 1)).contiguous()
    form = image_pb2.Tensor(
        dtype=DTYPES[dtype],
        layout=image_pb2.Layout.Value(f"LAYOUT_{layout}"),
        shape=ordered.shape,
        data=ordered.view(torch.uint8).numpy().tobytes(),
    )
    stored = stored_bytes(form)
    assert check(stored, LIMITS) == (30, 20)
    read = decode(stored, LIMITS)
    assert read.dtype == np.float32
    assert read.flags.writeable
    assert read.flags.c_contiguous
    assert np.array_equal(read, reference.float().numpy())


def test_grey_becomes_three_channels():
    pixels, floats = noise(20, 30, 1), fractions(20, 30, 1)
    assert np.array_equal(decode(stored_bytes(tensor(pixels)), LIMITS), np.concatenate([pixels] * 3, axis=2))
    assert np.array_equal(decode(stored_bytes(tensor(floats)), LIMITS), np.concatenate([floats] * 3, axis=2))


def test_alpha_is_composited_over_white():
    pixels = noise(20, 30, 4)
    share = pixels[..., 3:].astype(float) / 255
    expected = np.round(pixels[..., :3] * share + 255 * (1 - share))
    assert np.array_equal(decode(stored_bytes(tensor(pixels)), LIMITS), expected)
    floats = fractions(20, 30, 4)
    wanted = floats[..., :3].astype(float) * floats[..., 3:] + (1 - floats[..., 3:].astype(float))
    read = decode(stored_bytes(tensor(floats)), LIMITS)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, wanted, atol=1e-6)
    assert read.min() >= 0
    assert read.max() <= 1


@pytest.mark.parametrize("shape", [[], [20], [20, 30], [1, 20, 30, 3]])
def test_dimensions_other_than_three_are_refused(shape):
    with pytest.raises(PictureError, match=f"shape has {len(shape)} dimensions") as caught:
        tensor_header(image_pb2.TensorHeader(dtype=DTYPES["uint8"], layout=image_pb2.LAYOUT_HWC, shape=shape))
    assert (caught.value.reason, caught.value.field) == ("BAD_TENSOR", "shape")


@pytest.mark.parametrize("dtype", [0, 5, 99])
def test_unknown_element_types_are_refused(dtype):
    form = image_pb2.Tensor(dtype=dtype, layout=image_pb2.LAYOUT_HWC, shape=[20, 30, 3])
    with pytest.raises(PictureError, match="float16, bfloat16, float32") as caught:
        stored_bytes(form)
    assert (caught.value.reason, caught.value.field) == ("UNKNOWN_DTYPE", "dtype")


@pytest.mark.parametrize("layout", [0, 3])
def test_unknown_layouts_are_refused(layout):
    form = image_pb2.Tensor(dtype=DTYPES["uint8"], layout=layout, shape=[20, 30, 3])
    with pytest.raises(PictureError, match="HWC, CHW") as caught:
        stored_bytes(form)
    assert (caught.value.reason, caught.value.field) == ("UNKNOWN_LAYOUT", "layout")


@pytest.mark.parametrize("channels", [0, 2, 5, 640])
def test_channel_counts_other_than_grey_rgb_and_rgba_are_refused(channels):
    error = refusal(stored_bytes(tensor(np.zeros((20, 30, channels), np.uint8))))
    assert (error.reason, error.field) == ("BAD_TENSOR", "shape")
    assert f"{channels} channels" in error.message


def test_a_swapped_layout_is_named():
    error = refusal(stored_bytes(tensor(noise(20, 30).transpose(2, 0, 1), layout="HWC")))
    assert error.reason == "BAD_TENSOR"
    assert "HWC" in error.message
    assert "layout" in error.message


@pytest.mark.parametrize("size", [0, 1, 1799, 1801, 7200])
def test_data_that_does_not_fit_the_shape_is_refused(size):
    error = refusal(b"nst-tensor/1 uint8 HWC 20,30,3\n" + bytes(size))
    assert (error.reason, error.field) == ("BAD_TENSOR", "data")
    assert f"data has {size} bytes" in error.message
    assert "takes 1800" in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("position", [0, 700, -1])
def test_values_that_are_no_numbers_are_refused(value, dtype, position):
    values = torch.full((20, 30, 3), 0.5)
    values.view(-1)[position] = value
    data = values.to(getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()
    assert refusal(f"nst-tensor/1 {dtype} HWC 20,30,3\n".encode() + data).reason == "NOT_FINITE"


@pytest.mark.parametrize("value", [-0.001, 1.001, 255.0])
def test_values_outside_0_to_1_are_refused(value):
    values = fractions(20, 30)
    values[7, 8, 1] = value
    error = refusal(stored_bytes(tensor(values)))
    assert (error.reason, error.field) == ("OUT_OF_RANGE", "data")
    assert f"{value:g}" in error.message
    assert "divide" in error.message


def test_absurd_dimensions_are_refused_by_the_header():
    largest = 2**32 - 1
    for shape in ([largest, largest, 3], [largest, largest, largest], [2**16, 2**16, 4], [0, 0, 3], [0, 4, 3]):
        form = image_pb2.Tensor(dtype=DTYPES["float32"], layout=image_pb2.LAYOUT_HWC, shape=shape)
        assert refusal(stored_bytes(form)).reason in ("TOO_MANY_PIXELS", "BAD_TENSOR", "SIDE_TOO_SHORT")
    form = image_pb2.Tensor(dtype=DTYPES["uint8"], layout=image_pb2.LAYOUT_CHW, shape=[3, 50_000, 50_000])
    assert "max_image_pixels = 50000000" in refusal(stored_bytes(form)).message


def test_limits_hold_for_tensors():
    stored = stored_bytes(tensor(noise(20, 40)))
    assert refusal(stored, PictureLimits(max_image_bytes=len(stored) - 1)).reason == "TOO_MANY_BYTES"
    too_long = refusal(stored, PictureLimits(max_image_side=39))
    assert (too_long.reason, too_long.field) == ("SIDE_TOO_LONG", "shape")
    assert refusal(stored, PictureLimits(min_image_side=21)).reason == "SIDE_TOO_SHORT"
    assert check(stored, PictureLimits(max_image_bytes=len(stored))) == (40, 20)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"nst-tensor/1 float64 HWC 20,30,3\n", "UNKNOWN_DTYPE"),
        (b"nst-tensor/1 uint8 WHC 20,30,3\n", "UNKNOWN_LAYOUT"),
        (b"nst-tensor/1 uint8 HWC 20,30\n", "BAD_TENSOR"),
        (b"nst-tensor/1 uint8 HWC 020,30,3\n", "BAD_TENSOR"),
        (b"nst-tensor/1 uint8 HWC -20,30,3\n", "BAD_TENSOR"),
        (b"nst-tensor/1 uint8 HWC 20,30,3", "BAD_TENSOR"),
        (b"nst-tensor/1 ", "BAD_TENSOR"),
        (b"nst-tensor/2 uint8 HWC 20,30,3\n", "NOT_AN_IMAGE"),
    ],
)
def test_malformed_header_lines_are_refused(header, reason):
    assert refusal(header + bytes(1800)).reason == reason


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_mask_is_the_mean_of_its_channels(dtype: str):
    values = np.random.default_rng(3).random((17, 19, 3), dtype=np.float32)
    if dtype == "uint8":
        values = np.round(values * 255).astype(np.uint8)
    mask = decode_mask(stored_bytes(tensor(values)), LIMITS)
    assert (mask.shape, mask.dtype) == ((17, 19), np.float32)
    expected = values.astype(np.float64).mean(2) / (255 if dtype == "uint8" else 1)
    assert np.abs(mask - expected).max() < 1e-6


def test_a_mask_that_marks_nothing_is_refused():
    values = np.zeros((16, 16, 1), np.uint8)
    with pytest.raises(PictureError) as caught:
        decode_mask(stored_bytes(tensor(values)), LIMITS)
    assert caught.value.reason == "EMPTY_MASK"


@pytest.mark.parametrize("values", [np.ones((16, 16, 1), np.uint8), np.full((16, 16, 1), 0.09, np.float32)])
def test_a_mask_of_zeros_and_ones_is_not_taken_for_black(values: np.ndarray):
    with pytest.raises(PictureError, match="make white what it marks: 255"):
        check_mask(stored_bytes(tensor(values)), LIMITS)
    assert decode_mask(stored_bytes(tensor(values)), LIMITS).max() < 0.1, "a job that has it goes on"
    values[3, 4] = 30 if values.dtype == np.uint8 else 0.12
    check_mask(stored_bytes(tensor(values)), LIMITS)
