"""3x3 convolutions with frozen weights, as one operation each way where oneDNN or cuDNN has it."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nst_engine.onednn import Packed, can_pack, rounded
from nst_engine.winograd_rows import WinogradRows

# On maps with fewer positions it takes longer to start the operations of `WinogradRows`, or to read the weights of
# `WinogradSquares`, than the time that they save.
ROWS_POSITIONS, SQUARES_POSITIONS = 512, 64
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
        sparing: whether to multiply less where there is enough to multiply, on a CPU, with a padding of 1; in float32
            channels then come by the sixteen.
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

        def plain() -> Tensor:
            return weight

        def turned() -> Tensor:
            return weight.flip(2, 3).transpose(0, 1)

        if can_fuse(device, weight):
            self._kernels = _Fused(plain(), device, dtype, padding), _Fused(turned(), device, dtype, 2 - padding)
        elif not can_pack(device, dtype):
            self._kernels = rounded(weight.to(device), dtype)
        elif sparing and padding == 1:
            self._kernels = _Sparing(plain, dtype), _Sparing(turned, dtype)
        else:
            self._kernels = Packed(plain, dtype, (padding,) * 2), Packed(turned, dtype, (2 - padding,) * 2)

    def __call__(self, hidden: Tensor, *, relu: bool) -> Tensor:
        """The maps (N, O, h, w) of (N, I, h, w), channels-last in and out."""
        if isinstance(self._kernels, Tensor):
            mapped = F.conv2d(hidden, self._kernels, self._bias, padding=self._padding)
            return F.relu(mapped) if relu else mapped
        frozen: Tensor = _Frozen.apply(hidden, *self._kernels, self._bias, relu)  # type: ignore[no-untyped-call]
        return frozen


class _Kernels(Protocol):
    """Prepared weights, which turn (N, I, h, w) into (N, O, h, w), plus a bias, and with the ReLU if asked."""

    def __call__(self, hidden: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor: ...


class _Fused:
    def __init__(self, weight: Tensor, device: torch.device, dtype: torch.dtype, padding: int) -> None:
        self._padding = [padding, padding]
        self._weight = rounded(weight.to(device), dtype)

    def __call__(self, hidden: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        if not relu or hidden.numel() >= FUSED_NUMBERS:
            mapped = F.conv2d(hidden, self._weight, bias, padding=self._padding)
            return mapped.relu_() if relu else mapped
        return torch.cudnn_convolution_relu(hidden, self._weight, bias, [1, 1], self._padding, [1, 1], 1)


class _Sparing:
    """Multiplies less where there is enough to multiply."""

    def __init__(self, weight: Callable[[], Tensor], dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype
        self._winograd: _Kernels
        if dtype == torch.float32:
            from nst_engine.winograd_squares import WinogradSquares  # which brings a compiler of 40 MB

            self._fewest, self._winograd = SQUARES_POSITIONS, WinogradSquares(weight)
        else:
            self._fewest, self._winograd = ROWS_POSITIONS, WinogradRows(weight, dtype)

    def __call__(self, hidden: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        few = hidden.shape[2:].numel() < self._fewest
        return (self._direct if few else self._winograd)(hidden, bias, relu=relu)

    @cached_property
    def _direct(self) -> Packed:
        # No picture may be so small.
        return Packed(self._weight, self._dtype, padding=(1, 1))


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: _Kernels, turned: _Kernels, bias: Tensor, relu: bool) -> Tensor:
        mapped = weight(hidden, bias, relu=relu)
        context.turned = turned
        context.save_for_backward(*((mapped,) if relu else ()))
        return mapped

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for mapped in context.saved_tensors:
            gradient = torch.ops.aten.threshold_backward(gradient, mapped, 0)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return context.turned(gradient, None, relu=False), None, None, None, None


def can_fuse(device: torch.device, weight: Tensor) -> bool:
    """Whether cuDNN convolves here; it wants channels by the eight."""
    cudnn: bool = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    return device.type == "cuda" and cudnn and weight.shape[1] % 8 == 0
