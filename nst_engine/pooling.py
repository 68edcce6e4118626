"""How a VGG shrinks its maps: 2x2 maxima or means."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# A mean of four is smaller than their maximum, and the deficit grows with every pooling, to a sixth
# at relu5_1. With this gain the norms of the maps at relu2_1 to relu5_1 of vgg16-caffe stay within
# 0.84 to 1.27 of those under max pooling, on photographs; a gain of 2 lets them grow to 2.8 times.
AVERAGE_POOLING_GAIN = 1.5
SIDE = [2, 2]


def pooled(hidden: Tensor, pooling: str) -> Tensor:
    """The maps (N, C, h // 2, w // 2) of (N, C, h, w), by "max" or "average" pooling."""
    if pooling == "max":
        return F.max_pool2d(hidden, SIDE)
    return F.avg_pool2d(hidden, SIDE) * AVERAGE_POOLING_GAIN


def pooled_relu(hidden: Tensor) -> Tensor:
    """The 2x2 maxima of a map's ReLU, on a CPU.

    They are the ReLU of the map's maxima. So a quarter as much goes through it, there and back, and the gradient needs
    these and their places alone: the map, the largest that a block would keep, is let go.
    """
    rectified: Tensor = _PooledRelu.apply(hidden)  # type: ignore[no-untyped-call]
    return rectified


class _PooledRelu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor) -> Tensor:
        maxima, places = torch.ops.aten.max_pool2d_with_indices(hidden, SIDE, SIDE)
        context.shape = hidden.shape
        context.save_for_backward(maxima.relu_(), places)
        return maxima  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        maxima, places = context.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, maxima, 0)
        whole = torch.empty(context.shape, dtype=gradient.dtype, memory_format=torch.channels_last)
        # Of what was pooled only the shape is looked at.
        return torch.ops.aten.max_pool2d_with_indices_backward.grad_input(  # type: ignore[no-any-return]
            gradient, whole, SIDE, SIDE, [0, 0], [1, 1], False, places, grad_input=whole
        )
