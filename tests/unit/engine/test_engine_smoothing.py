"""Smoothing against a plain loop, and what it is for."""

import math

import pytest
import torch
from torch import Tensor

from nst_engine.smoothing import smoothed


def random_map(seed: int, channels: int = 3, height: int = 4, width: int = 5) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(seed)).relu() * 7


def by_loop(features: Tensor) -> list[float]:
    values = features.double().flatten().tolist()
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    exponentials = [math.exp(value / (3 * deviation)) for value in values]
    return [len(values) * exponential / sum(exponentials) for exponential in exponentials]


def entropy(features: Tensor) -> float:
    """Of the map as a distribution, as a share of that of a flat one."""
    shares = features.double().flatten() / features.double().sum()
    shares = shares[shares > 0]
    return float(-(shares * shares.log()).sum()) / math.log(features.numel())


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_softmax_over_the_whole_map(seed: int):
    features = random_map(seed)
    found = smoothed(features)
    assert found.shape == features.shape
    assert found.flatten().tolist() == pytest.approx(by_loop(features), rel=1e-5)
    assert float(found.mean()) == pytest.approx(1.0, abs=1e-6)


def test_a_map_of_few_peaks_comes_nearer_to_a_flat_one():
    features = random_map(1, 16, 16, 16)
    features *= torch.rand(features.shape, generator=torch.Generator().manual_seed(3)) < 0.05
    assert entropy(features) < 0.6
    assert entropy(smoothed(features)) > 0.9


def test_it_is_float32_and_keeps_the_layout():
    features = random_map(2).to(torch.bfloat16, memory_format=torch.channels_last)
    found = smoothed(features)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.flatten().tolist() == pytest.approx(by_loop(features), rel=1e-5)


def test_its_gradient_is_that_of_the_formula():
    features = random_map(4).double().requires_grad_(True)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(9))
    (found,) = torch.autograd.grad((smoothed(features) * weights).sum(), features)
    step = 1e-2
    for index in range(0, features.numel(), 7):
        nudge = torch.zeros(features.numel(), dtype=torch.float64)
        nudge[index] = step
        above, below = (
            sum(
                w * s
                for w, s in zip(
                    weights.flatten().tolist(), by_loop(features.detach().flatten() + sign * nudge), strict=True
                )
            )
            for sign in (1, -1)
        )
        assert float(found.flatten()[index]) == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("level", [0.0, 3.0, 1e4])
def test_a_flat_map_is_flat_and_pulls_nowhere(level: float):
    features = torch.full((1, 4, 3, 3), level, requires_grad=True)
    found = smoothed(features)
    assert torch.equal(found, torch.ones_like(found))
    (gradient,) = torch.autograd.grad(found[0, 0, 0, 0], features)
    assert gradient.isfinite().all()
