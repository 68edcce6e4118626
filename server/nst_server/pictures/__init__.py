"""Pictures at the server's border: what is stored, what is refused, and how it becomes pixels.

Shared by the gateway, which checks and transcodes, and the model server, which decodes. Everything
here is a pure function and may run on any thread.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from nst.v1 import image_pb2
from nst_server.pictures import files, tensors
from nst_server.pictures.encoding import check_format, encode, encode_png, most_bytes, shrink
from nst_server.pictures.errors import STORED, PictureError, PictureLimits
from nst_server.pictures.files import read_file
from nst_server.pictures.tensors import tensor_header

FAINT = 0.1  # of white, which a mask has somewhere

__all__ = [
    "STORED",
    "PictureError",
    "PictureLimits",
    "check",
    "check_format",
    "check_mask",
    "decode",
    "decode_mask",
    "digest",
    "encode",
    "encode_png",
    "most_bytes",
    "read_file",
    "shrink",
    "stored_bytes",
    "tensor_header",
]


def stored_bytes(image: image_pb2.Tensor | image_pb2.EncodedImage) -> bytes:
    """What the object store holds: a file's own bytes, or a tensor's header line and data.

    Raises:
        PictureError: a tensor whose header cannot be written; see `tensor_header`.
    """
    if isinstance(image, image_pb2.EncodedImage):
        return image.data
    return tensor_header(image) + image.data


def digest(stored: bytes | memoryview) -> str:
    """SHA-256 of the stored bytes, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(stored).hexdigest()


def check(stored: bytes | memoryview, limits: PictureLimits) -> tuple[int, int]:
    """Width and height in pixels, upright, of a picture that `decode` will read.

    Raises:
        PictureError: it is no picture, is cut short, holds values that are not allowed, or is
            outside the limits.
    """
    data = bytes(stored)
    limits.check_bytes(len(data))
    if data.startswith(tensors.MAGIC):
        height, width, _ = tensors.read_tensor(data, limits).shape
        return width, height
    return files.load(data, limits).size


def decode(stored: bytes | memoryview, limits: PictureLimits) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The pixels, (height, width, 3) RGB: uint8 for files and uint8 tensors, else float32 from 0 to 1.

    Grey becomes three equal channels, alpha is composited over white, colours are sRGB.

    Raises:
        PictureError: as `check`.
    """
    data = bytes(stored)
    limits.check_bytes(len(data))
    if data.startswith(tensors.MAGIC):
        return _over_white(tensors.read_tensor(data, limits))
    return _over_white(files.read_file(data, limits))


def decode_mask(stored: bytes | memoryview, limits: PictureLimits) -> NDArray[np.float32]:
    """A picture as a mask, (height, width) float32 from 0 (black) to 1 (white): the mean of the channels of `decode`.

    Raises:
        PictureError: as `check`; or it is black all over, and marks nothing.
    """
    pixels = decode(stored, limits)
    mask: NDArray[np.float32] = pixels.mean(2, dtype=np.float32)
    if pixels.dtype == np.uint8:
        mask /= np.float32(255)
    if not mask.any():
        raise PictureError("EMPTY_MASK", "the mask is black all over; make white what it marks, or leave it out")
    return mask


def check_mask(stored: bytes | memoryview, limits: PictureLimits) -> None:
    """Makes sure that a picture can be a mask; stricter than `decode_mask`, which takes those of old jobs.

    Raises:
        PictureError: as `decode_mask`; or it is nearly black all over.
    """
    mask = decode_mask(stored, limits)
    if mask.max() < FAINT:
        # Most likely it holds 0 and 1, or the numbers of regions: a job would be done, and look as if it had no mask.
        raise PictureError(
            "FAINT_MASK",
            f"the mask is nearly black all over, {mask.max():.2g} of white at most; "
            "make white what it marks: 255 in whole numbers, 1.0 in others",
        )


def _over_white(values: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """(height, width, 1, 3 or 4) to a new contiguous (height, width, 3)."""
    channels = values.shape[2]
    if channels < 4:
        return np.array(np.broadcast_to(values, (*values.shape[:2], 3)), order="C")
    colour, alpha = values[..., :3], values[..., 3:]
    if values.dtype == np.uint8:
        opaque = alpha.astype(np.uint16)
        # 255 * 255 + 127 is the largest sum, and fits.
        return ((colour * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(colour * alpha + (1 - alpha))
