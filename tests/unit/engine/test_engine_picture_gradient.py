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


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "size", [(1, 1), (5, 2), (PIECE - 2, STRIP - 2), (PIECE - 1, STRIP - 1), (2 * PIECE + 3, 3 * STRIP + 4)], ids=str
)
def test_it_is_right_at_every_size(size: tuple[int, int], relu: bool):
    """Of two pictures."""
    weight = random(CHANNELS, 3, 3, 3)
    slope, mapped = random(2, CHANNELS, *size, seed=1), random(2, CHANNELS, *size, seed=2).relu()
    found = PictureGradient(weight)(slope, mapped if relu else None)
    opened = slope.double() * (mapped > 0) if relu else slope.double()
    assert relative_error(found, F.conv_transpose2d(opened, weight.double())) < 1e-6
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("relu", [True, False])
def test_the_first_convolution_has_it(relu: bool):
    weight, bias = random(CHANNELS, 3, 3, 3), random(CHANNELS, seed=1)
    first = Convolution(weight, bias, 0, torch.device("cpu"), torch.float32, sparing=True)
    picture = random(1, 3, 20, 30, seed=2).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    mapped = first(picture, relu=relu)
    (own,) = torch.autograd.grad(mapped.square().sum(), picture, create_graph=True)
    assert torch.equal(own, PictureGradient(weight)(2 * mapped.detach(), mapped.detach() if relu else None))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        own.sum().backward()


@pytest.mark.parametrize("threads", [2, 3, 50])
def test_it_depends_neither_on_threads_nor_on_its_batch(with_threads: Callable[[int], None], threads: int):
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
