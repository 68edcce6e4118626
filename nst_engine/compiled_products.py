"""`products` in float32 on a CPU: MKL takes longer with few channels, and works out both halves of X^T X."""

import torch
from torch import Tensor

from nst_engine.lanes import PANEL
from nst_engine.product_kernels import add_outer_products, map_rows, program

# Rows whose outer products are added up at a time: with more they leave the core's own cache.
STRIP_ROWS = 512
# Parts of the rows that one thread each adds up by itself, so that nobody is waited for. As bits depend on it, their
# number is that whatever the threads; where a part would have fewer rows for each channel, all work on one together.
PARTS = 16
PART_ROWS = 2


def sum_of_outer_products(rows: Tensor) -> Tensor:
    """See `products`; its bits depend neither on threads nor on other maps."""
    count, channels = rows.shape[-2:]
    apart = count >= PARTS * PART_ROWS * channels
    parts, strip = PARTS if apart else 1, max(1, min(STRIP_ROWS, count))
    room = rows.new_empty(torch.get_num_threads() if apart else 1, channels // PANEL, strip, PANEL)
    found = rows.new_empty(*rows.shape[:-2], channels, channels)
    maps = rows.shape[:-2].numel()
    for one, added in zip(
        rows.contiguous().view(maps, count, channels), found.view(maps, channels, channels), strict=True
    ):
        sums = rows.new_zeros(parts, channels, channels)
        program().run(add_outer_products, one, room, sums, added, count, channels, strip, parts, int(apart))
    return found


def mapped(rows: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """See `products`; its bits depend neither on threads nor on other maps."""
    count, channels = rows.shape[-2:]
    maps = rows.shape[:-2].numel()
    panels = matrix.view(maps, channels, channels // PANEL, PANEL).transpose(1, 2).contiguous()
    shifts = rows.new_zeros(maps, channels) if shift is None else shift.reshape(maps, channels).contiguous()
    found = rows.new_empty(rows.shape)
    flat, flat_found = (each.view(maps, count, channels) for each in (rows.contiguous(), found))
    for each in zip(flat, panels, shifts, flat_found, strict=True):
        program().run(map_rows, *each, count, channels, channels)
    return found
