"""Where only regions count, the network sees no more than these and what is around them."""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Pixels, bytes_for, finish, quick
from torch import Tensor

from nst_engine import Engine, Session, Style, StylizeOptions
from nst_engine import objective as objective_module
from nst_engine.backbone import Backbone
from nst_engine.evaluation import Evaluation
from nst_engine.masks import StyleMasks
from nst_engine.objective import Objective
from nst_engine.tiling import whole
from nst_engine.window import window

Backbones = Callable[[torch.dtype], Backbone]
HEIGHT, WIDTH = 163, 181  # neither ends where a map does
DEEP = {"content_layers": {}, "style_layers": {"relu1_1": 1.0, "relu3_1": 1.0, "relu4_1": 1.0}}
STATISTICS = ["gram", "moments", "sliced"]
PLACES = {
    "inside": [(80, 110, 90, 121)],
    "a corner": [(0, 9, 0, 30)],
    "the other corner": [(150, HEIGHT, 164, WIDTH)],
    "one pixel": [(100, 101, 77, 78)],
    "two regions": [(40, 60, 10, 40), (70, 99, 50, 90)],
    "a border": [(0, HEIGHT, 20, 25)],
}


def masks_at(place: str) -> list[StyleMasks]:
    """A mask for each rectangle: half at its first row, 1 in the rest."""
    found = []
    for top, bottom, left, right in PLACES[place]:
        region = torch.zeros(1, 1, HEIGHT, WIDTH)
        region[..., top:bottom, left:right] = 1.0
        region[..., top, left:right] = 0.5
        found.append(StyleMasks(region))
    return found


def image(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.fixture
def evaluate(backbone: Backbones) -> Callable[..., tuple[Objective, Evaluation]]:
    """Makes the objective with styles in these masks, and evaluates it."""

    def evaluate(masks: list[StyleMasks], options: StylizeOptions) -> tuple[Objective, Evaluation]:
        styles = [image(2 + index, 60, 70) for index in range(len(masks))]
        objective = Objective(backbone(torch.float32), image(0), styles, options, [1.0] * len(masks), masks)
        return objective, objective.evaluate(image(1))

    return evaluate


@pytest.mark.parametrize(("place", "statistic"), list(zip(PLACES, cycle(STATISTICS), strict=False)))
def test_it_finds_what_the_whole_gives(
    evaluate: Callable[..., tuple[Objective, Evaluation]],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    statistic: str,
):
    options = StylizeOptions(style_statistic=statistic, **DEEP)
    objective, found = evaluate(masks_at(place), options)
    monkeypatch.setattr(objective_module, "window", lambda *_: whole(HEIGHT, WIDTH))
    seen, truth = objective.window, evaluate(masks_at(place), options)[1]
    assert seen.pixels < 0.6 * HEIGHT * WIDTH
    assert found.losses == pytest.approx(truth.losses, rel=1e-5)
    assert (found.gradient - truth.gradient).norm() < 1e-4 * truth.gradient.norm()


def test_it_is_as_small_as_the_taps_allow(backbone: Backbones):
    options = StylizeOptions(content_layers={}, style_layers={"relu1_1": 1.0, "relu2_1": 1.0})
    region = torch.zeros(1, 1, 200, 280)
    region[..., 100, 77] = 1.0
    seen = window(backbone(torch.float32), (200, 280), options, [StyleMasks(region)])
    # Of relu2_1 a position stands for 2 px and sees 4 px further on each side.
    assert (seen.rows.first, seen.rows.last) == (100 - 4, 102 + 4)
    assert (seen.columns.first, seen.columns.last) == (76 - 4, 78 + 4)


SEES_ALL: dict[str, tuple[dict[str, Any], list[StyleMasks]]] = {
    "content": ({"content_layers": {"relu2_1": 1.0}}, masks_at("inside")),
    "content that may come to count": ({"content_layers": {"relu2_1": 0.0}}, masks_at("inside")),
    "a style everywhere": ({}, [*masks_at("inside"), StyleMasks()]),
}


@pytest.mark.parametrize("case", SEES_ALL)
def test_all_is_seen_where_all_counts(backbone: Backbones, case: str):
    given, masks = SEES_ALL[case]
    seen = window(backbone(torch.float32), (HEIGHT, WIDTH), StylizeOptions(**{**DEEP, **given}), masks)
    assert seen == whole(HEIGHT, WIDTH)


def hole(top: int, left: int) -> Pixels:
    """Of 16 px, in a picture of 128 px."""
    mask = np.zeros((128, 128), np.uint8)
    mask[top : top + 16, left : left + 16] = 255
    return mask


def test_holes_in_different_places_are_filled_together_as_alone(engine: Engine, photo: Pixels, texture: Pixels):
    """Beside a picture that is as large as their windows."""
    shallow = {"content_layers": {}, "style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}}
    content = np.tile(photo, (2, 2, 1))[:128, :128]
    given = [(content, 128, hole(40, 40)), (content, 128, hole(60, 80)), (content[:24, :24], 24, None)]

    def start() -> list[Session]:
        styles = [Style(texture)]
        return [engine.start(one, styles, quick(size=size, **shallow), hole=mask) for one, size, mask in given]

    alone, together = start(), start()
    assert len({session.batch_key for session in together}) == 1
    for session in alone:
        finish(engine, session)
    while not all(session.finished for session in together):
        engine.step(together)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.image(), other.image())


def test_a_hole_needs_no_more_memory_than_what_is_around_it(engine: Engine, photo: Pixels, texture: Pixels):
    """So it needs no tiles, and the sliced distance is not refused, though the whole picture would be."""
    options = quick(size=128, style_statistic="sliced", style_layers={"relu1_1": 1.0, "relu2_1": 1.0})
    content = np.tile(photo, (2, 2, 1))[:128, :128]
    budget = bytes_for(options, 64 * 64)
    session = engine.start(content, [Style(texture, scale=0.4)], options, hole=hole(40, 40), memory_budget=budget)
    roomy = engine.start(content, [Style(texture, scale=0.4)], options, hole=hole(40, 40))
    assert session.working_memory.evaluating <= roomy.working_memory.evaluating < 3 * budget
    for one in (session, roomy):
        finish(engine, one)
    assert np.array_equal(session.image(), roomy.image())
