"""3x3 convolutions with frozen weights, as one operation each way where oneDNN or cuDNN has it."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nst_engine.onednn import Packed, can_pack, rounded
from nst_engine.pooling import pooled_relu
from nst_engine.winograd_rows import WinogradRows

if TYPE_CHECKING:
    from nst_engine.winograd_squares import WinogradSquares

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
            channels then come by the sixteen, or are colours without a padding, whose gradient is a loop of its own.

    Raises:
        ValueError: in float32 and `sparing`, the channels do not come like that.
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
        self._kernels: Tensor | tuple[_Kernels, _Back]
        self._squares: tuple[WinogradSquares, WinogradSquares] | None = None

        def plain() -> Tensor:
            return weight

        def turned() -> Tensor:
            return weight.flip(2, 3).transpose(0, 1)

        if can_fuse(device, weight):
            through = _through_relu(_Fused(turned(), device, dtype, 2 - padding))
            self._kernels = _Fused(plain(), device, dtype, padding), through
        elif not can_pack(device, dtype):
            self._kernels = rounded(weight.to(device), dtype)
        elif sparing and padding == 1:
            forth, back = _Sparing(plain, dtype), _Sparing(turned, dtype)
            self._kernels = forth, _through_relu(back)
            if forth.squares is not None and back.squares is not None:
                self._squares = forth.squares, back.squares
        elif sparing and dtype == torch.float32:
            from nst_engine.picture_gradient import PictureGradient

            self._kernels = Packed(plain, dtype, (0, 0)), PictureGradient(weight)
        else:
            through = _through_relu(Packed(turned, dtype, (2 - padding, 2 - padding)))
            self._kernels = Packed(plain, dtype, (padding, padding)), through

    def __call__(self, hidden: Tensor, *, relu: bool) -> Tensor:
        """The maps (N, O, h, w) of (N, I, h, w), channels-last in and out."""
        if isinstance(self._kernels, Tensor):
            mapped = F.conv2d(hidden, self._kernels, self._bias, padding=self._padding)
            return F.relu(mapped) if relu else mapped
        frozen: Tensor = _Frozen.apply(hidden, *self._kernels, self._bias, relu)  # type: ignore[no-untyped-call]
        return frozen

    @property
    def pools(self) -> bool:
        """Whether `pooled` writes the maxima alone down, but for small maps."""
        return self._squares is not None

    def pooled(self, hidden: Tensor) -> Tensor:
        """The 2x2 maxima (N, O, h // 2, w // 2) of the maps' ReLU, on a CPU."""
        if self._squares is None or min(hidden.shape[2:]) < 2 or hidden.shape[2:].numel() < SQUARES_POSITIONS:
            return pooled_relu(self(hidden, relu=False))
        pooled: Tensor = _FrozenPooled.apply(hidden, *self._squares, self._bias)  # type: ignore[no-untyped-call]
        return pooled


class _Kernels(Protocol):
    """Prepared weights, which turn (N, I, h, w) into (N, O, h, w), plus a bias, and with the ReLU if asked."""

    def __call__(self, hidden: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor: ...


# From a map's gradient and the map, if it had a ReLU, to the gradient of what it was made of.
_Back = Callable[[Tensor, Tensor | None], Tensor]


def _through_relu(turned: _Kernels) -> _Back:
    def back(gradient: Tensor, mapped: Tensor | None) -> Tensor:
        if mapped is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, mapped, 0)
        return turned(gradient.contiguous(memory_format=torch.channels_last), None, relu=False)

    return back


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
    """Multiplies less where there is enough to multiply, in float32 by `squares`."""

    def __init__(self, weight: Callable[[], Tensor], dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype
        self.squares: WinogradSquares | None = None
        self._winograd: _Kernels
        if dtype == torch.float32:
            from nst_engine import winograd_squares  # which brings a compiler of 40 MB

            self.squares = winograd_squares.WinogradSquares(weight)
            self._fewest, self._winograd = SQUARES_POSITIONS, self.squares
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
    def forward(context: Any, hidden: Tensor, forth: _Kernels, back: _Back, bias: Tensor, relu: bool) -> Tensor:
        mapped = forth(hidden, bias, relu=relu)
        context.back = back
        context.save_for_backward(mapped if relu else None)
        return mapped

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return context.back(gradient, *context.saved_tensors), None, None, None, None


class _FrozenPooled(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: Tensor, forth: "WinogradSquares", back: "WinogradSquares", bias: Tensor
    ) -> Tensor:
        maxima, places = forth.pooled(hidden, bias)
        context.back, context.size = back, hidden.shape[2:]
        context.save_for_backward(places)
        return maxima

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return context.back.unpooled(gradient, *context.saved_tensors, *context.size), None, None, None


def can_fuse(device: torch.device, weight: Tensor) -> bool:
    """Whether cuDNN convolves here; it wants channels by the eight."""
    cudnn: bool = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    return device.type == "cuda" and cudnn and weight.shape[1] % 8 == 0
