"""Convolutions, with and without spared multiplications, against a float64 one."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from reference import relative_error
from torch import Tensor

from nst_engine import convolution, hardware, winograd
from nst_engine.convolution import Convolution

CPU = torch.device("cpu")
# What bfloat16 leaves of a map: direct, and with the additions of Winograd's way.
DIRECT, SPARING = 4e-3, 2e-2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_map(*shape: int) -> Tensor:
    """As after a ReLU: nothing below 0, and far from a mean of 0."""
    return random(*shape).relu().bfloat16().contiguous(memory_format=torch.channels_last)


def a_convolution(channels_in: int, channels_out: int, *, sparing: bool) -> tuple[Convolution, Tensor, Tensor]:
    weight, bias = random(channels_out, channels_in, 3, 3, seed=1) / channels_in**0.5, random(channels_out, seed=2)
    return Convolution(weight, bias, 1, CPU, torch.bfloat16, sparing=sparing), weight.double(), bias.double()


def test_the_transforms_make_a_convolution():
    """In float32, so that little but their own errors is seen."""
    weight, bias = random(24, 16, 3, 3), random(24, seed=1)
    rows = random(2, 16, 7, 13, seed=2).contiguous(memory_format=torch.channels_last)
    truth = F.conv2d(rows.double(), weight.double(), bias.double(), padding=1)
    assert relative_error(winograd.Winograd(lambda: weight, torch.float32)(rows, bias), truth) < 1e-6


@pytest.mark.parametrize("width", [23, 24, 25, 26, 27], ids=lambda width: f"{width} wide")
@pytest.mark.parametrize("relu", [False, True])
def test_maps_and_gradients_are_right_at_every_width(width: int, relu: bool):
    sparing, weight, bias = a_convolution(16, 24, sparing=True)
    hidden = a_map(2, 16, 24, width).requires_grad_(True)
    exact = hidden.detach().double().requires_grad_(True)
    truth = F.conv2d(exact, weight, bias, padding=1)
    truth = truth.relu() if relu else truth
    found = sparing(hidden, relu=relu)
    assert found.is_contiguous(memory_format=torch.channels_last) or width % winograd.TILE
    assert relative_error(found.detach(), truth.detach()) < SPARING
    slope = random(*found.shape, seed=3).bfloat16()
    # Of the map as it came out, whose ReLUs may have opened otherwise where it is next to 0.
    opened = slope.double() * (found > 0) if relu else slope.double()
    (gradient,) = torch.autograd.grad(F.conv2d(exact, weight, bias, padding=1), exact, opened)
    (own,) = torch.autograd.grad(found, hidden, slope)
    assert relative_error(own, gradient) < SPARING


def test_small_maps_are_convolved_directly():
    sparing, weight, bias = a_convolution(16, 16, sparing=True)
    direct, _, _ = a_convolution(16, 16, sparing=False)
    side = int(convolution.WINOGRAD_POSITIONS**0.5) - 1
    small, large = a_map(1, 16, side, side), a_map(1, 16, side + 2, side + 2)
    assert torch.equal(sparing(small, relu=True), direct(small, relu=True))
    spares = convolution.can_pack(CPU, torch.bfloat16) and hardware.multiplies_dearly(CPU, torch.bfloat16)
    assert torch.equal(sparing(large, relu=True), direct(large, relu=True)) != spares
    truth = F.conv2d(large.double(), weight, bias, padding=1).relu()
    assert relative_error(direct(large, relu=True), truth) < DIRECT


def test_float32_spares_nothing():
    weight, bias = random(8, 8, 3, 3), random(8)
    hidden = random(1, 8, 30, 30).contiguous(memory_format=torch.channels_last)
    sparing, plain = (Convolution(weight, bias, 1, CPU, torch.float32, sparing=flag) for flag in (True, False))
    assert torch.equal(sparing(hidden, relu=False), plain(hidden, relu=False))


def test_a_map_does_not_depend_on_its_batch():
    sparing, _, _ = a_convolution(16, 16, sparing=True)
    batch = a_map(3, 16, 24, 30)
    together = sparing(batch, relu=True)
    for index in range(3):
        alone = batch[index : index + 1].contiguous(memory_format=torch.channels_last)
        assert torch.equal(sparing(alone, relu=True), together[index : index + 1])


CONVOLVE = """
import torch
from nst_engine.onednn import Packed
weight = torch.randn(256, 256, 3, 3)
packed = Packed(lambda: weight, torch.float32, (1, 1))
for _ in range(2):
    print("a round", flush=True)
    for shape in (4, 4), (4, 6), (8, 12), (6, 9):
        packed(torch.randn(1, 256, *shape).contiguous(memory_format=torch.channels_last))
"""


def test_weights_are_laid_out_anew_for_no_map_that_has_been_seen():
    """With AVX2 oneDNN wants two layouts here, and takes long to make one of the other, which it does unasked."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ONEDNN_VERBOSE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", CONVOLVE], capture_output=True, text=True, check=True, env=environment)
    _, _, again = run.stdout.split("a round")
    assert again.count(",exec,cpu,convolution,") == 4
    assert ",exec,cpu,reorder," not in again
