"""What is computed in tiles is what is computed at once."""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import MODEL, Pixels, bytes_for, finish, quick, steps
from reference import VGG16, VGG19, Problem, Trunk, relative_error
from test_engine_resume import identical
from torch import Tensor
from weight_files import conv_shapes, spread_weights

from nst_engine import Engine, OptionError, Session, Style, StylizeOptions, checkpoint
from nst_engine.backbone import Backbone
from nst_engine.evaluation import Evaluation
from nst_engine.masks import StyleMasks
from nst_engine.networks import NETWORKS
from nst_engine.objective import Objective
from nst_engine.optimizers import MINIMUM_HISTORY, make_optimizer
from nst_engine.statistics import make_statistic
from nst_engine.tiled import TiledObjective, in_tiles

CPU = torch.device("cpu")
SHALLOW = {"content_layers": {"relu3_1": 1.0}, "style_layers": {"relu1_1": 2.0, "relu2_1": 1.0, "relu3_1": 0.5}}
RUN_TAPS = {"content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}}
ODD_TAPS = {"content_layers": {"conv1_1": 0.1, "pool2": 1.0}, "style_layers": {"relu1_1": 1.0, "conv2_2": 1.0}}
# Options, network, height, width, pixels that a tile may have, and how many tiles that makes.
CASES: dict[str, tuple[dict[str, Any], str, tuple[int, int], int, int]] = {
    "strips of 32 rows": (SHALLOW, MODEL, (160, 64), 56 * 64, 5),
    "rows and columns of an odd size": (SHALLOW, MODEL, (101, 163), 64 * 64, 10),
    "average pooling": ({**SHALLOW, "pooling": "average"}, MODEL, (75, 139), 64 * 64, 5),
    "the default taps": ({}, MODEL, (299, 37), 192 * 37, 5),
    "taps of every kind": (ODD_TAPS, MODEL, (67, 90), 40 * 40, 9),
    "no content": ({**SHALLOW, "content_layers": {}}, MODEL, (67, 90), 48 * 48, 8),
    "no style": ({**SHALLOW, "style_layers": {}}, MODEL, (67, 90), 48 * 48, 8),
    "VGG-19": ({**SHALLOW, "model": "vgg19-torchvision"}, "vgg19-torchvision", (67, 90), 48 * 48, 8),
    "moments": ({**SHALLOW, "style_statistic": "moments", "style_weight": 1e6}, MODEL, (101, 75), 64 * 64, 4),
}
STATISTICS = ["gram", "moments"]


def random_image(height: int, width: int, seed: int) -> Tensor:
    """Coloured waves with noise on them, a little of it outside 0-255."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([torch.sin((rows * (3 + c) + columns * (7 - c)) / (11 + seed)) for c in range(3)])[None]
    return 127.5 + 90 * waves + 25 * torch.randn(1, 3, height, width, generator=generator)


@pytest.fixture(scope="module")
def networks(backbone: Callable[[torch.dtype], Backbone]) -> dict[str, Backbone]:
    tensors = spread_weights(conv_shapes(VGG19), seed=19)
    nineteen = Backbone(NETWORKS["vgg19-torchvision"], tensors, CPU, torch.float32)
    return {MODEL: backbone(torch.float32), "vgg19-torchvision": nineteen}


def make_objective(
    network: Backbone,
    content: Tensor,
    styles: list[Tensor],
    options: StylizeOptions,
    shares: list[float],
    masks: list[StyleMasks] | None = None,
    subject: Tensor | None = None,
    memory_budget: int = sys.maxsize,
) -> Objective:
    """Of the kind that a run has, as `Material.objective` chooses it."""
    kind = TiledObjective if in_tiles(network, content.shape[2:], options, memory_budget) else Objective
    return kind(network, content, styles, options, shares, masks, subject, memory_budget=memory_budget)


def both(
    network: Backbone, size: tuple[int, int], options: StylizeOptions, budget: int, **given: Any
) -> tuple[TiledObjective, Evaluation, Evaluation]:
    """The objective in tiles, what it finds, and what the objective at once finds."""
    content, image = random_image(*size, seed=1), random_image(*size, seed=2)
    styles, shares = [random_image(70, 60, seed=3), random_image(81, 40, seed=4)], [2.0, 1.0]
    tiled = make_objective(network, content, styles, options, shares, memory_budget=budget, **given)
    whole = make_objective(network, content, styles, options, shares, **given)
    assert isinstance(tiled, TiledObjective)
    assert type(whole) is Objective
    return tiled, tiled.evaluate(image), whole.evaluate(image)


def assert_equal(found: Evaluation, truth: Evaluation) -> None:
    assert found.total == pytest.approx(truth.total, rel=1e-5)
    assert found.losses == pytest.approx(truth.losses, rel=1e-5)
    assert relative_error(found.gradient, truth.gradient) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_tiles_give_the_losses_and_the_gradient_of_the_whole(networks: dict[str, Backbone], name: str):
    given, model, size, pixels, count = CASES[name]
    options = StylizeOptions(**{"strength": None, "style_weight": 0.1, "tv_weight": 0.01, **given})
    tiled, found, truth = both(networks[model], size, options, bytes_for(options, pixels))
    assert len(tiled._tiles) == count
    assert_equal(found, truth)
    # No row or column stands out, as one at a seam would.
    wrong = (found.gradient - truth.gradient)[0].abs()
    level = truth.gradient.square().mean().sqrt()
    assert wrong.mean((0, 2)).max() < 1e-4 * level
    assert wrong.mean((0, 1)).max() < 1e-4 * level


def ramp(height: int, width: int) -> Tensor:
    """A mask that rises from 0 to 1 across the middle, (1, 1, H, W)."""
    return torch.linspace(-1, 2, width).clamp(0, 1).expand(1, 1, height, width)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_masks_count_in_tiles_as_in_the_whole(networks: dict[str, Backbone], statistic: str):
    """Two regions with a soft edge, of which one is taken from a part of its style, and a subject."""
    options = StylizeOptions(**SHALLOW, style_statistic=statistic, strength=0.5, protection=0.8)
    region = ramp(101, 75)
    masks = [StyleMasks(region, ramp(70, 60)), StyleMasks(1 - region)]
    subject = torch.zeros(1, 1, 101, 75)
    subject[..., 30:80, 20:50] = 1.0
    tiled, found, truth = both(
        networks[MODEL], (101, 75), options, bytes_for(options, 64 * 64), masks=masks, subject=subject
    )
    assert len(tiled._tiles) > 2
    assert found.losses["detail"] > 0
    assert_equal(found, truth)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_part_of_a_large_style_is_measured_in_tiles(networks: dict[str, Backbone], statistic: str):
    options = StylizeOptions(**SHALLOW, style_statistic=statistic, strength=None)
    content, style, masks = (
        random_image(40, 40, seed=1),
        random_image(130, 130, seed=2),
        [StyleMasks(None, ramp(65, 65))],
    )
    objectives = [
        make_objective(networks[MODEL], content, [style], options, [1.0], masks, memory_budget=budget)
        for budget in (bytes_for(options, 56 * 56), sys.maxsize)
    ]
    assert [len(objective._tiles_of(style)) > 1 for objective in objectives] == [True, False]
    assert_equal(*(objective.evaluate(content) for objective in objectives))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_features_that_overflow_are_a_loss_to_be_dropped_and_no_error(networks: dict[str, Backbone], statistic: str):
    options = StylizeOptions(**SHALLOW, style_statistic=statistic, strength=None)
    tiled, _, _ = both(networks[MODEL], (101, 75), options, bytes_for(options, 64 * 64))
    assert not math.isfinite(tiled.evaluate(1e20 * random_image(101, 75, seed=2)).total)


def test_tiles_agree_with_a_float64_reference(networks: dict[str, Backbone], real_weights: dict[str, Tensor]):
    content, image, style = (random_image(61, 90, seed) for seed in (1, 2, 3))
    options = StylizeOptions(**SHALLOW, strength=None, content_weight=3.0, style_weight=0.1, tv_weight=0.01)
    budget = bytes_for(options, 48 * 60)
    tiled = make_objective(networks[MODEL], content, [style], options, [1.0], memory_budget=budget)
    assert isinstance(tiled, TiledObjective)
    problem = Problem(
        Trunk(real_weights, VGG16), content, [style], [1.0], **SHALLOW,
        content_weight=3.0, style_weight=0.1, tv_weight=0.01, box_weight=0.1,
    )  # fmt: skip
    losses, total, gradient = problem.solve(image)
    found = tiled.evaluate(image)
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert found.total == pytest.approx(total, rel=1e-4)
    assert relative_error(found.gradient, gradient) < 1e-3


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_balance_is_that_of_the_whole(networks: dict[str, Backbone], statistic: str):
    options = StylizeOptions(**SHALLOW, style_statistic=statistic, strength=0.3)
    _, found, truth = both(networks[MODEL], (96, 80), options, bytes_for(options, 56 * 80))
    # The weights are quotients of gradients, each of which is equal to 1e-4.
    assert found.losses == pytest.approx(truth.losses, rel=2e-4)


def test_bfloat16_differs_by_its_rounding_alone(backbone: Callable[[torch.dtype], Backbone]):
    """What is rounded to eight bits: a thousandth of the loss; of the gradient no more than that is off anyway."""
    options = StylizeOptions(**SHALLOW, strength=None, style_weight=0.1)
    _, found, truth = both(backbone(torch.bfloat16), (64, 48), options, bytes_for(options, 48 * 48, itemsize=2))
    assert found.total == pytest.approx(truth.total, rel=1e-3)
    assert relative_error(found.gradient, truth.gradient) < 5e-2


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_large_style_is_read_in_tiles_beside_a_small_content(networks: dict[str, Backbone], statistic: str):
    options = StylizeOptions(**SHALLOW, style_statistic=statistic, strength=None)
    content, style = random_image(40, 40, seed=1), random_image(130, 130, seed=2)
    budget = bytes_for(options, 56 * 56)
    found = make_objective(networks[MODEL], content, [style], options, [1.0], memory_budget=budget)
    truth = Objective(networks[MODEL], content, [style], options, [1.0])
    assert type(found) is Objective
    assert_equal(found.evaluate(content), truth.evaluate(content))


@pytest.mark.parametrize(
    ("height", "width", "parts"),
    [(7, 9, [slice(0, 20), slice(20, 63)]), (5, 5, [slice(0, 1), slice(1, 11), slice(11, 25)])],
)
@pytest.mark.parametrize("name", ["gram", "moments", "sliced"])
def test_additive_statistics_are_means_over_positions(name: str, height: int, width: int, parts: list[slice]):
    statistic = make_statistic(StylizeOptions(style_statistic=name))
    features = torch.randn(1, 6, height, width, generator=torch.Generator().manual_seed(3)) + 1
    assert statistic.additive == (name != "sliced")
    for index, whole in enumerate(statistic.measure(features) if statistic.additive else ()):
        means = [statistic.measure(features.flatten(2)[:, :, None, part])[index] for part in parts]
        sizes = [part.stop - part.start for part in parts]
        mean = sum(size * one for size, one in zip(sizes, means, strict=True)) / (height * width)
        assert torch.allclose(mean, whole, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def small_engine(engine: Engine) -> Engine:
    """An engine with room for tiles of 64 x 64 pixels in float32, at `RUN_TAPS`."""
    return Engine("cpu", threads=1, memory_budget=bytes_for(quick(**RUN_TAPS), 64 * 64))


def started(engine: Engine, photo: Pixels, texture: Pixels, **changes: Any) -> Session:
    options = quick(**{"size": 128, "scales": 2, "iterations": 6, "init": "recolored", **RUN_TAPS, **changes})
    return engine.start(photo[:60], [Style(texture)], options)


@pytest.mark.parametrize(("optimizer", "statistic"), [("lbfgs", "moments"), ("adam", "gram")])
def test_a_run_in_tiles_ends_in_the_same_picture(
    engine: Engine, small_engine: Engine, photo: Pixels, texture: Pixels, optimizer: str, statistic: str
):
    """Three iterations at each of two scales."""
    runs = []
    for chosen in (engine, small_engine):
        session = started(chosen, photo, texture, optimizer=optimizer, history_size=2, style_statistic=statistic)
        runs.append((finish(chosen, session), session.image()))
    (reports, picture), (tiled_reports, tiled_picture) = runs
    for report, tiled in zip(reports, tiled_reports, strict=True):
        assert tiled.losses == pytest.approx(report.losses, rel=1e-3)
    assert np.abs(picture.astype(int) - tiled_picture.astype(int)).max() <= 1


def test_a_run_in_tiles_resumes_to_the_bit(small_engine: Engine, photo: Pixels, texture: Pixels):
    session = started(small_engine, photo, texture, iterations=6)
    steps(small_engine, session, 4)
    assert isinstance(session._stage.objective, TiledObjective)
    state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    resumed = small_engine.resume(state, photo[:60], [Style(texture)])
    finish(small_engine, session)
    finish(small_engine, resumed)
    assert identical(resumed.state_dict(), session.state_dict())


def test_history_takes_no_more_than_the_budget(engine: Engine, photo: Pixels, texture: Pixels):
    shape, pair = torch.Size((1, 3, 50, 40)), 2 * 4 * 3 * 50 * 40
    for budget, pairs in ((2**60, 10), (10 * pair, 10), (10 * pair - 1, 9), (1, MINIMUM_HISTORY)):
        assert make_optimizer(StylizeOptions(), shape, CPU, budget).nbytes == pairs * pair
    assert make_optimizer(StylizeOptions(history_size=1), shape, CPU, 1).nbytes == pair


def test_a_resumed_run_keeps_the_history_it_had(engine: Engine, small_engine: Engine, photo: Pixels, texture: Pixels):
    """Also where another budget would give it another length."""
    options = quick(size=128, history_size=100, iterations=4, **RUN_TAPS)
    session = small_engine.start(photo, [Style(texture)], options)
    steps(small_engine, session, 2)
    kept = session.state_dict().tensors["optimizer.steps"].shape[0]
    assert MINIMUM_HISTORY < kept < 100
    resumed = engine.resume(session.state_dict(), photo, [Style(texture)])
    assert resumed.state_dict().tensors["optimizer.steps"].shape[0] == kept
    finish(engine, resumed)


def test_what_does_not_fit_is_refused_before_work_starts(engine: Engine, photo: Pixels, texture: Pixels):
    tiny = Engine("cpu", threads=1, memory_budget=2**20)
    tiny._backbones = engine._backbones
    for content, style in ((photo, texture), (photo[:16], texture)):
        with pytest.raises(OptionError, match="memory budget of 1 MiB") as caught:
            tiny.start(content, [Style(style)], StylizeOptions(size=160, scales=2, precision="float32"))
        assert caught.value.field == "size"
    with pytest.raises(ValueError, match="above 0"):
        Engine("cpu", memory_budget=0)


def half(height: int, width: int) -> np.ndarray[Any, Any]:
    """A mask of the right half."""
    return np.repeat([0.0, 1.0], width // 2).astype(np.float32)[None].repeat(height, 0)


# What is asked for: options, masks of the style, and of the content.
MASKED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "a region": ({}, {"region": half(60, 96)}, {}),
    "a source region": ({}, {"source_region": half(72, 80)}, {}),
    "a subject": ({}, {}, {"subject": half(60, 96)}),
    "a hole": ({"size": 128}, {}, {"hole": half(60, 96)}),
    "a hole to be filled from around it": ({"size": 128}, None, {"hole": half(60, 96)}),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_run_with_a_mask_ends_in_tiles_in_the_same_picture(
    engine: Engine, small_engine: Engine, photo: Pixels, texture: Pixels, name: str
):
    given, style_masks, content_masks = MASKED[name]
    pictures = []
    for chosen, kind in ((engine, Objective), (small_engine, TiledObjective)):
        styles = [] if style_masks is None else [Style(texture, **style_masks)]
        options = quick(**{"size": 96, "iterations": 2, **RUN_TAPS, **given})
        session = chosen.start(photo[:60], styles, options, **content_masks)
        finish(chosen, session)
        assert type(session._stage.objective) is kind
        pictures.append(session.image().astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_tiles_between_holes_are_left_out(small_engine: Engine, photo: Pixels):
    """Those that own nothing of them; their pixels are given to the network as halos of others alone."""
    hole = np.zeros((60, 96), np.float32)
    hole[:8, :8] = hole[-8:, -8:] = 1.0
    session = small_engine.start(photo[:60], [], quick(size=128, **RUN_TAPS), hole=hole)
    objective, passes = session._stage.objective, []
    features = objective.features
    objective.features = lambda part: passes.append(part.shape) or features(part)
    session.advance()
    assert len(objective._tiles) == 3
    assert len(passes) == 2 * 2 * 2  # two evaluations of two passes each, at two tiles


@pytest.mark.parametrize("small", ["content", "style"])
def test_what_needs_a_picture_as_a_whole_is_refused_in_tiles(
    small_engine: Engine, engine: Engine, photo: Pixels, texture: Pixels, small: str
):
    """At the size and with the budget at which it does."""
    content, style = (photo, texture[:20]) if small == "style" else (photo[:20], texture)
    options = quick(size=128, scales=2, style_statistic="sliced", **RUN_TAPS)
    with pytest.raises(OptionError) as caught:
        small_engine.start(content, [Style(style)], options)
    assert caught.value.field == "style_statistic"
    size = "128x85" if small == "style" else "128x115"
    for part in (size, "memory budget of 2 MiB", "set a smaller size", "raise the engine's memory_budget"):
        assert part in caught.value.message
    engine.start(content, [Style(style)], options)
    small_engine.start(content, [Style(style)], dataclasses.replace(options, size=40))


def test_faces_may_be_looked_for_where_there_are_none(small_engine: Engine, photo: Pixels, texture: Pixels):
    session = started(small_engine, photo, texture, scales=1, iterations=1, faces=True)
    assert isinstance(session._stage.objective, TiledObjective)
