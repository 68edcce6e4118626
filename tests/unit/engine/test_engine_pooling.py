"""A ReLU after its pooling against one before."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine.pooling import pooled_relu
from nst_engine.vgg import VGG16_CAFFE


def a_map(*size: int, dtype: torch.dtype) -> Tensor:
    made = torch.randn(2, 16, *size, generator=torch.Generator().manual_seed(0))
    made[:, :4] = -made[:, :4].abs()  # windows of which nothing goes through the ReLU
    made[:, 4:8] = made[:, 4:8].round()  # and with several maxima
    return made.to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3)], ids=str)
def test_the_order_of_relu_and_maximum_changes_nothing(size: tuple[int, int], dtype: torch.dtype):
    late, early = (a_map(*size, dtype=dtype).requires_grad_(True) for _ in range(2))
    found, expected = pooled_relu(late), F.max_pool2d(F.relu(early), 2)
    assert torch.equal(found, expected)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (own,) = torch.autograd.grad(found, late, slope)
    (other,) = torch.autograd.grad(expected, early, slope)
    assert torch.equal(own, other)


def test_the_map_is_not_kept():
    hidden = a_map(64, 64, dtype=torch.float32).requires_grad_(True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved
    ):
        pooled_relu(hidden)
    assert kept == [hidden.numel() // 4] * 2


def test_only_what_nobody_looks_at_goes_late():
    late = VGG16_CAFFE.late_relus
    assert late(["relu1_1", "relu4_2"], "max") == {"relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"}
    assert late(["relu1_2", "conv2_2", "pool3"], "max") == {"relu3_3", "relu4_3", "relu5_3"}
    assert late(["relu1_1"], "average") == set()
