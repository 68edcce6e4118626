"""The trace of the square root of a positive definite matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The smallest eigenvalue, as a share of the largest, whose root is exact. Below it float32 has none left.
SMALLEST_SHARE = 1e-6
ITERATIONS = 11
# So many numbers a GPU multiplies while it takes up the next product.
LAUNCHED = 2**20


def traces_of_roots(matrices: Sequence[Tensor], floors: Sequence[Tensor]) -> list[Tensor]:
    """tr A^1/2 of symmetric matrices A, (..., k, k) float32, as float64 (...), differentiable in them.

    From the eigenvalues on a CPU, in float64: what is compared with the trace differs from it by a hundredth or
    less. By products in float32 on a GPU, where eigenvalues of one matrix take longer than all the rest of an
    iteration and cannot be recorded.

    Args:
        matrices: A, of any k each, but as many of each.
        floors: (...), at least 0, which no eigenvalue is below but by rounding.

    Raises:
        torch.linalg.LinAlgError: a matrix is not finite, on a CPU; on a GPU its trace is not.
    """
    if matrices[0].is_cuda:
        return [traces.double() for traces in by_products(matrices, floors)]
    return [_by_eigenvalues(*one) for one in zip(matrices, floors, strict=True)]


def _by_eigenvalues(matrices: Tensor, floor: Tensor) -> Tensor:
    roots: Tensor = torch.linalg.eigvalsh(matrices.double()).clamp(min=floor[..., None]).sqrt()
    return roots.sum(-1)


def by_products(matrices: Sequence[Tensor], floors: Sequence[Tensor]) -> list[Tensor]:
    """See `traces_of_roots`.

    The Newton-Schulz iteration in its coupled form (Higham, "Functions of Matrices", 2008, equation 6.35),
    each step stretched so that eigenvalues within known bounds come as close together as they can (Chen and
    Chow, "A stable scaling of Newton-Schulz", 2014). The derivative is half the inverse root, which it also ends with.
    """
    flat = [matrix.reshape(floor.numel(), *matrix.shape[-2:]) for matrix, floor in zip(matrices, floors, strict=True)]
    found: dict[int, Tensor] = {}
    for places in _together(flat):
        floor = torch.stack([floors[place].flatten() for place in places])
        traces: Tensor = _ByProducts.apply(floor, *(flat[place] for place in places))  # type: ignore[no-untyped-call]
        found |= zip(places, traces.unbind(), strict=True)
    return [found[place].view(floor.shape) for place, floor in enumerate(floors)]


def _together(matrices: Sequence[Tensor]) -> list[list[int]]:
    """The places of those whose products are launched together: all, unless there is much to multiply for nothing."""
    sides = [matrix.shape[-1] for matrix in matrices]
    if len(sides) * len(matrices[0]) * max(sides) ** 2 <= LAUNCHED:
        return [[*range(len(sides))]]
    return [[place for place, own in enumerate(sides) if own == side] for side in sorted(set(sides))]


class _ByProducts(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, floor: Tensor, *matrices: Tensor) -> Tensor:
        """The traces (T, N) of T times N matrices, (N, k, k), whose smaller ones are filled up with the identity."""
        context.sides = [matrix.shape[-1] for matrix in matrices]
        side = max(context.sides)
        joined, own = floor.new_zeros(*floor.shape, side, side), floor.new_zeros(len(matrices), 1, side)
        for place, matrix in enumerate(matrices):
            rows = slice(matrix.shape[-1])
            joined[place, :, rows, rows] = matrix
            own[place, :, rows] = 1.0
        largest = joined.square().sum((2, 3)).sqrt().clamp(min=torch.finfo(joined.dtype).tiny)[..., None]
        missing = (SMALLEST_SHARE * largest - floor[..., None]).clamp(min=0.0)
        added = torch.diag_embed(own * missing / largest + (1.0 - own))
        root = (joined / largest[..., None] + added).flatten(0, 1)
        identity = torch.eye(side, device=root.device).expand_as(root)
        inverse = identity
        for stretch in _STRETCHES:
            factor = torch.baddbmm(identity, inverse, root, beta=1.5 * stretch, alpha=-0.5 * stretch**3)
            root, inverse = root @ factor, factor @ inverse
        scale = largest.sqrt()
        context.save_for_backward(inverse.view_as(joined) / (2 * scale)[..., None])
        return (root.view_as(joined).diagonal(dim1=2, dim2=3) * own).sum(-1) * scale[..., 0]

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = context.saved_tensors
        pulled = gradient[..., None, None] * slopes
        return None, *(pulled[place, :, :side, :side] for place, side in enumerate(context.sides))


def _stretches(smallest: float, count: int) -> list[float]:
    """What each step multiplies by, for roots of eigenvalues from `smallest` to 1."""
    found = []
    for _ in range(count):
        stretch = (3 / (1 + smallest + smallest**2)) ** 0.5
        found.append(stretch)
        smallest = stretch * smallest * (3 - (stretch * smallest) ** 2) / 2
    return found


_STRETCHES = _stretches(SMALLEST_SHARE**0.5, ITERATIONS)
