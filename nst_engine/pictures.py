"""Pictures at the edge of the engine: arrays in, tensors inside, 8-bit arrays out."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nst_engine.options import OptionError

Picture = NDArray[Any]

# In 0-255 units.
MID_GREY = 127.5


def to_tensor(picture: Picture, name: str, device: torch.device) -> Tensor:
    """A picture as (1, 3, H, W) float32 in 0-255.

    Args:
        picture: (H, W, 3) RGB, uint8 in 0-255 or floating in 0-1.
        name: what to call it in an error.
        device: where the tensor goes.

    Raises:
        OptionError: another shape or dtype, or floats that are not finite or outside 0-1.
    """
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        shape = getattr(picture, "shape", type(picture).__name__)
        raise OptionError(name, f"must be an array of shape (height, width, 3), not {shape}: convert it to RGB")
    pixels = _to_255(picture.transpose(2, 0, 1), name)
    return torch.from_numpy(pixels).to(device)[None]


def to_mask(mask: Picture, name: str, device: torch.device) -> Tensor:
    """A mask as (1, 1, H, W) float32 in 0-1.

    Args:
        mask: (H, W), uint8 in 0-255 or floating in 0-1.
        name: what to call it in an error.
        device: where the tensor goes.

    Raises:
        OptionError: another shape or dtype, floats that are not finite or outside 0-1, or 0 everywhere.
    """
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or 0 in mask.shape:
        shape = getattr(mask, "shape", type(mask).__name__)
        raise OptionError(name, f"must be an array of shape (height, width), not {shape}: give one channel")
    values = _to_255(mask, name)
    if not values.any():
        raise OptionError(name, "is empty, 0 everywhere: mark where with 1 (255 in uint8), or leave the mask out")
    values /= np.float32(255)
    return torch.from_numpy(values).to(device)[None, None]


def to_picture(image: Tensor) -> NDArray[np.uint8]:
    """(1, 3, H, W) in 0-255 as an (H, W, 3) uint8 array, rounded and clipped."""
    pixels: NDArray[np.uint8] = image[0].permute(1, 2, 0).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
    return np.ascontiguousarray(pixels)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) resampled to `size` (height, width): bicubic, low-passed when it shrinks."""
    if image.shape[2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True)


def shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) at `size` (height, width), as by `resize`, unless it is no larger."""
    return resize(image, size) if max(image.shape[2:]) > max(size) else image


def fitted_size(height: int, width: int, long_side: float, minimum: int) -> tuple[int, int]:
    """(height, width) with about the given long side and the same aspect; no side below `minimum`."""
    ratio = long_side / max(height, width)
    return max(minimum, round(height * ratio)), max(minimum, round(width * ratio))


def _to_255(picture: Picture, name: str) -> NDArray[np.float32]:
    """A copy of uint8 values, or floating ones in 0-1, as contiguous float32 in 0-255. Raises OptionError for others.

    The one copy: what is given may be far larger than what is ever needed of it.
    """
    floating = np.issubdtype(picture.dtype, np.floating)
    if floating and not np.all((picture >= 0) & (picture <= 1)):
        raise OptionError(name, "floating pixels must be finite and from 0 to 1: divide 0-255 values by 255")
    if not floating and picture.dtype != np.uint8:
        raise OptionError(name, f"pixels must be uint8 or floating, not {picture.dtype}")
    values = np.empty(picture.shape, np.float32)
    values[...] = picture
    if floating:
        values *= np.float32(255)
    return values
