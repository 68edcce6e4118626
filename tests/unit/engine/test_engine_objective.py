"""Losses and the image gradient against the float64 reference, on the real weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from engine_runs import MODEL, SHALLOW, Pixels, as_image, at_balance, needs_gnu_threads, noisy
from reference import Problem, Trunk, relative_error
from torch import Tensor

from nst_engine import StylizeOptions
from nst_engine.backbone import Backbone
from nst_engine.balance import PLAIN
from nst_engine.hardware import has_native_bfloat16
from nst_engine.networks import NETWORKS
from nst_engine.objective import Objective

Backbones = Callable[[torch.dtype], Backbone]
# A bfloat16 has 8 bits: its rounding flips ReLUs and the winners of max pooling, which the gradient
# feels more than the losses do. Rounding nothing but the network's input already costs it 3 % of
# its length; its direction stays.
CPU = torch.device("cpu")
PRECISIONS = [(torch.float32, 1e-4, 1e-4), *([(torch.bfloat16, 2e-2, 5e-2)] if has_native_bfloat16(CPU) else [])]
GRAM_LEVEL = PLAIN.style_levels["gram"]
NEURAL_STYLE_PT = {
    "content_layers": {"relu4_2": 5.0},
    "style_layers": {f"relu{block}_1": 100.0 for block in range(1, 6)},
    "tv_weight": 1e-3,
    "strength": None,
    "scales": 1,
}
MIXED = {
    "content_layers": {"relu3_2": 2.0, "conv4_1": 0.5},
    "style_layers": {"relu1_1": 1.0, "conv2_2": 3.0, "pool3": 0.5},
    "content_weight": 3.0,
    "style_weight": 40.0,
    "tv_weight": 0.02,
    "box_weight": 0.1,
    "strength": None,
}


@pytest.fixture(scope="module")
def pair(photo: Pixels, texture: Pixels) -> tuple[Tensor, Tensor]:
    return as_image(photo), as_image(texture)


@pytest.fixture(scope="module")
def image(photo: Pixels) -> Tensor:
    """Where the losses are compared; some of its pixels are outside 0-255."""
    return noisy(photo, deviation=30.0)


def problem(
    weights: Mapping[str, Tensor],
    content: Tensor,
    styles: Sequence[Tensor],
    shares: Sequence[float],
    given: Mapping[str, Any],
    pooling: str = "max",
) -> Problem:
    fields = {name: value for name, value in given.items() if name not in ("strength", "scales", "pooling")}
    return Problem(Trunk(weights, pooling=pooling), content, styles, shares, **fields)


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize(("dtype", "tolerance", "gradient_tolerance"), PRECISIONS)
def test_losses_and_gradient_are_right(
    backbone: Backbones, real_weights: dict[str, Tensor], pair: tuple[Tensor, Tensor], image: Tensor, pooling: str,
    dtype: torch.dtype, tolerance: float, gradient_tolerance: float,
):  # fmt: skip
    content, style = pair
    objective = Objective(backbone(dtype), content, [style], StylizeOptions(**MIXED, pooling=pooling), [1.0])
    losses, total, gradient = problem(real_weights, content, [style], [1.0], MIXED, pooling).solve(image)
    evaluation = objective.evaluate(image)
    assert min(losses.values()) > 0
    assert evaluation.losses == pytest.approx(losses, rel=tolerance)
    assert evaluation.total == pytest.approx(total, rel=tolerance)
    assert evaluation.gradient.dtype == torch.float32
    assert relative_error(evaluation.gradient, gradient) < gradient_tolerance
    aligned = torch.cosine_similarity(evaluation.gradient.double().flatten(), gradient.double().flatten(), 0)
    assert 1 - aligned < tolerance


@pytest.mark.parametrize(("dtype", "tolerance", "gradient_tolerance"), PRECISIONS)
def test_the_objective_of_neural_style_pt_is_expressible(
    backbone: Backbones, real_weights: dict[str, Tensor], pair: tuple[Tensor, Tensor], image: Tensor,
    dtype: torch.dtype, tolerance: float, gradient_tolerance: float,
):  # fmt: skip
    """5 x content + 100 x each style layer + 1e-3 x total variation."""
    content, style = pair
    inside = image.clamp(0, 255)
    plain = {name: value for name, value in NEURAL_STYLE_PT.items() if name != "box_weight"}
    losses, total, gradient = problem(real_weights, content, [style], [1.0], plain).solve(inside)
    evaluation = Objective(backbone(dtype), content, [style], StylizeOptions(**NEURAL_STYLE_PT), [1.0]).evaluate(inside)
    assert evaluation.losses == pytest.approx({**losses, "box": 0.0}, rel=tolerance)
    assert evaluation.total == pytest.approx(total, rel=tolerance)
    assert relative_error(evaluation.gradient, gradient) < gradient_tolerance


@needs_gnu_threads
def test_float32_that_spares_multiplications_is_nearly_as_right(
    real_weights: dict[str, Tensor], pair: tuple[Tensor, Tensor], image: Tensor
):
    content, style = pair
    plain = {name: value for name, value in NEURAL_STYLE_PT.items() if name != "box_weight"}
    losses, total, gradient = problem(real_weights, content, [style], [1.0], plain).solve(image)
    options = StylizeOptions(**NEURAL_STYLE_PT | {"box_weight": 0.0})
    sparing, direct = (
        Objective(
            Backbone(NETWORKS[MODEL], real_weights, CPU, torch.float32, sparing=flag), content, [style], options, [1.0]
        ).evaluate(image)
        for flag in (True, False)
    )
    assert sparing.losses == pytest.approx({**losses, "box": 0.0}, rel=1e-4)
    assert sparing.total == pytest.approx(total, rel=1e-4)
    assert relative_error(sparing.gradient, gradient) < 1e-4
    assert not torch.equal(sparing.gradient, direct.gradient)


def test_several_styles_blend_by_their_shares(
    backbone: Backbones, real_weights: dict[str, Tensor], pair: tuple[Tensor, Tensor], checks: Pixels, image: Tensor
):
    content, style = pair
    styles, shares = [style, as_image(checks)], [3.0, 1.0]
    given = {**SHALLOW, "content_weight": 0.0, "style_weight": 10.0, "tv_weight": 0.0, "box_weight": 0.0}
    blended = problem(real_weights, content, styles, shares, given)
    evaluation = Objective(
        backbone(torch.float32), content, styles, StylizeOptions(**given, strength=None), shares
    ).evaluate(image)
    assert evaluation.losses["style"] == pytest.approx(float(blended.losses(image)["style"]), rel=1e-4)
    variable = image.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(blended.separate_style_loss(variable), variable)
    assert relative_error(evaluation.gradient, gradient) < 1e-4


@pytest.mark.parametrize(("strength", "level"), [(0.0, PLAIN.content_level), (1.0, GRAM_LEVEL), (0.5, GRAM_LEVEL / 2)])
def test_strength_makes_both_sides_pull_alike_on_any_pair(
    backbone: Backbones, photo: Pixels, texture: Pixels, checks: Pixels, strength: float, level: float
):
    """Where they are balanced, the gradient has the same root mean square whatever the pictures are."""
    options = StylizeOptions(**SHALLOW, style_statistic="gram", strength=strength, tv_weight=0.0, box_weight=0.0)
    for content, style in ((photo, texture), (texture, checks), (checks, photo)):
        objective = Objective(backbone(torch.float32), as_image(content), [as_image(style)], options, [1.0])
        gradient = objective.evaluate(at_balance(content)).gradient
        assert gradient.square().mean().sqrt().item() == pytest.approx(level, rel=0.1)


def test_strength_does_not_depend_on_how_layer_weights_are_scaled(
    backbone: Backbones, pair: tuple[Tensor, Tensor], image: Tensor
):
    content, style = pair
    scaled = {**SHALLOW, "style_layers": dict.fromkeys(SHALLOW["style_layers"], 1000.0)}
    evaluations = [
        Objective(backbone(torch.float32), content, [style], StylizeOptions(**layers), [1.0]).evaluate(image)
        for layers in (SHALLOW, scaled)
    ]
    assert evaluations[1].losses == pytest.approx(evaluations[0].losses, rel=1e-4)
    assert relative_error(evaluations[1].gradient, evaluations[0].gradient) < 1e-4


def test_layers_of_weight_zero_count_for_nothing(backbone: Backbones, pair: tuple[Tensor, Tensor], image: Tensor):
    content, style = pair
    more = {
        "content_layers": {**SHALLOW["content_layers"], "relu5_3": 0.0},
        "style_layers": {**SHALLOW["style_layers"], "relu5_1": 0.0},
    }
    evaluations = [
        Objective(backbone(torch.float32), content, [style], StylizeOptions(**layers), [1.0]).evaluate(image)
        for layers in (SHALLOW, more)
    ]
    assert evaluations[0].losses == evaluations[1].losses
    assert torch.equal(evaluations[0].gradient, evaluations[1].gradient)


def test_a_style_alone_or_a_content_alone_is_enough(backbone: Backbones, pair: tuple[Tensor, Tensor], image: Tensor):
    content, style = pair
    for layers, absent in (({**SHALLOW, "content_layers": {}}, "content"), ({**SHALLOW, "style_layers": {}}, "style")):
        options = StylizeOptions(**layers)
        evaluation = Objective(backbone(torch.float32), content, [style], options, [1.0]).evaluate(image)
        assert evaluation.losses[absent] == 0
        assert evaluation.gradient.isfinite().all()
        assert evaluation.gradient.abs().sum() > 0
