"""Sums over feature vectors and products with them, against float64, on every device that is here."""

import subprocess
import sys
from collections.abc import Callable
from itertools import product

import pytest
import torch
from engine_runs import needs_gnu_threads
from torch import Tensor

from nst_engine import compiled_products, products

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
# Of one map, and of several: fewer positions and more than a GPU adds up side by side, and no multiple of a block; and
# as many as are compiled on a CPU.
SHAPES = [(700, 64), (3, 700, 64), (2, products.LONG + 5, 16), (8200, 64)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 1e-3), (torch.float32, 1e-5)])
def test_sums_are_exact_but_for_their_rounding(device: str, shape: tuple[int, ...], dtype: torch.dtype, error: float):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(1)).relu().to(device, dtype)
    exact = rows.double()
    for found, wanted in (
        (products.sum_of_rows(rows), exact.sum(-2)),
        (products.sum_of_outer_products(rows), exact.mT @ exact),
    ):
        assert found.dtype == torch.float32
        assert found.shape == wanted.shape
        assert distance(found, wanted) < error


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 1e-2), (torch.float32, 1e-6)])
def test_vectors_are_mapped_in_their_own_precision(
    device: str, shape: tuple[int, ...], dtype: torch.dtype, error: float
):
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(shape, generator=generator).to(device, dtype)
    matrix = torch.randn(*shape[:-2], shape[-1], shape[-1], generator=generator).to(device)
    shift = torch.randn(*shape[:-2], shape[-1], generator=generator).to(device)
    exact = rows.double() @ matrix.double()
    assert distance(products.mapped(rows, matrix), exact) < error
    shifted = products.mapped(rows, matrix, shift)
    assert shifted.dtype == dtype
    assert distance(shifted, exact + shift.double()[..., None, :]) < error


@needs_gnu_threads
@pytest.mark.parametrize("count", [5, 1100, 2100])
def test_products_in_float32_depend_neither_on_threads_nor_on_other_maps(
    with_threads: Callable[[int], None], count: int
):
    """By all threads together, and from 2048 rows of 64 channels on in parts."""
    rows, matrix = (torch.randn(2, size, 64, generator=torch.Generator().manual_seed(size)) for size in (count, 64))
    with_threads(1)
    first = compiled_products.sum_of_outer_products(rows[0]), compiled_products.mapped(rows[0], matrix[0])
    for threads, _ in product([1, 2, 3, 20], range(10)):
        with_threads(threads)
        outer, mapped = compiled_products.sum_of_outer_products(rows), compiled_products.mapped(rows, matrix)
        assert torch.equal(outer[0], first[0])
        assert torch.equal(outer, outer.mT)
        assert torch.equal(mapped[0], first[1])


@needs_gnu_threads
@pytest.mark.parametrize("strip", [1, 7, 100, 333])
@pytest.mark.parametrize("parts", [None, 16, 1000])
def test_outer_products_are_added_up_strip_by_strip(monkeypatch: pytest.MonkeyPatch, strip: int, parts: int | None):
    """Of rows that do not lie side by side, in one part or in several, of which some may have none."""
    rows = torch.randn(333, 128, generator=torch.Generator().manual_seed(3))[:, ::4]
    monkeypatch.setattr(compiled_products, "STRIP_ROWS", strip)
    monkeypatch.setattr(compiled_products, "PART_ROWS", 1000 if parts is None else 0)
    monkeypatch.setattr(compiled_products, "PARTS", parts or 1)
    found = compiled_products.sum_of_outer_products(rows)
    assert distance(found, rows.double().mT @ rows.double()) < 1e-6
    assert distance(compiled_products.mapped(rows, found), rows.double() @ found.double()) < 1e-6


@needs_gnu_threads
@pytest.mark.parametrize("count", [1, 5, 6, 7, 49, 700])
@pytest.mark.parametrize("maps", [1, 3])
def test_compiled_products_are_right_for_any_number_of_rows(count: int, maps: int):
    rows, matrix, shift = torch.randn(maps, count, 32), torch.randn(maps, 32, 32), torch.randn(32, maps).mT
    exact = rows.double()
    assert distance(compiled_products.sum_of_outer_products(rows), exact.mT @ exact) < 1e-6
    assert distance(compiled_products.mapped(rows, matrix), exact @ matrix.double()) < 1e-6
    shifted = exact @ matrix.double() + shift.double()[:, None]
    assert distance(compiled_products.mapped(rows, matrix, shift), shifted) < 1e-6


@needs_gnu_threads
def test_compiled_products_of_nothing_are_nothing():
    assert torch.equal(compiled_products.sum_of_outer_products(torch.ones(0, 16)), torch.zeros(16, 16))
    assert compiled_products.sum_of_outer_products(torch.ones(0, 9, 16)).shape == (0, 16, 16)
    assert compiled_products.mapped(torch.ones(0, 16), torch.ones(16, 16)).shape == (0, 16)
    assert compiled_products.mapped(torch.ones(0, 9, 16), torch.ones(0, 16, 16)).shape == (0, 9, 16)


@needs_gnu_threads
@pytest.mark.parametrize(
    ("rows", "compiled"),
    [
        (torch.empty(8192, 64), True),
        (torch.empty(1, 8192, 64), True),
        (torch.empty(8191, 64), False),
        (torch.empty(2, 4096, 64), False),
        (torch.empty(511, 512), False),
        (torch.empty(2**16, 24), False),
        (torch.empty(8192, 64, dtype=torch.bfloat16), False),
    ],
    ids=["many", "a batch", "few", "a batch of few", "more channels than rows", "channels by the eight", "bfloat16"],
)
def test_products_are_compiled_where_that_pays(monkeypatch: pytest.MonkeyPatch, rows: Tensor, compiled: bool):
    """By what is asked for: a batch does not count, so that it changes no bit of a map."""
    asked: list[str] = []
    monkeypatch.setattr(compiled_products, "sum_of_outer_products", lambda rows: asked.append("outer"))
    monkeypatch.setattr(compiled_products, "mapped", lambda *rest: asked.append("mapped"))
    products.sum_of_outer_products(rows)
    products.mapped(rows, torch.empty(*rows.shape[:-2], rows.shape[-1], rows.shape[-1]))
    assert asked == (["outer", "mapped"] if compiled else [])


def test_products_in_bfloat16_bring_no_compiler():
    code = """
import sys, torch
from nst_engine import products
rows = torch.ones(8192, 64, dtype=torch.bfloat16)
products.mapped(rows, torch.ones(64, 64))
products.sum_of_outer_products(rows)
assert "llvmlite" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())
