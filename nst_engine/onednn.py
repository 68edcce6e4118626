"""Convolutions by oneDNN, with weights that are packed once."""

from collections.abc import Sequence

import torch
from torch import Tensor

# oneDNN packs weights for a picture size. It is always this one, so that the packing, and with it
# every last bit of a result, does not depend on what a process has computed before.
PACKING_SIDE = 64
NO_DILATION = (1, 1)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype here."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights in `dtype`, laid out as convolutions here take them."""
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)


class Packed:
    """A convolution with these weights.

    Args:
        weight: (O, I / groups, h, w), float32.
        dtype: what to compute in.
        padding, stride: rows and columns.
        groups: into which the channels are divided.
    """

    def __init__(
        self,
        weight: Tensor,
        dtype: torch.dtype,
        padding: Sequence[int],
        stride: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> None:
        self._geometry = padding, stride, NO_DILATION, groups
        shape = [1, groups * weight.shape[1], PACKING_SIDE, PACKING_SIDE]
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            rounded(weight, dtype), padding, stride, NO_DILATION, groups, shape
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return int(self._weight.nbytes)

    def __call__(self, hidden: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """The maps (N, O, h, w) of (N, I, h, w), plus a bias (O,), and with the ReLU if asked; all channels-last."""
        then = "relu" if relu else "none"
        mapped: Tensor = torch.ops.mkldnn._convolution_pointwise(
            hidden, self._weight, bias, *self._geometry, then, [], ""
        )
        return mapped

    def onto(self, maps: Tensor, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """The sum of `maps` and the maps of `hidden`, rounded once."""
        added: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            hidden, maps, self._weight, bias, *self._geometry, "add", None, None, [], None
        )
        return added
