"""Laying the fine detail of one picture over another, where that has too little of its own."""

import torch
from torch import Tensor

from nst_engine import pictures

# What is finer than a picture of this long side can show is detail.
COARSE_SIDE = 16
# Nothing is added where an image has so much of the texture's contrast. At 1 as much is gained where it helps, and more
# lost where it does not: docs/experiments.md.
ENOUGH = 0.5


def detail(image: Tensor) -> Tensor:
    """What a (1, 3, H, W) image has beyond its coarse shapes, of the same shape and about zero on the mean."""
    return image - _coarse(image)


def textured(image: Tensor, texture: Tensor) -> Tensor:
    """The image with a texture laid over it where it has less than `ENOUGH` of its contrast; clipped to 0-255.

    Where it has no contrast of its own it gets all of the texture's, and the less the more it has.

    Args:
        image: (1, 3, H, W), 0-255.
        texture: the detail of a picture, as of `detail`, of the same shape.
    """
    energy = _coarse(detail(image).square().mean(1, keepdim=True).expand_as(image)).clamp(min=0.0)
    wanted = texture.square().mean().clamp(min=torch.finfo(texture.dtype).tiny)
    lacking = (1 - energy / (ENOUGH**2 * wanted)).clamp(min=0.0).sqrt()
    return (image + lacking * texture).clamp(0.0, 255.0)


def covering(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of a (1, 3, h, w) image, of `size` (height, width); a smaller one goes on in its mirror images."""
    for axis in (2, 3):
        repeats = -(-size[axis - 2] // image.shape[axis])
        turns = [image.flip(axis) if number % 2 else image for number in range(repeats)]
        image = torch.cat(turns, axis)
        image = image.narrow(axis, (image.shape[axis] - size[axis - 2]) // 2, size[axis - 2])
    return image


def _coarse(image: Tensor) -> Tensor:
    height, width = image.shape[2:]
    small = pictures.fitted_size(height, width, COARSE_SIDE, 1)
    return pictures.resize(pictures.resize(image, small), (height, width))
