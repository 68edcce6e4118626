"""3x3 convolutions with half the multiplications, by Winograd's minimal filtering along the rows."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine.onednn import Packed
from nst_engine.winograd import INFINITY, INPUT_TRANSFORM, KERNEL_TRANSFORM, MINUS_ONE, MINUS_TWO, ONE, TILE, TWO, ZERO


class WinogradRows:
    """A 3x3 convolution with a padding of 1, for oneDNN: as six depthwise ones, six of 3x1, and additions.

    Two dimensions would spare more multiplications, but cost more additions, and twice the rounding error, of which
    bfloat16 has enough.

    Args:
        weight: makes (O, I, 3, 3) in float32; see `Packed`.
        dtype: what to compute in.
    """

    def __init__(self, weight: Callable[[], Tensor], dtype: torch.dtype) -> None:
        channels = weight().shape[1]
        rows = (partial(_spreading, row, channels) for row in INPUT_TRANSFORM)
        self._spread = [Packed(row, dtype, padding=(0, 1), stride=(1, TILE), groups=channels) for row in rows]
        columns = (partial(_multiplying, weight, row) for row in KERNEL_TRANSFORM)
        self._multiply = [Packed(column, dtype, padding=(1, 0)) for column in columns]

    def __call__(self, hidden: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """See `Packed`."""
        width = hidden.shape[3]
        if width % TILE:
            hidden = F.pad(hidden, (0, -width % TILE))
        minus_one, minus_two = self._at(MINUS_ONE, hidden), self._at(MINUS_TWO, hidden)
        # A constant row is 1 at the point 1 and 0 at the others: so is a bias.
        ones = self._onto(minus_one, ONE, hidden, bias)
        twos = self._onto(minus_two, TWO, hidden)
        zero = self._onto(ones, ZERO, hidden)
        odd_ones, odd_twos = torch.sub(ones, minus_one, alpha=2), torch.sub(twos, minus_two, alpha=2)
        infinity = self._onto(odd_ones, INFINITY, hidden)
        del minus_one, minus_two, hidden
        mapped = _interleaved((zero, odd_ones, ones, infinity), (twos, odd_twos, twos, odd_twos))[..., :width]
        return mapped.relu_() if relu else mapped

    def _at(self, point: int, hidden: Tensor) -> Tensor:
        return self._multiply[point](self._spread[point](hidden))

    def _onto(self, maps: Tensor, point: int, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._multiply[point].onto(maps, self._spread[point](hidden), bias)


def _spreading(row: Sequence[float], channels: int) -> Tensor:
    return torch.tensor(row).expand(channels, 1, 1, -1)


def _multiplying(weight: Callable[[], Tensor], row: Sequence[float]) -> Tensor:
    made = weight()
    return (made @ made.new_tensor(row)).unsqueeze(-1)


def _interleaved(parts: tuple[Tensor, ...], twos: tuple[Tensor, ...]) -> Tensor:
    """Every fourth column, from the first to the fourth on: `parts`, and 1, 2, 4 and 8 times `twos` added to them."""
    batch, channels, height, tiles = parts[0].shape
    columns = parts[0].new_empty(batch, height, tiles, TILE, channels)
    for offset, (part, two) in enumerate(zip(parts, twos, strict=True)):
        torch.add(part.permute(0, 2, 3, 1), two.permute(0, 2, 3, 1), alpha=2**offset, out=columns[:, :, :, offset])
    return columns.flatten(2, 3).permute(0, 3, 1, 2)
