"""Steering the weights of layers: the objective is then the one that these weights make."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import SHALLOW, Pixels, as_image, bytes_for, finish, noisy, quick, shares_of, steps
from reference import Problem, Trunk, relative_error
from test_engine_resume import identical
from torch import Tensor

from nst_engine import Engine, OptionError, Session, Style, StylizeOptions, checkpoint
from nst_engine.backbone import Backbone
from nst_engine.masks import StyleMasks
from nst_engine.objective import Objective
from nst_engine.options import steered
from nst_engine.tiled import TiledObjective, in_tiles

Backbones = Callable[[torch.dtype], Backbone]
LAYERS = {"content_layers": {"relu2_1": 1.0, "relu3_1": 0.5}, "style_layers": {"relu1_1": 1.0, "pool2": 2.0}}
# One kind alone, and both: with the deepest taps left out.
CHANGES: dict[str, dict[str, dict[str, float]]] = {
    "content": {"content_layers": {"relu2_1": 0.25, "relu3_1": 4.0}},
    "both": {"content_layers": {"relu2_1": 2.0}, "style_layers": {"relu1_1": 3.0, "pool2": 0.0}},
}
RAW = {"strength": None, "content_weight": 3.0, "style_weight": 40.0, "tv_weight": 0.01, "style_statistic": "gram"}


def strip(share: float) -> Tensor:
    """A mask of the left part of a picture of 48 x 72."""
    mask = torch.zeros(1, 1, 48, 72)
    mask[..., : int(72 * share)] = 1
    return mask


@pytest.fixture(scope="module")
def small(photo: Pixels) -> Pixels:
    return photo[:48, :72]


# How an objective is made: options, masks of the style, the subject, and whether it works in tiles.
KINDS: dict[str, tuple[dict[str, Any], StyleMasks, Tensor | None, bool]] = {
    "raw weights": (RAW, StyleMasks(), None, False),
    "a strength": ({"strength": 0.3}, StyleMasks(), None, False),
    "sliced": ({"style_statistic": "sliced"}, StyleMasks(), None, False),
    "a region and a subject": ({"strength": 0.7}, StyleMasks(region=strip(0.5)), strip(0.3), False),
    "tiles": ({"strength": 0.3, "style_statistic": "gram"}, StyleMasks(), None, True),
    "a region and a subject in tiles": ({"strength": 0.7}, StyleMasks(region=strip(0.5)), strip(0.3), True),
}


def all_of(changes: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Every layer's weight after the change."""
    return {
        kind: {tap: changes[kind].get(tap, 0.0) for tap in layers} if kind in changes else layers
        for kind, layers in LAYERS.items()
    }


@pytest.fixture(scope="module")
def make(backbone: Backbones, small: Pixels, texture: Pixels) -> Callable[..., Objective]:
    """Makes the objective of a kind."""

    def make(kind: str, layers: Mapping[str, Any]) -> Objective:
        given, masks, subject, tiled = KINDS[kind]
        options = StylizeOptions(**{**layers, **given})
        budget = bytes_for(options, 44 * 72 if tiled else 10**6)
        assert in_tiles(backbone(torch.float32), small.shape[:2], options, budget) == tiled
        chosen = TiledObjective if tiled else Objective
        pictures = as_image(small), [as_image(texture)[..., :32, :32]]
        return chosen(backbone(torch.float32), *pictures, options, [1.0], [masks], subject, memory_budget=budget)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_steered_objective_is_the_one_made_with_these_weights(
    make: Callable[..., Objective], small: Pixels, kind: str
):
    """To the last bit: as a run that resumes makes it."""
    options = StylizeOptions(**{**LAYERS, **KINDS[kind][0]})
    objective, image = make(kind, LAYERS), noisy(small, 30.0)
    before = objective.evaluate(image)
    objective.steer(steered(options, CHANGES["both"]), [1.0])
    found, truth = objective.evaluate(image), make(kind, all_of(CHANGES["both"])).evaluate(image)
    assert found.losses == truth.losses != before.losses
    assert torch.equal(found.gradient, truth.gradient)
    objective.steer(options, [1.0])
    back = objective.evaluate(image)
    assert back.losses == before.losses
    assert torch.equal(back.gradient, before.gradient)


@pytest.mark.parametrize("change", CHANGES)
def test_a_steered_objective_agrees_with_a_float64_reference(
    backbone: Backbones, real_weights: dict[str, Tensor], small: Pixels, texture: Pixels, change: str
):
    content, style, image = as_image(small), as_image(texture)[..., :40, :40], noisy(small, 30.0)
    options = StylizeOptions(**LAYERS, **RAW)
    objective = Objective(backbone(torch.float32), content, [style], options, [1.0])
    objective.steer(steered(options, CHANGES[change]), [1.0])
    weights = {"content_weight": 3.0, "style_weight": 40.0, "tv_weight": 0.01, "box_weight": options.box_weight}
    problem = Problem(Trunk(real_weights), content, [style], [1.0], **all_of(CHANGES[change]), **weights)
    losses, total, gradient = problem.solve(image)
    found = objective.evaluate(image)
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert found.total == pytest.approx(total, rel=1e-4)
    assert relative_error(found.gradient, gradient) < 1e-4


def test_a_strength_looks_alike_whatever_the_layers_are_steered_to(make: Callable[..., Objective], small: Pixels):
    """The balance is struck anew, so all style weights ten times as large change nothing."""
    options, image = StylizeOptions(**LAYERS, strength=0.3), noisy(small, 30.0)
    objective = make("a strength", LAYERS)
    before = objective.evaluate(image)
    tenfold = {tap: 10 * weight for tap, weight in LAYERS["style_layers"].items()}
    objective.steer(steered(options, {"style_layers": tenfold}), [1.0])
    assert objective.evaluate(image).losses == pytest.approx(before.losses, rel=1e-4)


def started(engine: Engine, content: Pixels, style: Pixels, **changes: Any) -> Session:
    session = engine.start(content, [Style(style)], quick(size=48, iterations=8, **changes))
    steps(engine, session, 3)
    return session


STEERING = {"content_layers": {"relu2_1": 3.0}, "style_layers": {"relu2_1": 2.0, "relu1_1": 0.5}}


@pytest.mark.parametrize("strength", [0.5, None])
def test_layers_are_steered_from_the_next_iteration_on(
    engine: Engine, photo: Pixels, texture: Pixels, strength: float | None
):
    session = started(engine, photo, texture, strength=strength)
    session.update(style_layers={"relu2_1": 2.0})
    assert session.options.style_layers == {"relu1_1": 0.0, "relu1_2": 0.0, "relu2_1": 2.0}
    fresh = engine.start(photo, [Style(texture)], quick(size=48, strength=strength, style_layers={"relu2_1": 2.0}))
    (report,) = steps(engine, session, 1)
    assert report.iteration == 4
    assert report.losses == fresh._stage.objective.evaluate(session.state_dict().tensors["image"]).losses


def test_a_tap_that_was_left_out_can_have_a_weight_again(engine: Engine, photo: Pixels, texture: Pixels):
    """After a resume too, and in the bits of a run that was not cut."""
    session = started(engine, photo, texture)
    session.update(style_layers={"relu1_1": 1.0})
    steps(engine, session, 1)
    state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    resumed = engine.resume(state, photo, [Style(texture)])
    for run in (session, resumed):
        run.update(style_layers={"relu2_1": 1.0})
        finish(engine, run)
    assert identical(resumed.state_dict(), session.state_dict())


@pytest.mark.parametrize("cut", [3, 4, 6])
def test_a_run_with_steered_layers_resumes_to_the_bit(engine: Engine, photo: Pixels, texture: Pixels, cut: int):
    """Just after the steering, after one more iteration, and at the next scale."""
    options = quick(size=128, scales=2, iterations=10, history_size=2)
    session = engine.start(photo[20:52], [Style(texture)], options)
    steps(engine, session, 3)
    session.update(**STEERING)
    steps(engine, session, cut - 3)
    state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    resumed = engine.resume(state, photo[20:52], [Style(texture)])
    finish(engine, session)
    finish(engine, resumed)
    assert identical(resumed.state_dict(), session.state_dict())


def test_what_holds_already_changes_nothing(engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels):
    """Not even the history of the optimiser."""
    styles = shares_of([texture, checks], [1, 3])
    runs = [engine.start(photo, styles, quick(size=48)) for _ in range(2)]
    for run in runs:
        steps(engine, run, 3)
    options = runs[0].options
    runs[0].update(options.strength, None, None, options.tv_weight, [1, 3], options.content_layers, iterations=6)
    runs[0].update()
    for run in runs:
        finish(engine, run)
    assert identical(*(run.state_dict() for run in runs))


def test_steering_that_ran_out_of_memory_can_be_asked_for_again(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    """Or left: it has changed nothing, but nothing that was recorded of the objective is used."""
    smooth, interrupted, left = (started(engine, photo, texture, strength=0.5) for _ in range(3))
    objective = interrupted._stage.objective
    revision = objective.revision

    def scarce(objective: Objective) -> tuple[float, float]:
        raise torch.OutOfMemoryError("as if")

    with monkeypatch.context() as patched:
        patched.setattr(Objective, "_measure_balance", scarce)
        with pytest.raises(torch.OutOfMemoryError):
            interrupted.update(**STEERING)
        with pytest.raises(torch.OutOfMemoryError):
            left.update(**STEERING)
    assert objective.revision != revision
    untouched = started(engine, photo, texture, strength=0.5)
    for run in (left, untouched):
        finish(engine, run)
    assert identical(left.state_dict(), untouched.state_dict())
    for run in (smooth, interrupted):
        run.update(**STEERING)
        finish(engine, run)
    assert identical(smooth.state_dict(), interrupted.state_dict())


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"content_layers": {"relu3_1": 1.0}}, "content_layers.relu3_1", "no target at this tap.*: relu2_1"),
        ({"style_layers": {"relu9_1": 1.0}}, "style_layers.relu9_1", "relu1_1, relu1_2, relu2_1"),
        ({"style_layers": {"relu1_1": 0.0}}, "style_layers", "above 0"),
        ({"content_layers": {}}, "content_layers", "above 0"),
        ({"style_layers": {"relu1_1": -1.0}}, "style_layers.relu1_1", "from 0"),
        ({"style_layers": {"relu1_1": float("nan")}}, "style_layers.relu1_1", "from 0"),
        ({"style_layers": {"relu1_1": 2.0}, "content_layers": {"relu2_1": 1e13}}, "content_layers.relu2_1", "from 0"),
        ({"style_layers": {"relu1_1": 2.0}, "iterations": 0}, "iterations", "from 1"),
    ],
)
def test_layers_that_the_run_cannot_have_change_nothing(
    engine: Engine, photo: Pixels, texture: Pixels, changes: dict[str, Any], field: str, words: str
):
    session, untouched = (started(engine, photo, texture) for _ in range(2))
    with pytest.raises(OptionError, match=words) as caught:
        session.update(**changes)
    assert caught.value.field == field
    assert steps(engine, session, 1) == steps(engine, untouched, 1)
    assert np.array_equal(session.image(), untouched.image())


def test_a_hole_has_no_content_layers_to_steer(engine: Engine, photo: Pixels, texture: Pixels):
    hole = np.zeros(photo.shape[:2], np.uint8)
    hole[20:40, 30:60] = 255
    session = engine.start(photo, [Style(texture)], quick(size=48), hole=hole)
    with pytest.raises(OptionError, match="none") as caught:
        session.update(content_layers=SHALLOW["content_layers"])
    assert caught.value.field == "content_layers.relu2_1"
    session.update(style_layers={"relu2_1": 1.0})
    assert finish(engine, session)[-1].losses["style"] > 0
