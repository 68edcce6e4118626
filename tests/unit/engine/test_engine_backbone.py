"""Features against the float64 reference, on the real weights."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from engine_runs import MODEL, Pixels, as_image
from reference import VGG16, Trunk, gram, relative_error
from torch import Tensor

from nst_engine.backbone import Backbone
from nst_engine.losses import gram_matrix
from nst_engine.networks import NETWORKS

Backbones = Callable[[torch.dtype], Backbone]
TAPS = NETWORKS[MODEL].taps
PRECISIONS = [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)]


@pytest.fixture(scope="module")
def image(photo: Pixels) -> Tensor:
    return as_image(photo)


@pytest.fixture(scope="module")
def truth(real_weights: dict[str, Tensor], image: Tensor) -> dict[str, dict[str, Tensor]]:
    """The reference's maps by pooling."""
    return {pooling: Trunk(real_weights, pooling=pooling).maps(image) for pooling in ("max", "average")}


def worst(maps: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, str]:
    return max((relative_error(maps[tap], truth[tap]), tap) for tap in maps)


def test_the_fetched_weights_are_the_original_ones(real_weights: dict[str, Tensor]):
    assert real_weights["conv1_1.weight"][0, 0, 0, 0].item() == pytest.approx(0.42947057, abs=1e-8)
    widths = [width for block in VGG16 for width in block]
    assert [len(tensor) for name, tensor in sorted(real_weights.items()) if name.endswith("bias")] == widths


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_every_tap_is_right(
    backbone: Backbones, image: Tensor, truth: dict[str, dict[str, Tensor]], dtype: torch.dtype, tolerance: float,
    pooling: str,
):  # fmt: skip
    maps = backbone(dtype).features(image, TAPS, pooling)
    assert list(maps) == list(TAPS) == list(truth[pooling])
    for tap in TAPS:
        assert maps[tap].shape[1:] == truth[pooling][tap].shape
        assert maps[tap].dtype == dtype
    error, tap = worst(maps, truth[pooling])
    assert error < tolerance, tap


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_gram_matrices_are_right_and_in_float32(
    backbone: Backbones, image: Tensor, truth: dict[str, dict[str, Tensor]], dtype: torch.dtype, tolerance: float
):
    maps = backbone(dtype).features(image, TAPS)
    grams = {tap: gram_matrix(features) for tap, features in maps.items()}
    assert {matrix.dtype for matrix in grams.values()} == {torch.float32}
    error, tap = worst(grams, {tap: gram(features) for tap, features in truth["max"].items()})
    assert error < tolerance, tap


@pytest.mark.parametrize(
    "mistake",
    [
        {"channels": (0, 1, 2)},
        {"mean": (123.68, 116.779, 103.939)},
        {"mean": (0.0, 0.0, 0.0)},
        {"std": (58.395, 57.12, 57.375)},
    ],
    ids=["RGB", "means reversed", "no means", "divided"],
)
def test_a_wrong_preparation_would_be_seen(
    backbone: Backbones, real_weights: dict[str, Tensor], image: Tensor, mistake: dict[str, tuple[float, ...]]
):
    features = backbone(torch.float32).features(image, ["relu3_1"])["relu3_1"]
    wrong = replace(Trunk(real_weights), **mistake).maps(image)["relu3_1"]
    assert relative_error(features, wrong) > 2e-2


def test_the_first_padding_repeats_the_edge_and_the_others_are_zero(
    backbone: Backbones, real_weights: dict[str, Tensor]
):
    flat = torch.full((1, 3, 12, 10), 200.0)
    maps = backbone(torch.float32).features(flat, ["conv1_1", "conv1_2"])
    first, second = maps["conv1_1"][0], maps["conv1_2"][0]
    assert torch.allclose(first, first[:, 5:6, 5:6].expand_as(first), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(second[:, 0], second[:, 5], rtol=1e-2)


def test_only_what_is_asked_for_comes_back_and_nothing_overwrites_it(backbone: Backbones, image: Tensor):
    maps = backbone(torch.float32).features(image, ["relu2_1", "conv2_1"])
    assert list(maps) == ["conv2_1", "relu2_1"]
    assert maps["conv2_1"].min() < 0
    assert torch.equal(maps["relu2_1"], maps["conv2_1"].clamp(min=0))


def test_the_network_ends_at_the_deepest_tap(backbone: Backbones):
    """A picture too small for block 2 is enough for block 1."""
    tiny = torch.full((1, 3, 1, 1), 90.0)
    assert backbone(torch.float32).features(tiny, ["relu1_1"])["relu1_1"].shape == (1, 64, 1, 1)
    with pytest.raises(RuntimeError):
        backbone(torch.float32).features(tiny, ["relu2_1"])
