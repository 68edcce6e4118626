"""The trace of the square root of a positive definite matrix."""

from typing import Any

import torch
from torch import Tensor

# The smallest eigenvalue, as a share of the largest, whose root is exact. Below it float32 has none left.
SMALLEST_SHARE = 1e-6
ITERATIONS = 11


def trace_of_root(matrices: Tensor, floor: Tensor) -> Tensor:
    """tr A^1/2 of symmetric matrices A, (..., k, k) float32, as float64 (...), differentiable in them.

    From the eigenvalues on a CPU, in float64: what is compared with the trace differs from it by a hundredth or
    less. By products in float32 on a GPU, where eigenvalues of one matrix take longer than all the rest of an
    iteration and cannot be recorded.

    Args:
        matrices: A.
        floor: (...), at least 0, which no eigenvalue is below but by rounding.

    Raises:
        torch.linalg.LinAlgError: a matrix is not finite, on a CPU; on a GPU its trace is not.
    """
    if not matrices.is_cuda:
        roots: Tensor = torch.linalg.eigvalsh(matrices.double()).clamp(min=floor[..., None]).sqrt()
        return roots.sum(-1)
    return by_products(matrices, floor).double()


def by_products(matrices: Tensor, floor: Tensor) -> Tensor:
    """See `trace_of_root`.

    The Newton-Schulz iteration in its coupled form (Higham, "Functions of Matrices", 2008, equation 6.35),
    each step stretched so that eigenvalues within known bounds come as close together as they can (Chen and
    Chow, "A stable scaling of Newton-Schulz", 2014). The derivative is half the inverse root, which it also ends with.
    """
    side = matrices.shape[-1]
    flat = matrices.reshape(floor.numel(), side, side)
    traces: Tensor = _ByProducts.apply(flat, floor.flatten())  # type: ignore[no-untyped-call]
    return traces.view(floor.shape)


class _ByProducts(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, matrices: Tensor, floor: Tensor) -> Tensor:
        identity = torch.eye(matrices.shape[-1], device=matrices.device).expand_as(matrices)
        largest = matrices.square().sum((1, 2)).sqrt().clamp(min=torch.finfo(matrices.dtype).tiny)
        missing = (SMALLEST_SHARE * largest - floor).clamp(min=0.0)
        root = (matrices + missing[:, None, None] * identity) / largest[:, None, None]
        inverse = identity
        for stretch in _STRETCHES:
            factor = torch.baddbmm(identity, inverse, root, beta=1.5 * stretch, alpha=-0.5 * stretch**3)
            root, inverse = root @ factor, factor @ inverse
        scale = largest.sqrt()
        context.save_for_backward(inverse / (2 * scale)[:, None, None])
        return root.diagonal(dim1=1, dim2=2).sum(1) * scale

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = context.saved_tensors
        return gradient[:, None, None] * slope, None


def _stretches(smallest: float, count: int) -> list[float]:
    """What each step multiplies by, for roots of eigenvalues from `smallest` to 1."""
    found = []
    for _ in range(count):
        stretch = (3 / (1 + smallest + smallest**2)) ** 0.5
        found.append(stretch)
        smallest = stretch * smallest * (3 - (stretch * smallest) ** 2) / 2
    return found


_STRETCHES = _stretches(SMALLEST_SHARE**0.5, ITERATIONS)
