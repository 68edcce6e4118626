"""Steering a run: what it changes, what it refuses, and that a refusal changes nothing."""

from typing import Any

import numpy as np
import pytest
from engine_runs import Pixels, finish, quick, shares_of, steps

from nst_engine import Engine, OptionError, Session


def started(engine: Engine, content: Pixels, styles: list[Pixels], **changes: Any) -> Session:
    session = engine.start(content, shares_of(styles, [1.0] * len(styles)), quick(size=48, iterations=10, **changes))
    steps(engine, session, 3)
    return session


@pytest.fixture
def balanced(engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels) -> Session:
    return started(engine, photo, [texture, checks])


@pytest.fixture
def raw(engine: Engine, photo: Pixels, texture: Pixels) -> Session:
    return started(engine, photo, [texture], strength=None, content_weight=2.0, style_weight=0.1)


def test_steering_counts_from_the_next_iteration(engine: Engine, balanced: Session):
    (before,) = steps(engine, balanced, 1)
    balanced.update(tv_weight=2e-3)
    assert balanced.options.tv_weight == 2e-3
    (after,) = steps(engine, balanced, 1)
    assert after.iteration == before.iteration + 1
    assert after.losses["tv"] == pytest.approx(2 * before.losses["tv"], rel=0.2)


def test_raw_weights_scale_their_losses(engine: Engine, raw: Session):
    (before,) = steps(engine, raw, 1)
    raw.update(content_weight=200.0, style_weight=0.0)
    (after,) = steps(engine, raw, 1)
    assert after.losses["style"] == 0
    assert after.losses["content"] > 10 * before.losses["content"]
    assert (raw.options.content_weight, raw.options.style_weight) == (200.0, 0.0)


def test_less_strength_leads_back_to_the_content(engine: Engine, balanced: Session, photo: Pixels):
    content = engine.start(photo, shares_of([photo], [1]), quick(size=48)).image().astype(int)
    far = np.abs(balanced.image() - content).mean()
    balanced.update(strength=0.0, tv_weight=0.0)
    reports = finish(engine, balanced)
    assert np.abs(balanced.image() - content).mean() < 0.5 * far
    assert reports[-1].losses["style"] == 0


def test_shares_steered_before_the_first_step_are_shares_given(
    engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels
):
    options = quick(size=48)
    given = engine.start(photo, shares_of([texture, checks], [1, 3]), options)
    steered = engine.start(photo, shares_of([texture, checks], [1, 1]), options)
    steered.update(style_shares=[1, 3])
    assert finish(engine, given) == finish(engine, steered)
    assert np.array_equal(given.image(), steered.image())


def test_steering_lasts_over_a_scale_boundary(engine: Engine, photo: Pixels, texture: Pixels):
    session = engine.start(
        photo, shares_of([texture], [1]), quick(size=128, scales=2, iterations=3, strength=None, style_weight=1.0)
    )
    steps(engine, session, 1)
    session.update(style_weight=0.0)
    assert [report.losses["style"] for report in finish(engine, session)] == [0, 0]


def test_an_empty_update_changes_no_option(balanced: Session):
    before = balanced.options
    balanced.update()
    assert balanced.options == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"strength": 1.5}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"tv_weight": -1.0}, "tv_weight"),
        ({"content_weight": 1.0}, "content_weight"),
        ({"style_weight": 1.0}, "style_weight"),
        ({"style_shares": [1.0]}, "style_shares"),
        ({"style_shares": [0.0, 0.0]}, "style_shares"),
        ({"style_shares": [1.0, -1.0]}, "style_shares[1]"),
        ({"strength": 0.9, "style_shares": [1.0]}, "style_shares"),
        ({"style_shares": [1.0, 5.0], "tv_weight": float("inf")}, "tv_weight"),
    ],
)
def test_a_refused_update_changes_nothing(
    engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels, balanced: Session, changes: dict[str, Any],
    field: str,
):  # fmt: skip
    with pytest.raises(OptionError) as caught:
        balanced.update(**changes)
    assert caught.value.field == field
    untouched = started(engine, photo, [texture, checks])
    assert steps(engine, balanced, 1) == steps(engine, untouched, 1)
    assert np.array_equal(balanced.image(), untouched.image())


def test_a_run_with_raw_weights_takes_no_strength(raw: Session):
    with pytest.raises(OptionError, match="content_weight and style_weight instead") as caught:
        raw.update(strength=0.5)
    assert caught.value.field == "strength"
    with pytest.raises(OptionError) as caught:
        raw.update(style_weight=-0.5)
    assert caught.value.field == "style_weight"
