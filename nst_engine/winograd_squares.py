"""3x3 convolutions with a quarter of the multiplications, by Winograd's minimal filtering in both directions."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine.winograd_rows import KERNEL_TRANSFORM, ONE, TILE

POINTS = len(KERNEL_TRANSFORM)
# What a strip of tiles takes at the points: long enough for fast products, short enough for a processor's cache.
STRIP_BYTES = 10_000_000


class WinogradSquares:
    """A 3x3 convolution with a padding of 1 in float32, on a CPU: as 36 products of matrices, and additions.

    F(4x4, 3x3) of Lavin and Gray (arXiv 1509.09308, section 4.3). It rounds three times as much as a direct one.

    Args:
        weight: makes (O, I, 3, 3) in float32.
    """

    def __init__(self, weight: Callable[[], Tensor]) -> None:
        self._kernels = _at_the_points(weight())

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, four times those of the kernel."""
        return self._kernels.nbytes

    def __call__(self, hidden: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """See `onednn.Packed`. A picture's map does not depend on those that are beside it."""
        height, width = hidden.shape[2:]
        rows, columns = -(-height // TILE), -(-width // TILE)
        _, *channels = self._kernels.shape
        mapped = hidden.new_empty(len(hidden), rows, TILE, columns, TILE, channels[1])
        strip = max(1, STRIP_BYTES // (POINTS**2 * columns * max(channels) * hidden.itemsize))
        for picture, tiles in zip(hidden.permute(0, 2, 3, 1), mapped, strict=True):
            for first in range(0, rows, strip):
                wanted = tiles[first : first + strip]
                seen = _framed(picture, first * TILE - 1, (first + len(wanted)) * TILE + 1, columns * TILE + 1)
                _convolve(seen, self._kernels, bias, wanted)
        cropped = mapped.flatten(3, 4).flatten(1, 2)[:, :height, :width].permute(0, 3, 1, 2)
        return cropped.relu_() if relu else cropped


def _at_the_points(weight: Tensor) -> Tensor:
    """(36, I, O) of (O, I, 3, 3): the kernels at each of the points for rows, and at each for columns."""
    transform = weight.new_tensor(KERNEL_TRANSFORM)
    channels_out, channels_in = weight.shape[:2]
    places = weight.permute(2, 3, 1, 0).reshape(-1, channels_in * channels_out)
    return (torch.kron(transform, transform) @ places).view(-1, channels_in, channels_out)


def _framed(picture: Tensor, top: int, bottom: int, right: int) -> Tensor:
    """Rows `top` to before `bottom` of (h, w, C), and columns -1 to before `right`, 0 outside of the picture."""
    height, width, _ = picture.shape
    return F.pad(picture[max(top, 0) : bottom], (0, 0, 1, right - width, max(-top, 0), max(bottom - height, 0)))


def _convolve(seen: Tensor, kernels: Tensor, bias: Tensor | None, tiles: Tensor) -> None:
    """Into `tiles`, (rows, 4, columns, 4, O), what comes of (4 * rows + 2, 4 * columns + 2, I)."""
    rows, _, columns, _, channels_out = tiles.shape
    _, width, channels_in = seen.shape
    in_rows = seen.new_empty(POINTS, rows, width, channels_in)
    _spread([seen[place::TILE][:rows] for place in range(POINTS)], in_rows.unbind(0))
    spread = seen.new_empty(POINTS, POINTS, rows, columns, channels_in)
    _spread([in_rows[:, :, place::TILE][:, :, :columns] for place in range(POINTS)], spread.unbind(1))
    del in_rows
    products = torch.bmm(spread.view(POINTS**2, rows * columns, channels_in), kernels)
    del spread
    if bias is not None:
        # A constant square is 1 at the point 1 of both directions, and 0 at all others: so is a bias.
        products[ONE * POINTS + ONE] += bias
    joined = products.new_empty(TILE, POINTS, rows, columns, channels_out)
    _join(products.view(POINTS, POINTS, rows, columns, channels_out).unbind(0), joined.unbind(0))
    _join(joined.unbind(1), tiles.permute(3, 1, 0, 2, 4).unbind(0))


def _spread(neighbours: Sequence[Tensor], points: Sequence[Tensor]) -> None:
    """Into `points` what six neighbours in a line become there, by the rows of `INPUT_TRANSFORM`."""
    a, b, c, d, e, f = neighbours
    zero, one, minus_one, two, minus_two, infinity = points
    even, odd = torch.sub(e, c, alpha=4), torch.sub(d, b, alpha=4)
    torch.add(even, odd, out=one)
    torch.sub(even, odd, out=minus_one)
    torch.sub(e, c, out=even)
    torch.sub(d, b, out=odd)
    torch.add(even, odd, alpha=2, out=two)
    torch.sub(even, odd, alpha=2, out=minus_two)
    torch.add(even, torch.sub(a, c, out=zero), alpha=4, out=zero)
    torch.sub(torch.sub(f, d, out=infinity), odd, alpha=4, out=infinity)


def _join(points: Sequence[Tensor], tile: Sequence[Tensor]) -> None:
    """Into `tile` the four neighbours in a line that the points make, which are sums of powers of the points."""
    zero, one, minus_one, two, minus_two, infinity = points
    first, second, third, fourth = tile
    ones, odd_ones, twos, odd_twos = one + minus_one, one - minus_one, two + minus_two, two - minus_two
    torch.add(odd_ones, odd_twos, alpha=2, out=second)
    torch.add(ones, twos, alpha=4, out=third)
    torch.add(infinity, torch.add(odd_ones, odd_twos, alpha=8, out=fourth), out=fourth)
    torch.add(zero, ones.add_(twos), out=first)
