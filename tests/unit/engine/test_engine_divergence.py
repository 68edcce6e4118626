"""Divergence is noticed, undone from the best state, told, and does not go on for ever."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_runs import Pixels, finish, quick, run, steps
from torch import Tensor

from nst_engine import Engine, OptionError, Session, StopReason, Style, checkpoint
from nst_engine.divergence import BACKOFF, EXPLOSION, MAXIMUM_SETBACKS, Guard, Point
from nst_engine.evaluation import Evaluation
from nst_engine.objective import Objective
from nst_engine.optimizers import Adam

# Far too large for each, in jobs that start near their minimum.
RATES = {"lbfgs": 1e3, "adam": 1e3, "adagrad": 1e3, "gradient_descent": 1e3}

Spoiler = Callable[[Evaluation], Evaluation]


def no_loss(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, total=math.nan, finite=False)


def no_gradient(evaluation: Evaluation) -> Evaluation:
    """A finite loss whose gradient is not: what `Objective.evaluate` says of it."""
    return replace(evaluation, gradient=evaluation.gradient * math.nan, finite=False)


def far_off(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, total=1e3 * evaluation.total)


def spoil(session: Session, monkeypatch: pytest.MonkeyPatch, spoiler: Spoiler, *calls: int) -> None:
    """Spoils the session's evaluations of these numbers, from 0 for the next."""
    evaluate, count = Objective.evaluate, iter(range(1_000_000))

    def spoilt(objective: Objective, image: Tensor) -> Evaluation:
        evaluation = evaluate(objective, image)
        return spoiler(evaluation) if objective is session._stage.objective and next(count) in calls else evaluation

    monkeypatch.setattr(Objective, "evaluate", spoilt)


def started(engine: Engine, photo: Pixels, texture: Pixels, **changes: Any) -> Session:
    return engine.start(photo, [Style(texture)], quick(size=48, iterations=8, **changes))


def image_of(session: Session) -> Tensor:
    return session.state_dict().tensors["image"]


def weights(raw: float) -> dict[str, Any]:
    return {"strength": None, "content_weight": raw, "style_weight": raw}


@pytest.mark.parametrize("raw", [1.0, 1e12])
@pytest.mark.parametrize("optimizer", RATES)
def test_a_rate_of_a_thousand_is_survived(
    engine: Engine, photo: Pixels, texture: Pixels, optimizer: str, raw: float
):  # fmt: skip
    """With whatever weights: the loss never leaves the bound, and in the end it is below the first."""
    options = quick(size=32, iterations=16, optimizer=optimizer, learning_rate=RATES[optimizer], **weights(raw))
    unmoved = replace(options, optimizer="adam", learning_rate=1e-6)
    (first,) = steps(engine, engine.start(photo, [Style(texture)], unmoved), 1)
    reports, session = run(engine, photo, texture, options)
    best = first.total_loss
    for report in reports:
        assert report.total_loss <= EXPLOSION * best * 1.001
        best = min(best, report.total_loss)
    assert reports[-1].undone > 0
    assert best < 0.99 * first.total_loss
    assert image_of(session).isfinite().all()


@pytest.mark.parametrize("spoiler", [no_loss, no_gradient, far_off])
@pytest.mark.parametrize("optimizer", RATES)
def test_a_bad_evaluation_is_undone_and_told(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch, optimizer: str, spoiler: Spoiler
):
    session = started(engine, photo, texture, optimizer=optimizer)
    before = steps(engine, session, 3)[-1]
    state = session.state_dict()
    spoil(session, monkeypatch, spoiler, 0)
    (undone,) = steps(engine, session, 1)
    assert (undone.iteration, undone.undone) == (4, before.undone + 1)
    assert undone.total_loss == before.total_loss
    assert torch.equal(image_of(session), state.tensors["image"])
    assert session.state_dict().step == BACKOFF
    rest = finish(engine, session)
    assert rest[-1].total_loss < before.total_loss
    assert (rest[-1].undone, rest[-1].stop_reason) == (undone.undone, StopReason.ITERATIONS)


def test_several_steps_together_do_not_pass_what_one_may_not(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    """Each is 1.9 times the last; the second is over the bound and goes back to the best, not to the first."""
    session = started(engine, photo, texture, optimizer="gradient_descent")
    (best,) = steps(engine, session, 2)[1:]
    good = image_of(session)

    def rising(evaluation: Evaluation) -> Evaluation:
        return replace(evaluation, total=best.total_loss * 1.9 ** next(powers))

    powers = iter((1, 2))
    spoil(session, monkeypatch, rising, 0, 1)
    risen, undone = steps(engine, session, 2)
    assert risen.total_loss == pytest.approx(1.9 * best.total_loss)
    assert undone.total_loss == best.total_loss
    assert torch.equal(image_of(session), good)
    assert not session.state_dict().tensors["optimizer.velocity"].any()


@pytest.mark.parametrize("optimizer", RATES)
def test_a_run_that_only_diverges_ends_at_its_best(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch, optimizer: str
):
    session = engine.start(photo, [Style(texture)], quick(size=32, iterations=90, optimizer=optimizer))
    (good,) = steps(engine, session, 4)[3:]
    best = session.state_dict().best_total_loss or good.total_loss
    spoil(session, monkeypatch, no_gradient, *range(MAXIMUM_SETBACKS))
    reports = finish(engine, session)
    assert len(reports) == MAXIMUM_SETBACKS
    assert reports[-1].stop_reason is StopReason.DIVERGENCE
    assert reports[-1].iterations == reports[-1].iteration == 4 + MAXIMUM_SETBACKS
    assert {report.total_loss for report in reports} == {best}


def test_a_scale_that_only_diverges_makes_way_for_the_next(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    options = quick(size=128, scales=2, iterations=40)
    session = engine.start(photo[20:52], [Style(texture)], options)
    steps(engine, session, 2)
    spoil(session, monkeypatch, no_loss, *range(MAXIMUM_SETBACKS))
    reports = steps(engine, session, MAXIMUM_SETBACKS + 2)
    assert [report.scale for report in reports[-3:]] == [1, 2, 2]
    assert reports[-1].stop_reason is None
    assert reports[-1].undone == MAXIMUM_SETBACKS
    assert session.state_dict().step == 1.0


def test_curvature_goes_when_smaller_steps_do_not_help(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    session = started(engine, photo, texture)
    steps(engine, session, 3)
    spoil(session, monkeypatch, no_loss, 0, 1, 2)
    for kept in (True, True, False):
        steps(engine, session, 1)
        assert session.state_dict().tensors["optimizer.steps"].any() == kept


@pytest.mark.parametrize("optimizer", RATES)
def test_a_run_resumes_to_the_bit_in_the_midst_of_a_backoff(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch, optimizer: str
):
    """Risen above the best, diverged once, and twice: each is a place to go on from."""
    options = quick(size=32, iterations=14, optimizer=optimizer, learning_rate=RATES[optimizer])
    session = engine.start(photo, [Style(texture)], options)
    states = [session.state_dict()]
    while not session.finished:
        session.advance()
        states.append(session.state_dict())
    places = [lambda state: state.best_losses, lambda state: state.setbacks == 1, lambda state: state.setbacks > 1]
    for state in [next(state for state in states if reached(state)) for reached in places]:
        resumed = engine.resume(checkpoint.loads(checkpoint.dumps(state)), photo, [Style(texture)])
        reports = finish(engine, resumed)
        assert torch.equal(image_of(resumed), states[-1].tensors["image"])
        assert reports[-1].undone == states[-1].undone
        assert replace(resumed.state_dict(), tensors={}) == replace(states[-1], tensors={})


def test_steering_starts_a_new_best(engine: Engine, photo: Pixels, texture: Pixels):
    """The loss under other weights may be any multiple of what it was."""
    session = engine.start(photo, [Style(texture)], quick(size=32, **weights(1.0)))
    (before,) = steps(engine, session, 2)[1:]
    session.update(content_weight=1e6, style_weight=1e6)
    after = finish(engine, session)
    assert after[0].total_loss > 1e3 * before.total_loss
    assert after[-1].total_loss < after[0].total_loss
    assert after[-1].undone == before.undone


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"content_weight": 0.0, "style_weight": 1e12}, "style_weight"),
        ({"content_weight": 1e12, "style_weight": 0.0, "init": "noise"}, "content_weight"),
    ],
)
def test_weights_beyond_float32_are_refused_by_name(
    engine: Engine, photo: Pixels, texture: Pixels, given: dict[str, Any], field: str
):
    heavy = {"content_layers": {"relu2_2": 1e12}, "style_layers": {"relu2_1": 1e12, "relu1_1": 1e12}}
    session = engine.start(photo, [Style(texture)], quick(size=32, strength=None, **heavy, **given))
    with pytest.raises(OptionError, match="lower") as caught:
        session.advance()
    assert caught.value.field == field
    assert session.iteration == 0


def test_a_minimum_is_no_divergence(engine: Engine, photo: Pixels):
    """Where loss and gradient are 0 nothing moves, and nothing needs undoing."""
    options = quick(size=96, iterations=2, strength=0.0, tv_weight=0.0)
    reports, _ = run(engine, photo, photo, options)
    assert [(report.total_loss, report.undone) for report in reports] == [(0.0, 0)] * options.iterations


@pytest.mark.parametrize("best", [3.0, 0.0, -1e-6])
def test_a_loss_that_stays_is_never_a_divergence(best: float):
    """Next to 0 some losses are below it by their rounding."""

    def plain(image: Tensor) -> Point:
        return Point(image, Evaluation({}, best, torch.ones_like(image), True))

    image, guard = torch.zeros(1, 3, 4, 4), Guard()
    state = guard.begin(plain(image))
    optimizer = Adam(image.shape, image.device, 1.0)
    for _ in range(5):
        state = guard.judge(optimizer, state, plain(guard.propose(optimizer, state)))
    assert guard.undone == 0


def test_what_was_undone_does_not_count_as_standing_still(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    """The best loss again and again is a recovery, not a lack of improvement."""
    session = started(engine, photo, texture, min_improvement=1e-3, window=2)
    spoil(session, monkeypatch, far_off, 2, 3, 4)
    reports = steps(engine, session, 5)
    assert [report.undone for report in reports] == [0, 1, 2, 3, 3]
    assert reports[-1].stop_reason is None
