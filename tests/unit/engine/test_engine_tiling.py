"""Where tiles are cut, how wide their halos are, and how many bytes their maps take."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from engine_runs import MODEL, needs_gnu_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nst_engine import OptionError, losses, tiling
from nst_engine.backbone import Backbone
from nst_engine.networks import NETWORKS, Network
from nst_engine.onednn import can_pack
from nst_engine.tiling import Span, Tile, grid, map_bytes_per_pixel, shared_grid, spans, tiles

CAFFE, VGG19 = NETWORKS[MODEL], NETWORKS["vgg19-torchvision"]
NETS = st.sampled_from((CAFFE, VGG19))
PACKED = [dtype for dtype in (torch.float32, torch.bfloat16) if can_pack(torch.device("cpu"), dtype)]
TAPS = ("conv1_1", "relu1_2", "pool1", "relu2_1", "conv3_1", "relu3_3", "pool3", "relu4_2", "relu5_1", "pool5")


def untouched(network: Network, deepest: str, span: Span, length: int) -> dict[str, list[bool]]:
    """By tap, which rows of a tile's map owe nothing to what was cut off, found layer by layer."""
    maps, rows = {}, [True] * (span.last - span.first)
    top, bottom = span.first == 0, span.last == length
    for tap in network.taps:
        if tap.startswith("conv"):
            framed = [top, *rows, bottom]
            rows = [all(framed[row : row + 3]) for row in range(len(rows))]
        elif tap.startswith("pool"):
            rows = [rows[2 * row] and rows[2 * row + 1] for row in range(len(rows) // 2)]
        maps[tap] = rows
        if tap == deepest:
            break
    return maps


@settings(max_examples=60, deadline=None)
@given(
    network=NETS,
    tap=st.sampled_from(TAPS),
    height=st.integers(32, 400),
    width=st.integers(32, 400),
    pixels=st.integers(2_000, 100_000),
    processes=st.integers(1, 9),
)
def test_tiles_own_every_position_once_and_see_all_they_need(
    network: Network, tap: str, height: int, width: int, pixels: int, processes: int
):
    stride, reach = network.stride(tap), network.reach([tap])
    halo = -(-reach // stride) * stride
    if processes == 1:
        cut = grid(height, width, stride, halo, pixels)
    else:
        cut = shared_grid(height, width, stride, halo, pixels, processes)
        assert not cut or len(cut) >= min(processes, (height // stride) * (width // stride))
    assert all(tile.pixels <= pixels for tile in cut)
    for length, sides in ((height, {tile.rows for tile in cut}), (width, {tile.columns for tile in cut})):
        ordered = sorted(sides, key=lambda span: span.start)
        for span in ordered:
            for name, rows in untouched(network, tap, span, length).items():
                own = span.own_within(network.stride(name))
                assert 0 <= own.start < own.stop <= len(rows)
                assert all(rows[own])
        for name in network.taps[: network.taps.index(tap) + 1] if ordered else ():
            stride = network.stride(name)
            owned = [slice(span.start // stride, span.stop // stride) for span in ordered]
            assert owned[0].start == 0
            assert owned[-1].stop == length // network.stride(name)
            assert all(above.stop == below.start for above, below in pairwise(owned))
    assert len(cut) == len({(tile.rows, tile.columns) for tile in cut})


def test_the_halo_is_no_wider_than_the_stride_makes_it():
    """A reach one pixel shorter would not do: the simulated contamination goes exactly that far."""
    for network, reach in ((CAFFE, 58), (VGG19, 70)):
        assert network.reach(["relu1_1", "relu5_1"]) == reach
        rows = untouched(network, "relu5_1", Span(0, 0, 320, 320), 400)["relu5_1"]
        clean = rows.index(False)
        assert (clean - 1) * 16 + 15 + reach < 320 <= clean * 16 + 15 + reach


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (700, 1900), (1900, 700)])
def test_no_other_grid_that_fits_computes_less(height: int, width: int):
    best = grid(height, width, 16, 64, 120_000)
    computed = sum(tile.pixels for tile in best)
    for rows in range(1, 30):
        for columns in range(1, 30):
            sides = [
                [min(length, -(-length // count // 16) * 16 + 128) for _ in range(count)]
                for length, count in ((height, rows), (width, columns))
            ]
            if max(sides[0]) * max(sides[1]) <= 120_000:
                assert computed <= 1.05 * sum(sides[0]) * sum(sides[1])


def test_level_spans_compute_as_much_each():
    """Three of a side of 512: an even cut would have the middle one compute 304, the others 224 and 240."""
    assert [span.last - span.first for span in spans(512, 3, 16, 64, level=True)] == [256, 256, 256]
    assert [span.last - span.first for span in spans(640, 4, 16, 64, level=True)] == [256, 256, 256, 256]
    for count in range(1, 9):
        cut = spans(130, count, 16, 64, level=True)
        assert [cut[0].start, *(span.stop for span in cut)] == [*(span.start for span in cut), 130]


@pytest.mark.parametrize("processes", [2, 3, 4, 6])
@pytest.mark.parametrize(("height", "width", "pixels"), [(512, 341, 10**9), (1024, 1024, 10**9), (700, 1900, 120_000)])
def test_no_even_grid_gives_processes_less_to_compute(height: int, width: int, pixels: int, processes: int):
    def most_pixels(cut: tuple[Tile, ...]) -> int:
        shares = [cut[rank::processes] for rank in range(processes)]
        return max(sum(tile.pixels for tile in share) for share in shares)

    found = shared_grid(height, width, 16, 64, pixels, processes)
    even = [
        tuple(Tile(row, column) for row in spans(height, rows, 16, 64) for column in spans(width, columns, 16, 64))
        for rows in range(1, height // 16 + 1)
        for columns in range(1, width // 16 + 1)
        if processes <= rows * columns <= 60
    ]
    assert most_pixels(found) <= 1.05 * min(most_pixels(cut) for cut in even if max(t.pixels for t in cut) <= pixels)


def plain_spans(length: int, count: int, stride: int, halo: int, level: bool) -> list[Span]:
    """What `spans` promises, span by span."""
    cells = length // stride
    extra = min(halo // stride, (cells - count) // 2) if level else 0
    cuts = [0, *((extra + i * (cells - 2 * extra) // count) * stride for i in range(1, count)), length]
    return [Span(max(0, a - halo), a, b, min(length, b + halo)) for a, b in pairwise(cuts)]


@settings(max_examples=60, deadline=None)
@given(
    stride=st.sampled_from((1, 2, 4, 16)),
    cells=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rest=st.integers(0, 15),
    halo=st.integers(0, 7),
    share=st.floats(0.01, 1.1),
    processes=st.integers(1, 6),
)
def test_the_tiles_are_the_best_of_all(
    stride: int, cells: tuple[int, int], rest: int, halo: int, share: float, processes: int
):
    """As found by cutting every division out and looking at each of its spans."""
    height, width = (stride * count + rest % stride for count in cells)
    pixels = int(share * height * width)
    candidates = []
    for count in range(1, cells[0] + 1):
        kept = 0
        for across in range(1, cells[1] + 1):
            rows = plain_spans(height, count, stride, halo * stride, processes > 1)
            columns = plain_spans(width, across, stride, halo * stride, processes > 1)
            tall, wide = ([span.last - span.first for span in side] for side in (rows, columns))
            few = count * across < min(processes, cells[0] * cells[1])
            if kept == processes or (kept == 0 and (few or max(tall) * max(wide) > pixels)):
                continue
            kept += 1
            total = sum(tall) * sum(wide)
            rounds = -(-count * across // processes)
            cost = (total, count * across) if processes == 1 else (rounds * max(tall) * max(wide), total)
            candidates.append((cost, [Tile(row, column) for row in rows for column in columns]))
    best = min(candidates, key=lambda candidate: candidate[0], default=(None, []))[1]
    if processes == 1:
        found = grid(height, width, stride, halo * stride, pixels)
    else:
        found = shared_grid(height, width, stride, halo * stride, pixels, processes)
    assert list(found) == best


def test_finding_tiles_makes_no_more_spans_than_the_sides_have_pixels(monkeypatch: pytest.MonkeyPatch):
    made = []

    def counted(*ends: int) -> Span:
        made.append(ends)
        return Span(*ends)

    monkeypatch.setattr(tiling, "Span", counted)
    assert len(tiles(CAFFE, ["relu1_1"], per_pixel("relu1_1"), 500, 400, 2**24)) > 1
    assert len(made) < 10 * (500 + 400)


def per_pixel(tap: str) -> float:
    return map_bytes_per_pixel(CAFFE, [tap], "max", 4)


def test_a_picture_that_fits_is_one_tile():
    bytes_needed = 100 * 90 * per_pixel("relu5_1")
    whole = Span(0, 0, 100, 100), Span(0, 0, 90, 90)
    assert tiles(CAFFE, ["relu5_1"], per_pixel("relu5_1"), 100, 90, int(bytes_needed) + 1) == (Tile(*whole),)
    with pytest.raises(OptionError):
        tiles(CAFFE, ["relu5_1"], per_pixel("relu5_1"), 100, 90, int(bytes_needed) - 1)
    assert len(tiles(CAFFE, ["relu3_1"], per_pixel("relu3_1"), 100, 90, int(bytes_needed) // 2)) > 1
    assert len(tiles(CAFFE, ["relu5_1"], per_pixel("relu5_1"), 100, 90, 10**12, 3)) == 3


def test_a_budget_below_the_smallest_tile_is_refused():
    with pytest.raises(OptionError) as caught:
        tiles(CAFFE, ["relu5_1"], per_pixel("relu5_1"), 3000, 4000, 20 * 2**20)
    assert caught.value.field == "size"
    assert "4000x3000" in caught.value.message
    assert "memory budget of 20 MiB" in caught.value.message
    smallest = 144 * 144 * per_pixel("relu5_1")
    assert tiles(CAFFE, ["relu5_1"], per_pixel("relu5_1"), 3000, 4000, int(smallest) + 1)


def kept_bytes(backbone: Backbone, image: Tensor, taps: list[str], pooling: str) -> int:
    """Bytes of all tensors that autograd keeps for the backward pass, each storage counted once."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = backbone.features(image.requires_grad_(True), taps, pooling)
        grams = [losses.gram_matrix(features) for features in maps.values()]
    for features in maps.values():
        keep(features)
    assert len(grams) == len(taps)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.fixture(params=[*PACKED, pytest.param("compiled loops", marks=needs_gnu_threads)], ids=str)
def packed(
    backbone: Callable[[torch.dtype], Backbone], loaded: dict[str, Tensor], request: pytest.FixtureRequest
) -> Backbone:
    if isinstance(request.param, torch.dtype):
        return backbone(request.param)
    return Backbone(CAFFE, loaded, torch.device("cpu"), torch.float32, sparing=True)


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("taps", [["relu1_1", "relu2_1", "relu4_2", "relu5_1"], ["conv1_2", "pool2"]])
def test_the_estimate_is_what_autograd_keeps(packed: Backbone, pooling: str, taps: list[str]):
    """Or a little more: where convolutions are packed, they keep nothing."""
    image = torch.rand(1, 3, 128, 144, generator=torch.Generator().manual_seed(1)) * 255
    kept = kept_bytes(packed, image.clone(), taps, pooling)
    estimate = image[0, 0].numel() * packed.bytes_per_pixel(taps, pooling)
    means = 3 * 4  # of the colours, which do not grow with the picture
    assert kept - means <= estimate < 1.25 * kept
