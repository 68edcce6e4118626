"""Convolutions, with and without spared multiplications, against a float64 one."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from engine_runs import needs_gnu_threads
from reference import relative_error
from torch import Tensor

from nst_engine import convolution, winograd_squares
from nst_engine.convolution import Convolution
from nst_engine.lanes import LANES
from nst_engine.machine_code import Code, Program
from nst_engine.machine_values import Bytes, Pointer, Whole
from nst_engine.winograd import TILE
from nst_engine.winograd_maps import CLOSED, store_maximum
from nst_engine.winograd_rows import WinogradRows
from nst_engine.winograd_squares import WinogradSquares

CPU = torch.device("cpu")
# The errors of a map: direct, and with the additions of Winograd's way.
DIRECT = {torch.bfloat16: 4e-3, torch.float32: 1e-6}
SPARING = {torch.bfloat16: 2e-2, torch.float32: 4e-6}
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float32, marks=needs_gnu_threads)], ids=["bfloat16", "float32"]
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_map(*shape: int, dtype: torch.dtype) -> Tensor:
    """As after a ReLU: nothing below 0, and far from a mean of 0."""
    return random(*shape).relu().to(dtype, memory_format=torch.channels_last)


def a_convolution(
    channels_in: int, channels_out: int, dtype: torch.dtype, *, sparing: bool
) -> tuple[Convolution, Tensor, Tensor]:
    weight, bias = random(channels_out, channels_in, 3, 3, seed=1) / channels_in**0.5, random(channels_out, seed=2)
    return Convolution(weight, bias, 1, CPU, dtype, sparing=sparing), weight.double(), bias.double()


@pytest.mark.parametrize("size", [(7, 13), (1, 1), (4, 8), (9, 2)], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(WinogradSquares, id="squares", marks=needs_gnu_threads),
        pytest.param(partial(WinogradRows, dtype=torch.float32), id="rows"),
    ],
)
def test_the_transforms_make_a_convolution(make: Callable[..., WinogradSquares | WinogradRows], size: tuple[int, int]):
    """In float32, so that little but their own errors is seen."""
    weight, bias = random(32, 16, 3, 3), random(32, seed=1)
    maps = random(2, 16, *size, seed=2).contiguous(memory_format=torch.channels_last)
    truth = F.conv2d(maps.double(), weight.double(), bias.double(), padding=1)
    convolve = make(lambda: weight)
    assert relative_error(convolve(maps, bias), truth) < 2e-6
    assert relative_error(convolve(maps, bias, relu=True), truth.relu()) < 2e-6
    assert relative_error(convolve(maps), truth - bias.double().view(-1, 1, 1)) < 2e-6


@needs_gnu_threads
@pytest.mark.parametrize("threads", [1, 2, 3, 50])
@pytest.mark.parametrize("tiles", [1, 5, 12, 24])
@pytest.mark.parametrize("apart", [False, True])
def test_a_map_depends_neither_on_threads_nor_on_strips(
    monkeypatch: pytest.MonkeyPatch, with_threads: Callable[[int], None], threads: int, tiles: int, apart: bool
):
    """Of two pictures of 24 tiles."""
    weight, bias = random(32, 16, 3, 3), random(32, seed=1)
    maps = random(2, 16, 23, 13, seed=2).contiguous(memory_format=torch.channels_last)
    with_threads(1)
    whole = WinogradSquares(lambda: weight)(maps, bias)
    with_threads(threads)
    monkeypatch.setattr(winograd_squares, "STRIP_TILES", tiles)
    monkeypatch.setattr(winograd_squares, "OWN_TILES", tiles)
    monkeypatch.setattr(winograd_squares, "OWN_STRIPS", 0)
    monkeypatch.setattr(winograd_squares, "OWN_KERNELS", 32 * 16 if apart else 0)
    for _ in range(10):
        assert torch.equal(WinogradSquares(lambda: weight)(maps, bias), whole)


@needs_gnu_threads
@pytest.mark.parametrize("size", [(0, 5), (5, 0)], ids=str)
def test_a_map_without_positions_has_none(size: tuple[int, int]):
    assert WinogradSquares(lambda: random(32, 16, 3, 3))(torch.ones(1, 16, *size)).shape == (1, 32, *size)


@needs_gnu_threads
def test_a_tile_depends_on_nothing_but_what_it_sees():
    """So parts of a picture that begin at multiples of four have its map, to the bit."""
    weight, bias = random(16, 16, 3, 3), random(16, seed=1)
    maps = random(1, 16, 40, 50, seed=2).contiguous(memory_format=torch.channels_last)
    convolve = WinogradSquares(lambda: weight)
    cut = convolve(maps[..., 8:33, 12:41].contiguous(memory_format=torch.channels_last), bias)
    assert torch.equal(cut[..., 4:-5, 4:-5], convolve(maps, bias)[..., 12:28, 16:36])


@pytest.mark.parametrize("shape", [(24, 16), (16, 8)], ids=str)
def test_channels_that_do_not_fit_are_refused(shape: tuple[int, int]):
    with pytest.raises(ValueError, match="multiples of 16, not"):
        WinogradSquares(lambda: random(*shape, 3, 3))


@needs_gnu_threads
@pytest.mark.parametrize(
    ("maps", "bias", "refusal"),
    [
        (torch.ones(1, 8, 4, 4), torch.ones(16), ValueError),
        (torch.ones(1, 16, 4, 4, dtype=torch.bfloat16), torch.ones(16), TypeError),
        (torch.ones(1, 16, 4, 4), torch.ones(16, dtype=torch.float64), TypeError),
        (torch.ones(1, 16, 4, 4), torch.ones(16, 2)[:, 0], TypeError),
        (torch.ones(1, 16, 4, 4), torch.ones(8), ValueError),
    ],
    ids=["channels", "map", "bias", "strides", "a short bias"],
)
def test_what_would_be_read_wrongly_is_refused(maps: Tensor, bias: Tensor, refusal: type[Exception]):
    with pytest.raises(refusal):
        WinogradSquares(lambda: random(16, 16, 3, 3))(maps, bias)


@needs_gnu_threads
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_not_a_number_is_not_lost(relu: bool):
    maps = random(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    maps[0, 3, 5, 5] = torch.nan
    assert WinogradSquares(lambda: random(16, 16, 3, 3))(maps, relu=relu)[..., 4:7, 4:7].isnan().all()


@needs_gnu_threads
@pytest.mark.parametrize("sparing", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_second_derivative_is_refused(sparing: bool, pooled: bool):
    """It would be that of nothing: what is frozen has its gradient worked out by hand."""
    convolve, _, _ = a_convolution(16, 16, torch.float32, sparing=sparing)
    hidden = a_map(1, 16, 8, 8, dtype=torch.float32).requires_grad_(True)
    mapped = convolve.pooled(hidden) if pooled else convolve(hidden, relu=True)
    (gradient,) = torch.autograd.grad(mapped.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@DTYPES
@pytest.mark.parametrize("width", [23, 24, 25, 26, 27], ids=lambda width: f"{width} wide")
@pytest.mark.parametrize("relu", [False, True])
def test_maps_and_gradients_are_right_at_every_width(dtype: torch.dtype, width: int, relu: bool):
    sparing, weight, bias = a_convolution(16, 32, dtype, sparing=True)
    hidden = a_map(2, 16, 24, width, dtype=dtype).requires_grad_(True)
    exact = hidden.detach().double().requires_grad_(True)
    truth = F.conv2d(exact, weight, bias, padding=1)
    truth = truth.relu() if relu else truth
    found = sparing(hidden, relu=relu)
    assert found.is_contiguous(memory_format=torch.channels_last) or width % TILE
    assert relative_error(found.detach(), truth.detach()) < SPARING[dtype]
    slope = random(*found.shape, seed=3).to(dtype)
    # Of the map as it came out, whose ReLUs may have opened otherwise where it is next to 0.
    opened = slope.double() * (found > 0) if relu else slope.double()
    (gradient,) = torch.autograd.grad(F.conv2d(exact, weight, bias, padding=1), exact, opened)
    (own,) = torch.autograd.grad(found, hidden, slope)
    assert relative_error(own, gradient) < SPARING[dtype]


@needs_gnu_threads
@pytest.mark.parametrize(
    "size", [(8, 8), (24, 30), (23, 29), (2, 33), (33, 2), (1, 70), (7, 9), (2, 31), (2, 2)], ids=str
)
@pytest.mark.parametrize("threads", [1, 3])
def test_maxima_are_those_of_the_map(with_threads: Callable[[int], None], size: tuple[int, int], threads: int):
    """To the bit, there and back, where it is written down and where it is not."""
    with_threads(threads)
    sparing, _, _ = a_convolution(16, 32, torch.float32, sparing=True)
    merged, plain = (a_map(2, 16, *size, dtype=torch.float32).requires_grad_(True) for _ in range(2))
    if min(size) < 2:
        with pytest.raises(RuntimeError):
            sparing.pooled(merged)
        return
    found, expected = sparing.pooled(merged), F.max_pool2d(sparing(plain, relu=True), 2)
    assert torch.equal(found, expected)
    slope = random(*found.shape, seed=3)
    (own,), (other,) = torch.autograd.grad(found, merged, slope), torch.autograd.grad(expected, plain, slope)
    assert torch.equal(own, other)


@needs_gnu_threads
def test_of_maxima_only_their_places_are_kept():
    sparing, _, _ = a_convolution(16, 32, torch.float32, sparing=True)
    hidden = a_map(1, 16, 24, 30, dtype=torch.float32).requires_grad_(True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.nbytes) or saved, lambda saved: saved
    ):
        sparing.pooled(hidden)
    assert kept == [32 * 12 * 15]


@needs_gnu_threads
def test_a_map_without_a_window_is_refused():
    with pytest.raises(ValueError, match="no window"):
        WinogradSquares(lambda: random(16, 16, 3, 3)).pooled(torch.ones(1, 16, 1, 70), torch.zeros(16))


@needs_gnu_threads
@pytest.mark.parametrize("size", [(8, 8), (9, 6), (8, 7)], ids=str)
def test_a_gradient_of_other_maxima_is_refused(size: tuple[int, int]):
    convolve = WinogradSquares(lambda: random(16, 16, 3, 3))
    maxima, places = convolve.pooled(torch.ones(1, 16, *size), torch.zeros(16))
    with pytest.raises(ValueError, match="maxima of 10x10"):
        convolve.unpooled(maxima, places, 10, 10)
    with pytest.raises(ValueError, match="maxima of"):
        convolve.unpooled(maxima, places[:, :, 1:], *size)


@needs_gnu_threads
@pytest.mark.parametrize("size", [(1, 10), (10, 1), (1, 1)], ids=str)
def test_the_gradient_of_no_maxima_is_none(size: tuple[int, int]):
    none = torch.ones(1, 16, size[0] // 2, size[1] // 2)
    found = WinogradSquares(lambda: random(16, 16, 3, 3)).unpooled(none, none.byte(), *size)
    assert torch.equal(found, torch.zeros(1, 16, *size))


def largest(code: Code, windows: Pointer, maxima: Pointer, places: Bytes, count: Whole) -> None:
    with code.shared(count) as index:
        window = [windows.at((index * 4 + each) * LANES).load() for each in range(4)]
        store_maximum(code, window, maxima.at(index * LANES), places.at(index * LANES))


@needs_gnu_threads
def test_of_equal_maxima_the_first_counts_and_what_is_not_a_number_is_the_largest():
    """As with torch, in windows of 2x2 of such numbers in any order."""
    windows = torch.cartesian_prod(*[torch.tensor([torch.nan, -1.0, 0.0, 2.0, 2.5])] * 4)
    count = len(windows)
    maxima, places = torch.zeros(count, LANES), torch.zeros(count, LANES, dtype=torch.uint8)
    Program(largest).run(largest, windows[..., None].expand(-1, -1, LANES).contiguous(), maxima, places, count)
    found, indices = F.max_pool2d(windows.view(count, 1, 2, 2), 2, return_indices=True)
    wanted = torch.where(found <= 0, CLOSED, indices).view(count, 1).expand(-1, LANES)
    assert torch.equal(places, wanted.byte())
    expected = found.relu().view(count, 1).expand(-1, LANES)
    torch.testing.assert_close(maxima, expected, rtol=0, atol=0, equal_nan=True)


@DTYPES
def test_small_maps_are_convolved_directly(dtype: torch.dtype):
    sparing, _, _ = a_convolution(16, 16, dtype, sparing=True)
    direct, _, _ = a_convolution(16, 16, dtype, sparing=False)
    fewest = convolution.SQUARES_POSITIONS if dtype == torch.float32 else convolution.ROWS_POSITIONS
    side = int(fewest**0.5)
    small, large = (a_map(1, 16, side, width, dtype=dtype) for width in (side - 1, -(-fewest // side)))
    assert torch.equal(sparing(small, relu=True), direct(small, relu=True))
    spares = convolution.can_pack(CPU, dtype)
    assert torch.equal(sparing(large, relu=True), direct(large, relu=True)) != spares


@DTYPES
def test_a_direct_map_is_right(dtype: torch.dtype):
    direct, weight, bias = a_convolution(16, 16, dtype, sparing=False)
    hidden = a_map(1, 16, 24, 24, dtype=dtype)
    truth = F.conv2d(hidden.double(), weight, bias, padding=1).relu()
    assert relative_error(direct(hidden, relu=True), truth) < DIRECT[dtype]


@DTYPES
def test_a_map_does_not_depend_on_its_batch(dtype: torch.dtype):
    sparing, _, _ = a_convolution(16, 16, dtype, sparing=True)
    batch = a_map(3, 16, 24, 30, dtype=dtype)
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
