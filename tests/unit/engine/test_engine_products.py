"""Sums over feature vectors and products with them, against float64, on every device that is here."""

import pytest
import torch
from torch import Tensor

from nst_engine import products

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
# Of one map, and of several: fewer positions and more than a GPU adds up side by side, and no multiple of a block.
SHAPES = [(700, 64), (3, 700, 64), (2, products.LONG + 5, 16)]


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
def test_vectors_are_mapped_in_their_own_precision(device: str, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(shape, generator=generator).to(device, torch.bfloat16)
    matrix = torch.randn(*shape[:-2], shape[-1], shape[-1], generator=generator).to(device)
    shift = torch.randn(*shape[:-2], shape[-1], generator=generator).to(device)
    exact = rows.double() @ matrix.double()
    assert distance(products.mapped(rows, matrix), exact) < 1e-2
    shifted = products.mapped(rows, matrix, shift)
    assert shifted.dtype == torch.bfloat16
    assert distance(shifted, exact + shift.double()[..., None, :]) < 1e-2


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())
