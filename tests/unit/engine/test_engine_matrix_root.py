"""Traces of roots by products alone, which GPUs use, against eigenvalues in float64."""

import pytest
import torch
from torch import Tensor

from nst_engine.matrix_root import by_products, traces_of_roots


def matrix(eigenvalues: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix, and half its inverse root: the derivative of the trace. Both in float64."""
    generator = torch.Generator().manual_seed(seed)
    side = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(side, side, generator=generator, dtype=torch.float64))
    return (basis * eigenvalues) @ basis.T, (basis * eigenvalues.rsqrt() / 2) @ basis.T


@pytest.mark.parametrize("side", [1, 5, 60, 200])
@pytest.mark.parametrize("smallest", [0.5, 1e-2, 1e-4])
def test_traces_and_slopes_are_those_of_the_eigenvalues(side: int, smallest: float):
    """Down to the share of the largest eigenvalue that the noise of two like sides leaves; at any scale."""
    scales = (1e-6, 1.0, 1e9)
    eigenvalues = torch.logspace(0, torch.tensor(smallest).log10().item(), side, dtype=torch.float64)
    pairs = [matrix(scale * eigenvalues, seed) for seed, scale in enumerate(scales)]
    matrices = torch.stack([given.float() for given, _ in pairs]).requires_grad_(True)
    floor = smallest * torch.tensor(scales)
    (traces,) = by_products([matrices], [floor])
    (slopes,) = torch.autograd.grad(traces.sum(), matrices)
    for scale, trace, slope, (_, wanted) in zip(scales, traces, slopes, pairs, strict=True):
        assert trace.item() == pytest.approx((scale * eigenvalues).sqrt().sum().item(), rel=1e-5)
        assert (slope.double() - wanted).norm() < 2e-4 * wanted.norm()


def test_what_is_beyond_float32_is_finite():
    """Eigenvalues that rounding has left below 0, next to one a million million times as large as the floor."""
    eigenvalues = torch.tensor([1.0, 1e-3, 1e-12, -1e-8, -3e-7], dtype=torch.float64)
    given, _ = matrix(eigenvalues)
    matrices = given.float()[None].requires_grad_(True)
    (trace,) = by_products([matrices], [torch.tensor([1e-12])])
    (slope,) = torch.autograd.grad(trace.sum(), matrices)
    assert trace.item() == pytest.approx(1 + 1e-3**0.5, rel=5e-3)
    assert slope.isfinite().all()


def test_no_direction_and_no_variance_have_no_root():
    assert by_products([torch.zeros(2, 0, 0)], [torch.zeros(2)])[0].tolist() == [0.0, 0.0]
    assert by_products([torch.zeros(1, 3, 3)], [torch.zeros(1)])[0].item() < 1e-18


def test_both_ways_agree():
    given, _ = matrix(torch.logspace(0, -3, 30, dtype=torch.float64))
    one, floor = given.float(), torch.tensor(1e-3)
    (trace,) = by_products([one], [floor])
    assert trace.item() == pytest.approx(traces_of_roots([one], [floor])[0].item(), rel=1e-5)


def test_what_is_not_finite_has_no_finite_trace():
    assert not by_products([torch.full((1, 2, 2), torch.inf)], [torch.ones(1)])[0].isfinite().any()


@pytest.mark.parametrize("count", [1, 40])
def test_those_of_several_sides_are_what_each_alone_is(count: int):
    """One that is not finite spoils none of the others. 40 times 256 x 256 numbers are not filled up to."""
    sides, smallest = (0, 16, 60, 256), 1e-3
    blocks = []
    for side in sides:
        eigenvalues = 1e3 * torch.linspace(1, smallest, side, dtype=torch.float64)
        blocks.append(torch.stack([matrix(eigenvalues, seed)[0].float() for seed in range(count)]))
    blocks[1][0] *= torch.inf
    floors = [torch.full((count,), 1e3 * smallest) for _ in sides]
    leaves = [block.requires_grad_(True) for block in blocks]
    together = by_products(leaves, floors)
    slopes = torch.autograd.grad([traces.sum() for traces in together], leaves)
    assert not together[1][0].isfinite()
    for leaf, floor, traces, slope in zip(leaves, floors, together, slopes, strict=True):
        (alone,) = by_products([leaf], [floor])
        assert slope.shape == leaf.shape
        sound = slice(1, None) if leaf is leaves[1] else slice(None)
        assert torch.allclose(traces[sound], alone[sound], rtol=1e-6)
        wanted = torch.autograd.grad(alone.sum(), leaf)[0]
        assert torch.allclose(slope[sound], wanted[sound], rtol=1e-3, atol=1e-6)
