"""`products` in float32 on a CPU: MKL's take longer with few channels, and compute both halves of X^T X."""

import torch
from torch import Tensor

from nst_engine.product_kernels import add_outer_products, map_rows, program
from nst_engine.products import PANEL

# Rows whose outer products are added up at a time: with more they leave the core's own cache.
STRIP_ROWS = 512
# Where each has so many rows for each channel, so many parts are added up by one thread each, and nobody is waited for;
# how many there are does not depend on the threads.
PARTS = 16
PART_ROWS = 2


def sum_of_outer_products(rows: Tensor) -> Tensor:
    """See `products`; its bits depend neither on threads nor on other maps."""
    if rows.dim() > 2:
        return torch.stack([sum_of_outer_products(one) for one in rows])
    count, channels = rows.shape
    apart = count >= PARTS * PART_ROWS * channels
    strip, shares = min(STRIP_ROWS, count), (0, PARTS) if apart else (1, 0)
    room = rows.new_empty(torch.get_num_threads() if apart else 1, channels // PANEL, strip, PANEL)
    sums = rows.new_zeros(sum(shares), channels, channels)
    program().run(add_outer_products, rows.contiguous(), room, sums, count, channels, strip, *shares)
    upper = sums.sum(0)
    return upper.triu() + upper.triu(1).mT


def mapped(rows: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """See `products`."""
    if rows.dim() > 2:
        shifts = [None] * len(rows) if shift is None else shift
        return torch.stack([mapped(*one) for one in zip(rows, matrix, shifts, strict=True)])
    count, channels = rows.shape
    panels = matrix.view(channels, channels // PANEL, PANEL).transpose(0, 1).contiguous()
    added, found = rows.new_zeros(channels) if shift is None else shift, rows.new_empty(rows.shape)
    program().run(map_rows, rows.contiguous(), panels, added, found, count, channels, channels)
    return found
