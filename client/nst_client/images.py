"""Pictures in and out: every form a caller may hold, and the bytes that travel."""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageOps

from nst.v1 import image_pb2
from nst_client.formats import DTYPE_NAMES, DTYPES, LAYOUT_NAMES, LAYOUTS, Dtype, Layout, alike

Pixels = npt.NDArray[Any]
# A PIL picture; or `Pixels`, where a tensor was asked for, which no type checker can know.
Decoded = PilImage.Image | Any

_CHANNELS = (1, 3, 4)
# What PNG holds as it is, and what the other modes become.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_CONVERTED_MODES = {
    **dict.fromkeys(("CMYK", "YCbCr", "HSV", "LAB", "RGBX"), "RGB"),
    **dict.fromkeys(("RGBa", "PA"), "RGBA"),
    "La": "LA",
}


@runtime_checkable
class TorchTensor(Protocol):
    """What this library needs of a torch tensor; torch itself is never imported."""

    dtype: Any

    def detach(self) -> "TorchTensor": ...
    def cpu(self) -> "TorchTensor": ...
    def float(self) -> "TorchTensor": ...
    def numpy(self) -> Pixels: ...


@dataclass(frozen=True)
class ImageRef:
    """A picture that the server holds.

    Attributes:
        sha256: 64 lower-case hexadecimal digits.
        width, height: in pixels, where known.
    """

    sha256: str
    width: int | None = field(default=None, compare=False)
    height: int | None = field(default=None, compare=False)

    def to_proto(self) -> image_pb2.Image:
        """As a message."""
        return image_pb2.Image(reference=image_pb2.ImageReference(sha256=self.sha256))


@dataclass(frozen=True)
class TensorForm:
    """How raw bytes form an array: element type, three dimensions, and the order of these."""

    dtype: Dtype
    shape: tuple[int, ...]
    layout: Layout

    def to_proto(self) -> image_pb2.TensorHeader:
        """As a message."""
        return image_pb2.TensorHeader(dtype=DTYPES[self.dtype], shape=self.shape, layout=LAYOUTS[self.layout])

    @classmethod
    def from_proto(cls, header: image_pb2.TensorHeader | image_pb2.Tensor) -> "TensorForm":
        """From a message."""
        return cls(DTYPE_NAMES[header.dtype], tuple(header.shape), LAYOUT_NAMES[header.layout])


@dataclass(frozen=True)
class Picture:
    """A picture's bytes: a file's if `tensor` is None, else raw pixels (row-major, little-endian)."""

    data: bytes = field(repr=False)
    tensor: TensorForm | None = None

    def decode(self) -> Decoded:
        """A PIL picture for a file, an array for raw pixels (bfloat16 as float32)."""
        if self.tensor is None:
            picture = PilImage.open(io.BytesIO(self.data))
            picture.load()
            return picture
        if self.tensor.dtype == "bfloat16":
            # A bfloat16 is the upper half of the float32 of the same value.
            wide = np.frombuffer(self.data, "<u2").astype("<u4") << 16
            return wide.view("<f4").reshape(self.tensor.shape)
        little_endian = np.dtype(self.tensor.dtype).newbyteorder("<")
        return np.frombuffer(self.data, little_endian).reshape(self.tensor.shape).copy()

    @classmethod
    def from_proto(cls, image: image_pb2.Image) -> "Picture | None":
        """The picture in a message, or None if the message holds none."""
        if image.HasField("tensor"):
            return cls(image.tensor.data, TensorForm.from_proto(image.tensor))
        if image.HasField("encoded"):
            return cls(image.encoded.data)
        return None

    @classmethod
    def from_array(cls, array: Any, layout: Layout | None = None) -> "Picture":
        """A picture from an array or a torch tensor.

        Args:
            array: uint8 from 0 to 255, float from 0 to 1, or bool, of which True is white; (height, width), or
                three dimensions with 1, 3 (RGB) or 4 (RGBA) channels.
            layout: the order of the three dimensions. None looks for the channels, and where both
                ends could be them takes numpy's order for an array and torch's for a tensor.

        Raises:
            TypeError: the element type is not one of those.
            ValueError: the shape or a value is not allowed.
        """
        likely: Layout = "HWC"
        if isinstance(array, TorchTensor):
            array, likely = _from_torch(array), "CHW"
        pixels = _checked_values(np.asarray(array))
        if pixels.ndim == 2:
            pixels, layout = pixels[:, :, np.newaxis], "HWC"
        layout = _checked_layout(pixels.shape, layout, likely)
        data = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
        return cls(data, TensorForm(cast(Dtype, pixels.dtype.name), pixels.shape, layout))


ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | PilImage.Image | Pixels | TorchTensor | Picture


def to_picture(source: ImageInput, name: str) -> Picture:
    """The bytes to send for a picture given as a path, a file's bytes, a PIL picture or an array.

    A file's bytes travel as they are: the server applies EXIF rotation and colour profiles.

    Raises:
        TypeError, ValueError: it is no picture; the text starts with `name`.
        OSError: the file cannot be read.
    """
    try:
        match source:
            case Picture():
                return source
            case str() | os.PathLike():
                return Picture(_not_empty(Path(source).read_bytes(), f"the file {os.fspath(source)}"))
            case bytes() | bytearray() | memoryview():
                return Picture(_not_empty(bytes(source), "the bytes of the picture file"))
            case PilImage.Image():
                return Picture(_to_png(source))
            case np.ndarray() | TorchTensor():
                return Picture.from_array(source)
    except (TypeError, ValueError) as error:
        raise alike(error, f"{name}: {error}") from None
    raise TypeError(
        f"{name}: give a path, the bytes of a picture file, a PIL picture, a numpy array, a torch tensor "
        f"or a reference, not {type(source).__name__}"
    )


def _not_empty(data: bytes, what: str) -> bytes:
    if not data:
        raise ValueError(f"{what} is empty")
    return data


def _to_png(picture: PilImage.Image) -> bytes:
    if not picture.width or not picture.height:
        raise ValueError(f"the picture is empty, {picture.width} x {picture.height} pixels")
    try:
        picture.load()
    except (AssertionError, OSError, SyntaxError) as error:  # Pillow asserts that the file is still open
        raise ValueError(f"the picture cannot be read: {str(error) or 'its file is closed'}") from error
    upright = ImageOps.exif_transpose(picture)
    profile = picture.info.get("icc_profile")
    if upright.mode in _CONVERTED_MODES:
        # The profile describes the colours before the conversion.
        upright, profile = upright.convert(_CONVERTED_MODES[upright.mode]), None
    if upright.mode not in _PNG_MODES:
        raise ValueError(f"mode {upright.mode} has no agreed range: give an array of floats from 0 to 1, or mode RGB")
    stream = io.BytesIO()
    # Level 1: at the default level, packing a large photograph takes longer than sending it.
    upright.save(stream, "PNG", compress_level=1, icc_profile=profile)
    return stream.getvalue()


def _from_torch(tensor: TorchTensor) -> Pixels:
    # numpy has no bfloat16; float32 holds its values exactly.
    tensor = tensor.float() if "bfloat16" in str(tensor.dtype) else tensor
    return tensor.detach().cpu().numpy()


def _checked_values(pixels: Pixels) -> Pixels:
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    elif pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    if pixels.dtype.name not in DTYPES:
        raise TypeError(f"the array is {pixels.dtype}: give uint8 from 0 to 255, floats from 0 to 1, or bool")
    if not pixels.size:
        raise ValueError(f"the array is empty, its shape is {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels
    if not np.isfinite(pixels).all():
        raise ValueError("the array holds NaN or infinity: floats must be from 0 to 1")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise ValueError(f"floats must be from 0 to 1, these are from {low:g} to {high:g}: divide, clip or give uint8")
    return pixels


def _checked_layout(shape: tuple[int, ...], layout: Layout | None, likely: Layout) -> Layout:
    if len(shape) != 3:
        raise ValueError(f"the array's shape is {shape}: give (height, width), or three dimensions with the channels")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout: must be HWC or CHW, not {layout!r}")
    channels: dict[Layout, int] = {"HWC": shape[2], "CHW": shape[0]}
    possible = [candidate for candidate in (layout,) if candidate] or [likely, *channels]
    for candidate in possible:
        if channels[candidate] in _CHANNELS:
            return candidate
    raise ValueError(f"the array's shape is {shape}: its first or last dimension must be 1, 3 or 4 channels")
