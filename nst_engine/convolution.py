"""3x3 convolutions with frozen weights, as one operation each way where oneDNN or cuDNN has it."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine import hardware, winograd

# oneDNN packs weights for a picture size. It is always this one, so that the packing, and with it
# every last bit of a result, does not depend on what a process has computed before.
PACKING_SIDE = 64
# On maps with fewer positions it takes longer to start Winograd's operations than the time that they save.
WINOGRAD_POSITIONS = 512
# From here on maps may have more numbers than cuDNN indexes; convolutions alone are split by torch. No layer here has
# more than twice as many channels as the one before it.
FUSED_NUMBERS = 2**30


class Convolution:
    """A frozen 3x3 convolution and, if asked, the ReLU after it.

    On a CPU the weights are packed once for oneDNN, which applies the ReLU before the map is written,
    and the gradient is a convolution with the kernels turned round, packed likewise: together a fifth
    faster than plain operations, which pack anew at every call and pass over the map twice. On a GPU cuDNN adds
    the bias and applies the ReLU before the map is written.

    Args:
        weight: (O, I, 3, 3), float32, as is `bias`.
        bias: (O,).
        padding: rows and columns of zeros put around the input, 0 or 1.
        device, dtype: where and in what to compute.
        sparing: whether to multiply less where that pays, for some more rounding, with a padding of 1; see `winograd`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        padding: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        sparing: bool = False,
    ) -> None:
        self._bias = bias.to(device, dtype)
        self._padding = padding
        self._kernels: Tensor | tuple[_Kernels, _Kernels]
        turned = weight.flip(2, 3).transpose(0, 1)
        if can_fuse(device, weight):
            self._kernels = _Fused(weight, device, dtype, padding), _Fused(turned, device, dtype, 2 - padding)
        elif not can_pack(device, dtype):
            self._kernels = _rounded(weight.to(device), dtype)
        elif sparing and padding == 1 and hardware.multiplies_dearly(device, dtype):
            self._kernels = _Winograd(weight, dtype), _Winograd(turned, dtype)
        else:
            self._kernels = _Direct(weight, dtype, padding), _Direct(turned, dtype, 2 - padding)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        kernels = (self._kernels,) if isinstance(self._kernels, Tensor) else self._kernels
        return self._bias.nbytes + sum(part.nbytes for part in kernels)

    def __call__(self, hidden: Tensor, *, relu: bool) -> Tensor:
        """The maps (N, O, h, w) of (N, I, h, w), channels-last in and out."""
        if isinstance(self._kernels, Tensor):
            mapped = F.conv2d(hidden, self._kernels, self._bias, padding=self._padding)
            return F.relu(mapped) if relu else mapped
        frozen: Tensor = _Frozen.apply(hidden, *self._kernels, self._bias, relu)  # type: ignore[no-untyped-call]
        return frozen


class _Kernels(Protocol):
    """Prepared weights, which turn (N, I, h, w) into (N, O, h, w), plus a bias, and with the ReLU if asked."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self, hidden: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor: ...


class _Direct:
    def __init__(self, weight: Tensor, dtype: torch.dtype, padding: int) -> None:
        self._padding = [padding, padding]
        self._packed = _pack(weight, dtype, self._padding)

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes

    def __call__(self, hidden: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        return _convolve(hidden, self._packed, bias, self._padding, "relu" if relu else "none")


class _Fused:
    def __init__(self, weight: Tensor, device: torch.device, dtype: torch.dtype, padding: int) -> None:
        self._padding = [padding, padding]
        self._weight = _rounded(weight.to(device), dtype)

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def __call__(self, hidden: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        if not relu or hidden.numel() >= FUSED_NUMBERS:
            mapped = F.conv2d(hidden, self._weight, bias, padding=self._padding)
            return mapped.relu_() if relu else mapped
        return torch.cudnn_convolution_relu(hidden, self._weight, bias, [1, 1], self._padding, [1, 1], 1)


class _Winograd:
    PADDING = (1, 0)

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self._packed = [_pack(kernel, dtype, self.PADDING) for kernel in winograd.transformed(weight)]
        self._direct = _Direct(weight, dtype, padding=1)

    @property
    def nbytes(self) -> int:
        return self._direct.nbytes + sum(packed.nbytes for packed in self._packed)

    def __call__(self, hidden: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        height, width = hidden.shape[2:]
        if height * width < WINOGRAD_POSITIONS:
            return self._direct(hidden, bias, relu=relu)
        points = winograd.spread(hidden)
        for index, packed in enumerate(self._packed):  # in place, so that no more is held than there must be
            own = bias if index == winograd.CONSTANT else None
            points[index] = _convolve(points[index], packed, own, self.PADDING, "none")
        mapped = winograd.gathered(points, width)
        return mapped.relu_() if relu else mapped


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: _Kernels, turned: _Kernels, bias: Tensor, relu: bool) -> Tensor:
        mapped = weight(hidden, bias, relu=relu)
        context.turned = turned
        context.save_for_backward(*((mapped,) if relu else ()))
        return mapped

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for mapped in context.saved_tensors:
            gradient = torch.ops.aten.threshold_backward(gradient, mapped, 0)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return context.turned(gradient, None, relu=False), None, None, None, None


def _convolve(hidden: Tensor, packed: Tensor, bias: Tensor | None, padding: Sequence[int], then: str) -> Tensor:
    mapped: Tensor = torch.ops.mkldnn._convolution_pointwise(
        hidden, packed, bias, padding, [1, 1], [1, 1], 1, then, [], ""
    )
    return mapped


def can_fuse(device: torch.device, weight: Tensor) -> bool:
    """Whether cuDNN convolves here; it wants channels by the eight."""
    cudnn: bool = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    return device.type == "cuda" and cudnn and weight.shape[1] % 8 == 0


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype here."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(weight: Tensor, dtype: torch.dtype, padding: Sequence[int]) -> Tensor:
    shape = [1, weight.shape[1], PACKING_SIDE, PACKING_SIDE]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        _rounded(weight, dtype), padding, [1, 1], [1, 1], 1, shape
    )
    return packed


def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)
