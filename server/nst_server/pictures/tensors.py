"""Tensors: raw pixels as they are stored, and as arrays.

A stored tensor is one ASCII line, "nst-tensor/1 DTYPE LAYOUT D0,D1,D2", a newline, and the data.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nst.v1 import image_pb2
from nst_server.pictures.errors import PictureError, PictureLimits

MAGIC = b"nst-tensor/1 "
HEADER = re.compile(MAGIC + rb"([a-z0-9]+) ([A-Z]+) (0|[1-9]\d{0,9}),(0|[1-9]\d{0,9}),(0|[1-9]\d{0,9})\n")

ITEM_SIZES = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4}
LAYOUTS = ("HWC", "CHW")
DTYPE_NAMES: dict[int, str] = {
    image_pb2.DATA_TYPE_UINT8: "uint8",
    image_pb2.DATA_TYPE_FLOAT16: "float16",
    image_pb2.DATA_TYPE_BFLOAT16: "bfloat16",
    image_pb2.DATA_TYPE_FLOAT32: "float32",
}
LAYOUT_NAMES: dict[int, str] = {image_pb2.LAYOUT_HWC: "HWC", image_pb2.LAYOUT_CHW: "CHW"}


@dataclass(frozen=True)
class Header:
    """The header line of a stored tensor: element type, order of dimensions, dimensions."""

    dtype: str
    layout: str
    shape: tuple[int, int, int]

    @property
    def height_width_channels(self) -> tuple[int, int, int]:
        if self.layout == "HWC":
            return self.shape
        channels, height, width = self.shape
        return height, width, channels

    @property
    def data_size(self) -> int:
        """The number of bytes that the shape and the element type call for."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    def __bytes__(self) -> bytes:
        return MAGIC + f"{self.dtype} {self.layout} {','.join(map(str, self.shape))}\n".encode("ascii")


def dtype_name(dtype: int) -> str:
    """The numpy name of an element type; PictureError when it is unset or unknown."""
    if dtype not in DTYPE_NAMES:
        known = ", ".join(DTYPE_NAMES.values())
        raise PictureError("UNKNOWN_DTYPE", f"dtype {dtype} is not one of {known}; set one", "dtype")
    return DTYPE_NAMES[dtype]


def layout_name(layout: int) -> str:
    """The name of an order of dimensions; PictureError when it is unset or unknown."""
    if layout not in LAYOUT_NAMES:
        raise PictureError("UNKNOWN_LAYOUT", f"layout {layout} is not one of {', '.join(LAYOUTS)}; set one", "layout")
    return LAYOUT_NAMES[layout]


def tensor_header(form: image_pb2.Tensor | image_pb2.TensorHeader) -> bytes:
    """The line that precedes a tensor's data in the store.

    Raises:
        PictureError: the element type or layout is unknown, or the shape has not three numbers.
    """
    shape = tuple(form.shape)
    if len(shape) != 3:
        raise PictureError(
            "BAD_TENSOR",
            f"shape has {len(shape)} dimensions; a picture has three, add or drop one to match layout",
            "shape",
        )
    return bytes(Header(dtype_name(form.dtype), layout_name(form.layout), shape))


def parse(stored: bytes) -> tuple[Header, memoryview]:
    """Splits a stored tensor into its header and its data.

    Raises:
        PictureError: the header line is malformed or names an unknown element type or layout.
    """
    line = HEADER.match(stored)
    if line is None:
        raise PictureError("BAD_TENSOR", 'the header is not "nst-tensor/1 DTYPE LAYOUT D0,D1,D2" and a newline')
    dtype, layout = line[1].decode("ascii"), line[2].decode("ascii")
    if dtype not in ITEM_SIZES:
        raise PictureError("UNKNOWN_DTYPE", f"dtype {dtype} is not one of {', '.join(ITEM_SIZES)}")
    if layout not in LAYOUTS:
        raise PictureError("UNKNOWN_LAYOUT", f"layout {layout} is not one of {', '.join(LAYOUTS)}")
    return Header(dtype, layout, (int(line[3]), int(line[4]), int(line[5]))), memoryview(stored)[line.end() :]


def read_tensor(stored: bytes, limits: PictureLimits) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The values of a stored tensor, (height, width, 1, 3 or 4): uint8, or float32 from 0 to 1.

    Raises:
        PictureError: the tensor is malformed, outside the limits, or has values outside 0 to 1.
    """
    header, data = parse(stored)
    height, width, channels = header.height_width_channels
    if channels not in (1, 3, 4):
        raise PictureError(
            "BAD_TENSOR",
            f"shape {list(header.shape)} in {header.layout} order has {channels} channels; "
            "send 1 (grey), 3 (RGB) or 4 (RGBA), or correct layout",
            "shape",
        )
    limits.check_size(width, height, "shape")
    if len(data) != header.data_size:
        raise PictureError(
            "BAD_TENSOR",
            f"data has {len(data)} bytes, but shape {list(header.shape)} of {header.dtype} takes {header.data_size}",
        )
    values = _values(data, header.dtype).reshape(header.shape)
    if header.layout == "CHW":
        values = values.transpose(1, 2, 0)
    if header.dtype != "uint8":
        _check_range(values)
    return values


def _values(data: memoryview, dtype: str) -> NDArray[np.uint8] | NDArray[np.float32]:
    if dtype == "uint8":
        return np.frombuffer(data, np.uint8)
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f2" if dtype == "float16" else "<f4").astype(np.float32)


def _check_range(values: NDArray[np.uint8] | NDArray[np.float32]) -> None:
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise PictureError("NOT_FINITE", "data holds NaN or infinity; floats must be from 0 to 1")
    if low < 0.0 or high > 1.0:
        raise PictureError(
            "OUT_OF_RANGE",
            f"data runs from {low:g} to {high:g}; floats must be from 0 to 1, divide 0-255 values by 255",
        )


def to_bytes(pixels: NDArray[np.uint8], dtype: str, layout: str) -> tuple[tuple[int, ...], bytes]:
    """8-bit pixels (height, width, 3) as the shape and little-endian data of a tensor."""
    ordered = np.ascontiguousarray(pixels if layout == "HWC" else pixels.transpose(2, 0, 1))
    if dtype == "uint8":
        return ordered.shape, ordered.tobytes()
    scaled = ordered.astype(np.float32) / np.float32(255)
    if dtype == "bfloat16":
        bits = scaled.view(np.uint32)
        # Round to nearest, ties to even: what hardware and torch do.
        return ordered.shape, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return ordered.shape, scaled.astype("<f2" if dtype == "float16" else "<f4").tobytes()
