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
# Of one map, and of several: fewer positions and more than a GPU adds up side by side, and no multiple of a block; less
# than a block; and channels that fit no compiled loop.
SHAPES = [(700, 64), (3, 700, 64), (2, products.LONG + 5, 16), (5, 32), (700, 24)]


@pytest.fixture(autouse=True, params=[0, products.COMPILED_FROM], ids=["compiled", "as used"])
def _from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Compiled loops do small products too, if they can."""
    monkeypatch.setattr(products, "COMPILED_FROM", request.param)


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


def test_a_strided_shift_is_taken():
    rows, matrix, shift = torch.randn(2, 9, 16), torch.randn(2, 16, 16), torch.randn(16, 2).mT
    assert distance(products.mapped(rows, matrix, shift), (rows @ matrix + shift[:, None]).double()) < 1e-6


def test_products_of_no_rows_are_nothing():
    assert torch.equal(products.sum_of_outer_products(torch.ones(0, 16)), torch.zeros(16, 16))
    assert products.sum_of_outer_products(torch.ones(0, 9, 16)).shape == (0, 16, 16)
    assert products.mapped(torch.ones(0, 16), torch.ones(16, 16)).shape == (0, 16)


def test_products_in_bfloat16_bring_no_compiler():
    code = """
import sys, torch
from nst_engine import products
products.mapped(torch.ones(300, 16, dtype=torch.bfloat16), torch.ones(16, 16))
products.sum_of_outer_products(torch.ones(300, 16, dtype=torch.bfloat16))
assert "llvmlite" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())
