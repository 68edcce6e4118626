"""3x3 convolutions with frozen weights, as one operation each way where oneDNN has it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# oneDNN packs weights for a picture size. It is always this one, so that the packing, and with it
# every last bit of a result, does not depend on what a process has computed before.
PACKING_SIDE = 64


class Convolution:
    """A frozen 3x3 convolution and, if asked, the ReLU after it.

    On a CPU the weights are packed once for oneDNN, which applies the ReLU before the map is written,
    and the gradient is a convolution with the kernels turned round, packed likewise: together a fifth
    faster than plain operations, which pack anew at every call and pass over the map twice.

    Args:
        weight: (O, I, 3, 3), on its device and in its dtype, as is `bias`.
        bias: (O,).
        padding: rows and columns of zeros put around the input, 0 or 1.
    """

    def __init__(self, weight: Tensor, bias: Tensor, padding: int) -> None:
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias = bias
        self._padding = padding
        self._packed: tuple[Tensor, Tensor] | None = None
        if _can_pack(weight):
            turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            self._packed = _pack(self._weight, padding), _pack(turned, 2 - padding)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in (self._weight, self._bias, *(self._packed or ())))

    def __call__(self, hidden: Tensor, *, relu: bool) -> Tensor:
        """The maps (N, O, h, w) of (N, I, h, w), channels-last in and out."""
        if self._packed is not None:
            mapped: Tensor = _Packed.apply(hidden, *self._packed, self._bias, self._padding, relu)  # type: ignore[no-untyped-call]
            return mapped
        mapped = F.conv2d(hidden, self._weight, self._bias, padding=self._padding)
        return F.relu(mapped) if relu else mapped


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, turned: Tensor, bias: Tensor, padding: int, relu: bool
    ) -> Tensor:
        mapped = _convolve(hidden, weight, bias, padding, "relu" if relu else "none")
        context.turned, context.padding = turned, padding
        context.save_for_backward(*((mapped,) if relu else ()))
        return mapped

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for mapped in context.saved_tensors:
            gradient = torch.ops.aten.threshold_backward(gradient, mapped, 0)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return _convolve(gradient, context.turned, None, 2 - context.padding, "none"), None, None, None, None, None


def _convolve(hidden: Tensor, packed: Tensor, bias: Tensor | None, padding: int, then: str) -> Tensor:
    mapped: Tensor = torch.ops.mkldnn._convolution_pointwise(
        hidden, packed, bias, [padding] * 2, [1, 1], [1, 1], 1, then, [], ""
    )
    return mapped


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(weight: Tensor, padding: int) -> Tensor:
    shape = [1, weight.shape[1], PACKING_SIDE, PACKING_SIDE]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, [padding] * 2, [1, 1], [1, 1], 1, shape)
    return packed
