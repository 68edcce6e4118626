"""A small convolutional network that paints over a picture; a job optimises its weights."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine.pictures import MID_GREY

# Channels by level, from full size down; each level has half the height and width of the one before.
WIDTHS = (16, 32, 32, 32, 32)
INPUTS = 3
# Channels are normalised in groups, which works down to maps of a single position.
GROUPS = 4
NEGATIVE_SLOPE = 0.2
# Bytes of the maps that an evaluation keeps for its backward pass, for each pixel of the picture.
BYTES_PER_PIXEL = 900


class ImageNetwork:
    """A U-Net from a picture to what is to be added to it, its weights given as one flat tensor.

    After Ulyanov, Vedaldi and Lempitsky, "Deep image prior" (arXiv 1711.10925): strided 3x3
    convolutions down, bilinear enlargement and skips up, each convolution without bias, normalised
    in groups of channels (Wu and He, arXiv 1803.08494), biased, and rectified leakily. The last
    layer, 1x1, starts at zero: a network of initial weights adds nothing.
    Weights are in units of 1/127.5: those of the last layer act in 0-255 units, and a step in them is
    about as large as one in pixels.

    Args:
        seed: of the initial weights.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        down = list(zip((INPUTS, *WIDTHS), WIDTHS, strict=False))
        up = [(deep + skip, skip) for deep, skip in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)]
        self._kernels = [(outputs, inputs, 3, 3) for inputs, outputs in (*down, *up)]
        self._kernels.append((3, WIDTHS[0], 1, 1))
        self._sizes = [size for kernel in self._kernels for size in (math.prod(kernel), kernel[0])]

    def initial_weights(self) -> Tensor:
        """Normal weights that keep the variance of the maps (He et al., arXiv 1502.01852), flat, on the CPU."""
        generator = torch.Generator().manual_seed(self._seed)
        weights = torch.zeros(sum(self._sizes))
        for kernel, (values, _) in zip(self._kernels[:-1], self._parts(weights), strict=False):
            values.normal_(std=MID_GREY * math.sqrt(2 / math.prod(kernel[1:])), generator=generator)
        return weights

    def __call__(self, picture: Tensor, weights: Tensor) -> Tensor:
        """What to add, (1, 3, H, W) in 0-255 units, to a picture of that shape; differentiable in the weights."""
        layers = self._parts(weights / MID_GREY)
        hidden = picture / MID_GREY - 1
        maps = []
        for level, (kernel, bias) in zip(range(len(WIDTHS)), layers, strict=False):
            hidden = _layer(hidden, kernel, bias, stride=2 if level else 1)
            maps.append(hidden)
        for skip in maps[-2::-1]:
            kernel, bias = next(layers)
            enlarged = F.interpolate(hidden, size=skip.shape[2:], mode="bilinear", align_corners=False)
            hidden = _layer(torch.cat((enlarged, skip), 1), kernel, bias)
        kernel, bias = next(layers)
        return MID_GREY * F.conv2d(hidden, kernel, bias)

    def _parts(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of kernel and bias, layer by layer."""
        parts = iter(torch.split(weights, self._sizes))
        for kernel in self._kernels:
            yield next(parts).view(kernel), next(parts)


def _layer(hidden: Tensor, kernel: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    mapped = F.group_norm(F.conv2d(hidden, kernel, stride=stride, padding=1), GROUPS)
    return F.leaky_relu(mapped + bias[:, None, None], NEGATIVE_SLOPE)
