"""The gradient of a picture from that of its first map, against a float64 one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from engine_runs import needs_gnu_threads
from reference import relative_error
from torch import Tensor

from nst_engine.convolution import Convolution
from nst_engine.lanes import LANES
from nst_engine.picture_gradient import PictureGradient
from nst_engine.picture_gradient_kernels import PIECE, STRIP

CHANNELS = 3 * LANES
pytestmark = [needs_gnu_threads, pytest.mark.timeout(60, method="thread")]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def first() -> Convolution:
    weight, bias = random(CHANNELS, 3, 3, 3, seed=1), random(CHANNELS, seed=2)
    return Convolution(weight, bias, 0, torch.device("cpu"), torch.float32, sparing=True)


def gradients(first: Convolution, size: tuple[int, int], *, relu: bool) -> tuple[Tensor, Tensor]:
    """That of two pictures, and the truth."""
    pictures = random(2, 3, size[0] + 2, size[1] + 2).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    found = first(pictures, relu=relu)
    slope = random(*found.shape, seed=3)
    (own,) = torch.autograd.grad(found, pictures, slope)
    exact = pictures.detach().double().requires_grad_(True)
    mapped = F.conv2d(exact, random(CHANNELS, 3, 3, 3, seed=1).double())
    # Of the map as it came out, whose ReLUs may have opened otherwise where it is next to 0.
    (truth,) = torch.autograd.grad(mapped, exact, slope.double() * (found > 0) if relu else slope.double())
    return own, truth


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "size", [(1, 1), (5, 2), (PIECE - 2, STRIP - 2), (PIECE - 1, STRIP - 1), (2 * PIECE + 3, 3 * STRIP + 4)], ids=str
)
def test_it_is_right_at_every_size(first: Convolution, size: tuple[int, int], relu: bool):
    own, truth = gradients(first, size, relu=relu)
    assert relative_error(own, truth) < 1e-6
    assert own.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("threads", [2, 3, 50])
def test_it_depends_neither_on_threads_nor_on_its_batch(
    first: Convolution, with_threads: Callable[[int], None], threads: int
):
    slope, mapped = random(3, CHANNELS, 70, 80), random(3, CHANNELS, 70, 80, seed=1)
    gradient = PictureGradient(random(CHANNELS, 3, 3, 3))
    with_threads(1)
    alone = torch.cat([gradient(slope[index : index + 1], mapped[index : index + 1]) for index in range(3)])
    with_threads(threads)
    for _ in range(10):
        assert torch.equal(gradient(slope, mapped), alone)


def test_what_is_not_a_number_comes_through():
    slope, mapped = random(1, CHANNELS, 8, 8), -random(1, CHANNELS, 8, 8).abs()
    slope[0, 5, 3, 3] = torch.nan
    gradient = PictureGradient(random(CHANNELS, 3, 3, 3))
    assert not gradient(slope, mapped).isnan().any()
    mapped[0, 5, 3, 3] = torch.nan
    assert gradient(slope, mapped)[..., 3:6, 3:6].isnan().all()


@pytest.mark.parametrize(
    ("slope", "mapped", "refusal"),
    [
        (torch.ones(1, CHANNELS, 4, 4), torch.ones(1, CHANNELS, 4, 5), ValueError),
        (torch.ones(1, LANES, 4, 4), None, ValueError),
        (torch.ones(1, CHANNELS, 4, 4, dtype=torch.float64), None, TypeError),
        (torch.ones(1, CHANNELS, 4, 4), torch.ones(1, CHANNELS, 4, 4, dtype=torch.bfloat16), TypeError),
    ],
    ids=["size", "channels", "gradient", "map"],
)
def test_what_would_be_read_wrongly_is_refused(slope: Tensor, mapped: Tensor | None, refusal: type[Exception]):
    with pytest.raises(refusal):
        PictureGradient(random(CHANNELS, 3, 3, 3))(slope, mapped)


@pytest.mark.parametrize("shape", [(LANES + 1, 3, 3, 3), (LANES, 4, 3, 3)], ids=str)
def test_weights_that_do_not_fit_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="must be"):
        PictureGradient(random(*shape))
