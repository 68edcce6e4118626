"""The terms of the objective. Every one is float32 and a scalar; pictures are in 0-255 units."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nst_engine.products import mapped, sum_of_outer_products


def gram_matrix(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """Channel correlations F F^T / (C H W) of a (1, C, H, W) map, as float32 (C, C).

    Gatys, Ecker and Bethge (arXiv 1508.06576, equation 3), divided by the map's size so that maps
    of any size compare. `weights` (H * W,), with a mean of 1, say how much each position counts.
    """
    rows = rows_of(features)
    if weights is None:
        return _gram(rows)
    roots, scale = roots_of(weights, rows.dtype)
    return _gram(rows * roots[:, None]) * scale


def gram_matrices(features: Tensor) -> Tensor:
    """`gram_matrix` of each map of (N, C, H, W), as float32 (N, C, C)."""
    grams: Tensor = _Gram.apply(rows_of_each(features))  # type: ignore[no-untyped-call]
    return grams


def rows_of(features: Tensor) -> Tensor:
    """The feature vectors of a (1, C, H, W) map, (H * W, C) in its dtype; of a channels-last map without a copy."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def rows_of_each(features: Tensor) -> Tensor:
    """`rows_of` of each map of (N, C, H, W), (N, H * W, C)."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def roots_of(weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The square roots of weights over the largest of them, and what their squares are to be multiplied by.

    Rows stay in their dtype when they are multiplied by them. What is rounded changes no sum of weights, and nothing
    is where all are alike.
    """
    tiny = torch.finfo(weights.dtype).tiny  # none may count at all, as in a tile beside a region
    roots = (weights / weights.amax().clamp(min=tiny)).sqrt().to(dtype)
    return roots, weights.sum() / roots.float().square().sum().clamp(min=tiny)


def _gram(rows: Tensor) -> Tensor:
    gram: Tensor = _Gram.apply(rows)  # type: ignore[no-untyped-call]
    return gram


class _Gram(torch.autograd.Function):
    """X^T X / size of (..., positions, channels), in float32; its backward is one product, in the map's own dtype.

    The gradient goes on through the network in that dtype anyway.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.save_for_backward(rows)
        return sum_of_outer_products(rows) / rows.shape[-2:].numel()

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        rows: Tensor
        (rows,) = context.saved_tensors
        return mapped(rows, (gradient + gradient.mT) / rows.shape[-2:].numel())


def mean_squared_error(value: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of the squared differences of two tensors of one shape, in float32, times `weights` where given."""
    squares = (value.float() - target.float()).square()
    return squares.mean() if weights is None else (weights * squares).mean()


def laplacian(image: Tensor, cell: int) -> Tensor:
    """The discrete Laplacian of (1, 3, H, W) averaged over cells of `cell` x `cell` pixels, (1, 3, h, w).

    Li et al., "Laplacian-steered neural style transfer" (arXiv 1707.01253). The outermost
    cells are repeated at the border, where a picture thus has no edge.
    """
    averaged = F.avg_pool2d(image, cell, ceil_mode=True)
    padded = F.pad(averaged, (1, 1, 1, 1), mode="replicate")
    rows, columns = padded[:, :, :, 1:-1], padded[:, :, 1:-1]
    neighbours = rows[:, :, 2:] + rows[:, :, :-2] + columns[:, :, :, 2:] + columns[:, :, :, :-2]
    return 4 * averaged - neighbours


def total_variation(image: Tensor) -> Tensor:
    """Sum of absolute differences between vertical and horizontal neighbours of (1, 3, H, W)."""
    return vertical_variation(image) + horizontal_variation(image)


def vertical_variation(image: Tensor) -> Tensor:
    """Sum of absolute differences between the pixels of (1, 3, H, W) and those below."""
    return (image[:, :, 1:] - image[:, :, :-1]).abs().sum()


def horizontal_variation(image: Tensor) -> Tensor:
    """Sum of absolute differences between the pixels of (1, 3, H, W) and those to the right."""
    return (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().sum()


def box_penalty(image: Tensor) -> Tensor:
    """Sum of the squared excess of (1, 3, H, W) outside 0-255.

    It keeps the optimum where 8-bit pictures live, so that clipping the result costs nothing.
    """
    return (image - image.clamp(0.0, 255.0)).square().sum()


def root_mean_square(tensor: Tensor) -> Tensor:
    """Square root of the mean square."""
    return tensor.square().mean().sqrt()


def square_sum(tensor: Tensor) -> Tensor:
    """Sum of the squares, without a copy of a contiguous tensor."""
    flat = tensor.flatten()
    return flat @ flat
