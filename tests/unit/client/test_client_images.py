"""Every form of a picture becomes the bytes that the contract describes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from nst.v1 import image_pb2
from nst_client.images import Picture, TensorForm, to_picture

WIDTH, HEIGHT = 5, 7
_random = np.random.default_rng(7)
RGB = _random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
RGBA = _random.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
GREY = _random.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
GREY16 = _random.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
UNIT = _random.random((HEIGHT, WIDTH, 3))


def decoded(picture: Picture) -> Image.Image:
    """The picture in a file's bytes, read by Pillow alone."""
    assert picture.tensor is None
    return Image.open(io.BytesIO(picture.data))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RGB),
        Image.fromarray(RGBA),
        Image.fromarray(GREY),
        Image.fromarray(GREY16),
        Image.fromarray(GREY).convert("1"),
        Image.fromarray(RGBA).convert("LA"),
        Image.fromarray(RGB).quantize(16),
    ],
    ids=lambda image: image.mode,
)
def test_pil_pictures_travel_without_loss(image: Image.Image) -> None:
    received = decoded(to_picture(image, "content"))
    assert received.mode == image.mode
    assert np.array_equal(np.asarray(received), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_colour_models_become_rgb(mode: str) -> None:
    rgb = Image.fromarray(RGB)
    image = ImageCms.applyTransform(rgb, _to_lab()) if mode == "LAB" else rgb.convert(mode)
    received = decoded(to_picture(image, "content"))
    assert np.array_equal(np.asarray(received), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "multiplied"), [("LA", "La"), ("RGBA", "RGBa")])
def test_colours_that_were_multiplied_by_their_opacity_are_divided(mode: str, multiplied: str) -> None:
    image = Image.fromarray(RGBA).convert(mode).convert(multiplied)
    received = decoded(to_picture(image, "content"))
    assert received.mode == mode
    assert np.array_equal(np.asarray(received), np.asarray(image.convert(mode)))


def _to_lab() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def test_exif_rotation_is_applied_to_pil_pictures() -> None:
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = 6  # to be turned clockwise to stand upright
    received = decoded(to_picture(image, "content"))
    assert np.array_equal(np.asarray(received), np.rot90(RGB, -1))


def test_a_colour_profile_goes_along_unless_the_colours_change() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb, cmyk = Image.fromarray(RGB), Image.fromarray(RGB).convert("CMYK")
    rgb.info["icc_profile"] = cmyk.info["icc_profile"] = profile
    assert decoded(to_picture(rgb, "content")).info["icc_profile"] == profile
    assert "icc_profile" not in decoded(to_picture(cmyk, "content")).info


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_files_bytes_travel_as_they_are(kind: type) -> None:
    assert to_picture(kind(b"\xff\xd8 not looked at"), "content") == Picture(b"\xff\xd8 not looked at")


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_path_is_its_files_bytes(tmp_path: Path, as_path: type) -> None:
    (tmp_path / "a.jpg").write_bytes(b"the file")
    assert to_picture(as_path(tmp_path / "a.jpg"), "content") == Picture(b"the file")


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_arrays_travel_as_the_contract_says(dtype: str, layout: str) -> None:
    array = RGB if dtype == "uint8" else UNIT.astype(dtype)
    array = array if layout == "HWC" else array.transpose(2, 0, 1)  # not contiguous
    picture = to_picture(array, "content")
    assert picture.tensor == TensorForm(dtype, array.shape, layout)
    assert picture.data == b"".join(element.tobytes() for element in array.flat)
    assert np.array_equal(picture.decode(), array)
    assert picture.decode().dtype == array.dtype


def test_big_endian_arrays_are_turned() -> None:
    array = UNIT.astype(">f4")
    assert to_picture(array, "content").data == UNIT.astype("<f4").tobytes()


def test_float64_becomes_float32() -> None:
    picture = to_picture(UNIT, "content")
    assert picture.tensor == TensorForm("float32", UNIT.shape, "HWC")
    assert np.array_equal(picture.decode(), UNIT.astype(np.float32))


def test_a_plane_is_grey() -> None:
    picture = to_picture(GREY, "content")
    assert picture.tensor == TensorForm("uint8", (HEIGHT, WIDTH, 1), "HWC")
    assert picture.data == GREY.tobytes()


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 1)])
def test_true_is_white(convert: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    mask = (GREY > 127).reshape(shape)
    picture = to_picture(convert(mask), "hole")
    assert picture.tensor == TensorForm("uint8", (HEIGHT, WIDTH, 1), "HWC")
    assert np.array_equal(picture.decode()[:, :, 0], np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba_arrays(channels: int) -> None:
    assert to_picture(RGBA[:, :, :channels], "content").tensor == TensorForm("uint8", (HEIGHT, WIDTH, channels), "HWC")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_torch_tensors(dtype: torch.dtype) -> None:
    tensor = (torch.from_numpy(RGB.copy()) if dtype is torch.uint8 else torch.from_numpy(UNIT)).permute(2, 0, 1)
    tensor = tensor.to(dtype).requires_grad_(dtype.is_floating_point)
    picture = to_picture(tensor, "content")
    assert picture.tensor == TensorForm(str(dtype).removeprefix("torch."), (3, HEIGHT, WIDTH), "CHW")
    assert np.array_equal(picture.decode(), tensor.detach().numpy())


def test_torch_bfloat16_keeps_its_values() -> None:
    tensor = torch.from_numpy(UNIT).to(torch.bfloat16)
    assert np.array_equal(to_picture(tensor, "content").decode(), tensor.float().numpy())


def test_bfloat16_from_the_server_becomes_float32() -> None:
    values = torch.from_numpy(UNIT).to(torch.bfloat16)
    data = values.view(torch.int16).numpy().astype("<i2").tobytes()
    received = Picture(data, TensorForm("bfloat16", (HEIGHT, WIDTH, 3), "HWC")).decode()
    assert np.array_equal(received, values.float().numpy())


@pytest.mark.parametrize(
    ("shape", "of_array", "of_tensor"),
    [((3, 9, 3), "HWC", "CHW"), ((9, 8, 3), "HWC", "HWC"), ((3, 9, 8), "CHW", "CHW")],
)
def test_the_layout_is_found_or_taken_by_custom(shape: tuple[int, ...], of_array: str, of_tensor: str) -> None:
    array = np.zeros(shape, np.uint8)
    for source, layout in ((array, of_array), (torch.from_numpy(array), of_tensor)):
        found = to_picture(source, "content").tensor
        assert found is not None
        assert found.layout == layout


def test_a_given_layout_counts() -> None:
    picture = Picture.from_array(np.zeros((3, 9, 3), np.uint8), layout="CHW")
    assert picture.tensor == TensorForm("uint8", (3, 9, 3), "CHW")
    with pytest.raises(ValueError, match="first or last dimension"):
        Picture.from_array(RGB, layout="CHW")
    with pytest.raises(ValueError, match="must be HWC or CHW"):
        Picture.from_array(RGB, layout="WHC")  # type: ignore[arg-type]


BAD = {
    "empty array": (np.zeros((0, 4, 3), np.uint8), ValueError, "empty"),
    "one dimension": (np.zeros(4, np.uint8), ValueError, "three dimensions"),
    "a batch": (np.zeros((1, 4, 4, 3), np.uint8), ValueError, "three dimensions"),
    "two channels": (np.zeros((6, 5, 2), np.uint8), ValueError, "1, 3 or 4 channels"),
    "NaN": (np.full((4, 5, 3), np.nan), ValueError, "NaN"),
    "infinity": (np.full((4, 5, 3), np.inf), ValueError, "infinity"),
    "floats to 255": (np.full((4, 5, 3), 255.0), ValueError, "from 0 to 1"),
    "below 0": (np.full((4, 5, 3), -0.5), ValueError, "from 0 to 1"),
    "uint16": (
        np.zeros((4, 5, 3), np.uint16),
        TypeError,
        "uint16: give uint8 from 0 to 255, floats from 0 to 1, or bool",
    ),
    "complex": (np.zeros((4, 5, 3), complex), TypeError, "complex"),
    "empty bytes": (b"", ValueError, "empty"),
    "empty picture": (Image.new("RGB", (0, 3)), ValueError, "empty"),
    "float picture": (Image.new("F", (2, 3)), ValueError, "mode F"),
    "a number": (3, TypeError, "int"),
    "a name that no file can have": ("\ud800.png", ValueError, "surrogates"),
    "nothing": (None, TypeError, "NoneType"),
}


@pytest.mark.parametrize(("source", "error", "text"), BAD.values(), ids=BAD)
def test_what_is_no_picture_is_refused_by_name(source: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        to_picture(source, "styles[2]")
    assert str(caught.value).startswith("styles[2]: ")


@pytest.mark.parametrize("codec", ["PNG", "JPEG"])
def test_a_pil_picture_that_is_cut_short_is_refused_by_name(codec: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, codec)
    with pytest.raises(ValueError, match=r"^styles\[2\]: the picture cannot be read: "):
        to_picture(Image.open(io.BytesIO(stream.getvalue()[:-500])), "styles[2]")


def test_a_pil_picture_whose_file_is_closed_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pass
    with pytest.raises(ValueError, match=r"^content: the picture cannot be read: its file is closed"):
        to_picture(picture, "content")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        to_picture(tmp_path / "none.png", "content")


def test_pictures_in_messages() -> None:
    tensor = image_pb2.Tensor(
        dtype=image_pb2.DATA_TYPE_UINT8, shape=RGB.shape, layout=image_pb2.LAYOUT_HWC, data=RGB.tobytes()
    )
    array = Picture.from_proto(image_pb2.Image(tensor=tensor))
    assert array is not None
    assert np.array_equal(array.decode(), RGB)
    png = io.BytesIO()
    Image.fromarray(RGB).save(png, "PNG")
    file = Picture.from_proto(image_pb2.Image(encoded=image_pb2.EncodedImage(data=png.getvalue())))
    assert file is not None
    assert np.array_equal(np.asarray(file.decode()), RGB)
    assert Picture.from_proto(image_pb2.Image()) is None
