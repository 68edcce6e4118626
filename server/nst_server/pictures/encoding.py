"""8-bit pixels to the form a client asked for."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst.v1 import image_pb2
from nst_server.pictures import tensors
from nst_server.pictures.errors import PictureError

DEFAULT_QUALITY = 90
CHANNELS = 3
CODEC_NAMES: dict[int, str] = {image_pb2.CODEC_PNG: "PNG", image_pb2.CODEC_JPEG: "JPEG", image_pb2.CODEC_WEBP: "WEBP"}


def check_format(form: image_pb2.ImageFormat) -> None:
    """Raises PictureError when the form asked for is not one that `encode` makes.

    Unset means PNG, and so does an unset codec. Quality is 1 to 100, for JPEG and WebP.
    """
    if form.WhichOneof("form") == "tensor":
        tensors.dtype_name(form.tensor.dtype)
        tensors.layout_name(form.tensor.layout)
        return
    codec = _codec_name(form.encoded.codec)
    if not form.encoded.HasField("quality"):
        return
    if codec == "PNG":
        raise PictureError(
            "BAD_QUALITY", "quality is for JPEG and WebP; PNG is lossless, leave quality unset", "quality"
        )
    if not 1 <= form.encoded.quality <= 100:
        raise PictureError("BAD_QUALITY", f"quality is {form.encoded.quality}; it must be from 1 to 100", "quality")


def encode(pixels: NDArray[np.uint8], form: image_pb2.ImageFormat) -> image_pb2.Image:
    """Pixels (height, width, 3), 0 to 255, in the form asked for.

    Raises:
        PictureError: as `check_format`.
    """
    check_format(form)
    picture = Image.fromarray(pixels)
    if form.WhichOneof("form") == "tensor":
        dtype, layout = form.tensor.dtype, form.tensor.layout
        shape, data = tensors.to_bytes(np.asarray(picture), tensors.dtype_name(dtype), tensors.layout_name(layout))
        return image_pb2.Image(tensor=image_pb2.Tensor(dtype=dtype, layout=layout, shape=shape, data=data))
    codec = _codec_name(form.encoded.codec)
    if codec == "PNG":
        data = _png(picture)
    else:
        quality = form.encoded.quality if form.encoded.HasField("quality") else DEFAULT_QUALITY
        data = _saved(picture, codec, quality=quality)
    return image_pb2.Image(encoded=image_pb2.EncodedImage(data=data))


def most_bytes(width: int, height: int, form: image_pb2.ImageFormat) -> int:
    """The data of a picture of this size in a form that `check_format` takes: of a file, no more than its pixels."""
    item = tensors.ITEM_SIZES[tensors.dtype_name(form.tensor.dtype)] if form.HasField("tensor") else 1
    return width * height * CHANNELS * item


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (height, width, 3), 0 to 255, as a PNG file."""
    return _png(Image.fromarray(pixels))


def _codec_name(codec: int) -> str:
    if codec == image_pb2.CODEC_UNSPECIFIED:
        return "PNG"
    if codec not in CODEC_NAMES:
        known = ", ".join(CODEC_NAMES.values())
        raise PictureError("UNKNOWN_CODEC", f"codec {codec} is not one of {known}; set one", "codec")
    return CODEC_NAMES[codec]


def shrink(pixels: NDArray[np.uint8], max_size: int) -> NDArray[np.uint8]:
    """The pixels at a long side of at most `max_size`, never enlarged."""
    height, width = pixels.shape[:2]
    if max(height, width) <= max_size:
        return pixels
    size = tuple(max(1, round(side * max_size / max(height, width))) for side in (width, height))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _png(picture: Image.Image) -> bytes:
    # Level 1 is several times as fast as the default and a few per cent larger.
    return _saved(picture, "PNG", compress_level=1)


def _saved(picture: Image.Image, codec: str, **parameters: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, codec, **parameters)
    return file.getvalue()
