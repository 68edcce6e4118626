"""How the gradient of the first map becomes that of the picture, in float32 on a CPU."""

import torch
from torch import Tensor

from nst_engine.lanes import LANES
from nst_engine.picture_gradient_kernels import COLORS, SEEN, SIDE, gradient_of_picture, program


class PictureGradient:
    """Through the ReLU and a 3x3 convolution of three colours, without padding, in one operation.

    oneDNN is at its best with many channels on both sides; this takes a third of its time, and of that of the ReLU.

    Args:
        weight: (O, 3, 3, 3), float32.

    Raises:
        ValueError: O is not a multiple of `LANES`, or there are not three colours.
    """

    def __init__(self, weight: Tensor) -> None:
        self._channels, colors, *_ = weight.shape
        if self._channels % LANES or colors != COLORS:
            raise ValueError(f"weight: must be (n * {LANES}, {COLORS}, 3, 3), not {tuple(weight.shape)}")
        self._weight, self._zeros = weight.permute(2, 3, 1, 0).contiguous(), torch.zeros(self._channels)

    def __call__(self, gradient: Tensor, mapped: Tensor | None) -> Tensor:
        """The gradient (N, 3, h + 2, w + 2) of (N, O, h, w), given the map after its ReLU, or None if it had none.

        Raises:
            OSError: see `gnu_threads`.
            TypeError: one of them is not in float32.
            ValueError: they are not of one shape, or have other channels than the weights.
        """
        rectified, mapped = (0, gradient) if mapped is None else (1, mapped)
        if gradient.shape != mapped.shape or gradient.shape[1] != self._channels:
            raise ValueError(f"gradient: {tuple(gradient.shape)} does not fit {tuple(mapped.shape)} or the weights")
        height, width = gradient.shape[2:]
        picture = gradient.new_empty(len(gradient), height + SIDE - 1, width + SIDE - 1, COLORS)
        room = gradient.new_empty(torch.get_num_threads(), SIDE, SEEN, self._channels)
        maps = (each.permute(0, 2, 3, 1).contiguous() for each in (gradient, mapped))
        for *seen, found in zip(*maps, picture, strict=True):
            tensors = *seen, self._weight, self._zeros, room, found
            program().run(gradient_of_picture, *tensors, height, width, self._channels, rectified)
        return picture.permute(0, 3, 1, 2)
