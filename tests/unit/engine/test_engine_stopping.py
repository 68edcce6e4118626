"""Runs end at their iterations, when the loss stands still, or at a content loss, and say so."""

from typing import Any

import pytest
import torch
from engine_runs import Pixels, finish, quick, run, steps

from nst_engine import Engine, StepReport, StopReason, Style, StylizeOptions, checkpoint
from nst_engine.schedule import cut, plan

WINDOW = 3
TWO_SCALES = {
    "size": 128,
    "scales": 2,
    "iterations": 16,
    "content_layers": {"relu2_1": 1.0},
    "style_layers": {"relu1_1": 1.0, "relu2_1": 1.0},
}


@pytest.fixture(scope="module")
def free(engine: Engine, photo: Pixels, texture: Pixels) -> list[StepReport]:
    """A run from the content that nothing ends early."""
    return run(engine, photo, texture, quick(iterations=14))[0]


@pytest.fixture(scope="module")
def free_from_noise(engine: Engine, photo: Pixels, texture: Pixels) -> list[StepReport]:
    """The same from noise, at two scales."""
    return run(engine, photo, texture, two_scales_from_noise())[0]


def two_scales_from_noise(**changes: Any) -> StylizeOptions:
    return quick(**TWO_SCALES, init="noise", strength=None, content_weight=1.0, style_weight=0.0, **changes)


def improvement(reports: list[StepReport], last: int) -> float:
    """Of the window that ends with the report at this index."""
    first = reports[last - WINDOW].total_loss
    return (first - reports[last].total_loss) / first


def crossing(losses: list[float], threshold: float) -> int:
    """How many losses there are up to the first on the other side of the threshold than the one before it."""
    return next(i + 1 for i in range(1, len(losses)) if (losses[i] > threshold) != (losses[i - 1] > threshold))


def content_losses(reports: list[StepReport]) -> list[float]:
    return [report.losses["content"] for report in reports]


def test_a_run_ends_at_its_iterations(free: list[StepReport]):
    assert [report.iteration for report in free] == list(range(1, 15))
    assert [report.stop_reason for report in free] == [None] * 13 + [StopReason.ITERATIONS]
    assert [report.finished for report in free] == [False] * 13 + [True]
    assert {report.iterations for report in free} == {14}


def test_a_loss_that_stands_still_ends_the_run(engine: Engine, photo: Pixels, texture: Pixels, free: list[StepReport]):
    improvements = [improvement(free, last) for last in range(WINDOW, len(free))]
    least = (improvements[3] + improvements[4]) / 2
    expected = next(i for i, value in enumerate(improvements) if value <= least) + WINDOW + 1
    assert expected < len(free)
    reports, session = run(engine, photo, texture, quick(iterations=14, min_improvement=least, window=WINDOW))
    assert [report.total_loss for report in reports] == [report.total_loss for report in free[:expected]]
    assert (reports[-1].stop_reason, reports[-1].iterations) == (StopReason.IMPROVEMENT, expected)
    assert session.finished
    with pytest.raises(RuntimeError, match="finished"):
        session.advance()


def test_a_scale_that_stands_still_makes_way_for_the_next(engine: Engine, photo: Pixels, texture: Pixels):
    """Everything is too little improvement here, so every scale takes just its window."""
    options = quick(**{**TWO_SCALES, "iterations": 12}, min_improvement=1.0, window=WINDOW)
    reports, session = run(engine, photo, texture, options)
    assert [(report.scale, report.width) for report in reports] == [(1, 64)] * WINDOW + [(2, 128)] * WINDOW
    assert [report.iterations for report in reports] == [12, 12, 9, 9, 9, 6]
    assert [report.stop_reason for report in reports] == [None] * 5 + [StopReason.IMPROVEMENT]
    assert session.image().shape == (85, 128, 3)


def test_a_scale_that_stands_still_once_it_is_over_changes_nothing(engine: Engine, photo: Pixels, texture: Pixels):
    reports, _ = run(engine, photo, texture, quick(iterations=WINDOW, min_improvement=1.0, window=WINDOW + 1))
    assert (len(reports), reports[-1].stop_reason) == (WINDOW, StopReason.ITERATIONS)


def test_from_the_content_the_threshold_is_met_from_below(
    engine: Engine, photo: Pixels, texture: Pixels, free: list[StepReport]
):
    """Its content loss is 0 before the first iteration."""
    threshold = content_losses(free)[0] / 2
    reports, session = run(engine, photo, texture, quick(iterations=14, content_threshold=threshold))
    assert (len(reports), reports[-1].stop_reason) == (1, StopReason.THRESHOLD)
    assert (reports[-1].losses, session.finished) == (free[0].losses, True)


def test_from_noise_it_is_met_from_above_and_at_the_last_scale_only(
    engine: Engine, photo: Pixels, texture: Pixels, free_from_noise: list[StepReport]
):
    coarse, fine = (content_losses([r for r in free_from_noise if r.scale == scale]) for scale in (1, 2))
    threshold = (fine[0] + fine[1]) / 2
    assert fine[0] > threshold
    assert (coarse[0] > threshold) != (coarse[-1] > threshold)
    reports, _ = run(engine, photo, texture, two_scales_from_noise(content_threshold=threshold))
    assert len(reports) == len(coarse) + crossing(fine, threshold)
    assert (reports[-1].stop_reason, reports[-1].iterations) == (StopReason.THRESHOLD, len(reports))


def test_a_content_loss_that_stays_on_its_side_ends_nothing(
    engine: Engine, photo: Pixels, texture: Pixels, free: list[StepReport]
):
    beyond = 2 * max(content_losses(free))
    reports, _ = run(engine, photo, texture, quick(iterations=3, content_threshold=beyond))
    assert [report.stop_reason for report in reports] == [None, None, StopReason.ITERATIONS]


def test_a_resumed_run_stops_where_it_would_have(engine: Engine, photo: Pixels, texture: Pixels):
    """Cut within the first window, when the first scale has just ended early, and within the last window."""
    style = [Style(texture)]
    raw = {"strength": None, "style_weight": 1000.0, "padding": "replicate"}
    session = engine.start(photo, style, quick(**TWO_SCALES, min_improvement=0.7, window=WINDOW, **raw))
    reports, saved = [], []
    while not session.finished:
        reports.append(session.advance())
        saved.append(checkpoint.dumps(session.state_dict()))
    first_scale = reports[-1].schedule[0].last
    assert first_scale < 8
    assert reports[-1].stop_reason is StopReason.IMPROVEMENT
    for done in (2, first_scale, len(reports) - 1):
        resumed = engine.resume(checkpoint.loads(saved[done - 1]), photo, style)
        assert finish(engine, resumed) == reports[done:]
        assert torch.equal(resumed.state_dict().tensors["image"], session.state_dict().tensors["image"])


def test_steering_starts_the_window_afresh(engine: Engine, photo: Pixels, texture: Pixels):
    session = engine.start(
        photo, [Style(texture)], quick(iterations=14, min_improvement=1.0, window=WINDOW, optimizer="adam")
    )
    steps(engine, session, WINDOW - 1)
    session.update(strength=0.6)
    assert [report.finished for report in steps(engine, session, WINDOW)] == [False, False, True]


def test_a_loss_that_steering_moves_across_the_threshold_ends_nothing(engine: Engine, photo: Pixels, texture: Pixels):
    raw = {"strength": None, "content_weight": 1.0, "style_weight": 0.0, "init": "noise", "learning_rate": 1e-3}
    free, _ = run(engine, photo, texture, quick(iterations=2, **raw))
    threshold = 0.5 * free[-1].losses["content"]
    session = engine.start(photo, [Style(texture)], quick(iterations=6, content_threshold=threshold, **raw))
    steps(engine, session, 2)
    session.update(content_weight=0.1)
    (report,) = steps(engine, session, 1)
    assert report.losses["content"] < threshold
    assert not report.finished


@pytest.mark.parametrize(
    ("number", "iteration", "ends"), [(1, 5, [5, 38, 71]), (2, 35, [34, 35, 68]), (3, 99, [34, 67, 99])]
)
def test_what_a_scale_leaves_undone_falls_away(number: int, iteration: int, ends: list[int]):
    scales = plan(512, 512, StylizeOptions(size=512, iterations=100, scales=3))
    assert [scale.last for scale in scales] == [34, 67, 100]
    shortened = cut(scales, number, iteration)
    assert [scale.last for scale in shortened] == ends
    assert [scale.first for scale in shortened] == [0, *ends[:-1]]
    assert [scale.long_side for scale in shortened] == [128, 256, 512]
