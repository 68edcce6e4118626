"""3x3 convolutions with half the multiplications, by Winograd's minimal filtering along the rows."""

import torch
from torch import Tensor

# What a row of the kernel becomes at the points 0, 1, -1, 2, -2 and infinity, divided by what the input is spared.
KERNEL_TRANSFORM = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
# The point to whose values a bias is added: a constant row is 1 there and 0 at the others.
CONSTANT = 1
# Outputs of a row that are computed together.
TILE = 4


def transformed(weight: Tensor) -> list[Tensor]:
    """The kernels of the six convolutions that take the place of one, (O, I, 3, 1) each, of (O, I, 3, 3)."""
    points = weight @ weight.new_tensor(KERNEL_TRANSFORM).T
    return [kernel.unsqueeze(-1) for kernel in points.unbind(-1)]


def spread(hidden: Tensor) -> list[Tensor]:
    """Rows at the six points, (N, C, H, ceil(W / 4)) each, of (N, C, H, W), channels-last in and out.

    F(4, 3) of Lavin and Gray (arXiv 1509.09308, section 4.3), along rows only: two dimensions would spare more
    multiplications, but cost more additions, and twice the rounding error.
    """
    width = hidden.shape[3]
    tiles = -(-width // TILE)
    # Channels-last, where a step along the row is one over whole vectors of channels.
    inner = hidden.permute(0, 2, 3, 1)
    rows = inner.new_empty(*inner.shape[:2], TILE * tiles + 2, inner.shape[3])
    rows[:, :, :1], rows[:, :, 1 : width + 1], rows[:, :, width + 1 :] = 0, inner, 0
    x = [rows[:, :, offset : offset + TILE * tiles - 3 : TILE] for offset in range(6)]
    even, odd = torch.sub(x[4], x[2], alpha=4), torch.sub(x[3], x[1], alpha=4)
    points = [even + odd, even - odd]
    even, odd = x[4] - x[2], x[3] - x[1]
    points += [torch.add(even, odd, alpha=2), torch.sub(even, odd, alpha=2)]
    zero, infinity = torch.add(even, x[0] - x[2], alpha=4), torch.sub(x[5] - x[3], odd, alpha=4)
    return [point.permute(0, 3, 1, 2) for point in (zero, *points, infinity)]


def gathered(points: list[Tensor], width: int) -> Tensor:
    """The rows, (N, C, H, `width`), of which `points` are the values at the six points."""
    zero, one, minus_one, two, minus_two, infinity = (point.permute(0, 2, 3, 1) for point in points)
    batch, height, tiles, channels = zero.shape
    rows = zero.new_empty(batch, height, TILE * tiles, channels)
    ones, twos = one + minus_one, two + minus_two
    torch.add(zero + ones, twos, out=rows[:, :, 0::TILE])
    torch.add(ones, twos, alpha=4, out=rows[:, :, 2::TILE])
    ones, twos = one - minus_one, two - minus_two
    torch.add(ones, twos, alpha=2, out=rows[:, :, 1::TILE])
    torch.add(infinity + ones, twos, alpha=8, out=rows[:, :, 3::TILE])
    return rows[:, :, :width].permute(0, 3, 1, 2)
