"""Sums over feature vectors, and products with them: of one map, (P, C), or of each of several, (N, P, C)."""

import torch
from torch import Tensor

from nst_engine.lanes import PANEL
from nst_engine.threads import has_gnu_threads

# On a CPU, bfloat16 vectors whose products are added up before they are rounded.
BLOCK = 256
# From so many positions on a GPU needs the parts of one sum side by side to be busy, as cuBLAS does it for one map
# alone; with fewer it is the maps that go side by side.
LONG = 2**14
# Multiplications from which on compiled loops are worth starting; with more channels than rows they are not.
COMPILED_FROM = 2**25


def sum_of_rows(rows: Tensor) -> Tensor:
    """The sum of the vectors, as float32 (..., C); see `sum_of_outer_products`."""
    if _adds_in_float32(rows):
        return _transposed_product(torch.ones_like(rows[..., :1]), rows).squeeze(-2)
    blocks, rest = _blocks(rows)
    return blocks.sum(-2).sum(-2, dtype=torch.float32) + rest.sum(-2)


def sum_of_outer_products(rows: Tensor) -> Tensor:
    """X^T X, as float32 (..., C, C); not differentiable.

    A product of bfloat16 matrices is added up in float32, and on a GPU can be had like that. On a CPU it is rounded
    at the end: rounding those of many short blocks, and adding these up in float32, is a tenth as far off, or less,
    and takes half the time of a product in float32.
    """
    if _compile(rows):
        from nst_engine import compiled_products  # which brings a compiler of 40 MB

        return compiled_products.sum_of_outer_products(rows)
    if _adds_in_float32(rows):
        return _transposed_product(rows, rows)
    blocks, rest = _blocks(rows)
    return (blocks.mT @ blocks).sum(-3, dtype=torch.float32) + rest.mT @ rest


def mapped(rows: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """x M + s of every vector x, in its dtype; not differentiable.

    Args:
        matrix: M, (..., C, C), float32, one for each map, as is `shift`.
        shift: s, (..., C); None is 0.
    """
    if _compile(rows):
        from nst_engine import compiled_products

        return compiled_products.mapped(rows, matrix, shift)
    matrix = matrix.to(rows.dtype)
    if shift is None:
        return rows @ matrix
    shift = shift.to(rows.dtype)
    if rows.dim() == 2:
        return torch.addmm(shift, rows, matrix)
    if _one_by_one(rows):
        found = rows.new_empty(rows.shape)
        for place in range(len(rows)):
            torch.addmm(shift[place], rows[place], matrix[place], out=found[place])
        return found
    return torch.baddbmm(shift[:, None], rows, matrix)


def _compile(rows: Tensor) -> bool:
    """Whether compiled loops can do it, and in less time."""
    count, channels = rows.shape[-2:]
    can = rows.device.type == "cpu" and rows.dtype == torch.float32 and channels % PANEL == 0 and has_gnu_threads()
    return can and count >= channels and count * channels**2 >= COMPILED_FROM


def _adds_in_float32(rows: Tensor) -> bool:
    return rows.is_cuda and rows.dtype == torch.bfloat16 and torch.version.hip is None


def _one_by_one(rows: Tensor) -> bool:
    return rows.is_cuda and rows.shape[-2] >= LONG


def _transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """A^T B of (..., P, A) and (..., P, B), as float32 (..., A, B), on a GPU."""
    if left.dim() == 2:
        return torch.mm(left.mT, right, out_dtype=torch.float32)
    if _one_by_one(right):
        return torch.stack([_transposed_product(*one) for one in zip(left, right, strict=True)])
    return torch.bmm(left.mT, right, out_dtype=torch.float32)


def _blocks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows in blocks, (..., B, `BLOCK`, C), and in float32 what fills none, which is all that are float32."""
    count = 0 if rows.dtype == torch.float32 else rows.shape[-2] // BLOCK
    whole = count * BLOCK
    blocks = rows[..., :whole, :].view(*rows.shape[:-2], count, BLOCK, rows.shape[-1])
    return blocks, rows[..., whole:, :].float()
