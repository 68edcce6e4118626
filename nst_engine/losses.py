"""The terms of the objective. Every one is float32 and a scalar; pictures are in 0-255 units."""

from typing import Any

import torch
from torch import Tensor


def gram_matrix(features: Tensor) -> Tensor:
    """Channel correlations F F^T / (C H W) of a (1, C, H, W) map, as float32 (C, C).

    Gatys, Ecker and Bethge (arXiv 1508.06576, equation 3), divided by the map's size so that maps
    of any size compare.
    """
    gram: Tensor = _Gram.apply(features.flatten(2)[0].float())  # type: ignore[no-untyped-call]
    return gram


class _Gram(torch.autograd.Function):
    """F F^T / (C H W) of a (C, H W) matrix, with a backward of one product where autograd makes two."""

    @staticmethod
    def forward(context: Any, flat: Tensor) -> Tensor:
        context.save_for_backward(flat)
        return flat @ flat.T / flat.numel()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        flat: Tensor
        (flat,) = context.saved_tensors
        return ((gradient + gradient.T) / flat.numel()) @ flat


def mean_squared_error(value: Tensor, target: Tensor) -> Tensor:
    """Mean of the squared differences of two tensors of one shape, in float32."""
    return (value.float() - target.float()).square().mean()


def total_variation(image: Tensor) -> Tensor:
    """Sum of absolute differences between vertical and horizontal neighbours of (1, 3, H, W)."""
    vertical = (image[:, :, 1:] - image[:, :, :-1]).abs().sum()
    horizontal = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().sum()
    return vertical + horizontal


def box_penalty(image: Tensor) -> Tensor:
    """Sum of the squared excess of (1, 3, H, W) outside 0-255.

    It keeps the optimum where 8-bit pictures live, so that clipping the result costs nothing.
    """
    return (image - image.clamp(0.0, 255.0)).square().sum()


def root_mean_square(tensor: Tensor) -> Tensor:
    """Square root of the mean square."""
    return tensor.square().mean().sqrt()
