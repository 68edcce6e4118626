"""The time left is that of the schedule as it stands."""

import pytest

from nst_engine import StepReport, StopReason
from nst_engine.schedule import Scale, cut
from nst_server.model_server.pace import Pace

SECONDS_PER_PIXEL = 1e-4
SCALES = (Scale(1, 8, 10, 10, 0, 6), Scale(2, 16, 20, 20, 6, 10))


def report(iteration: int, schedule: tuple[Scale, ...], stop_reason: StopReason | None = None) -> StepReport:
    scale = next(scale for scale in schedule if iteration <= scale.last)
    return StepReport(
        iteration=iteration,
        iterations=schedule[-1].last,
        scale=scale.number,
        scales=len(schedule),
        width=scale.width,
        height=scale.height,
        total_loss=2.0,
        losses={"content": 2.0},
        undone=3,
        schedule=schedule,
        stop_reason=stop_reason,
    )


def seconds(report: StepReport) -> float:
    return SECONDS_PER_PIXEL * report.width * report.height


def test_time_left_counts_the_pixels_to_come():
    pace = Pace()
    for iteration, pixels in ((1, 5 * 80 + 4 * 320), (6, 4 * 320), (7, 3 * 320), (10, 0)):
        step = report(iteration, SCALES)
        progress = pace.progress(step, seconds(step))
        assert progress.seconds_left == pytest.approx(pixels * SECONDS_PER_PIXEL)
        assert progress.iterations_per_second == pytest.approx(1 / seconds(step))
        assert pace.scale_ended == (iteration in (6, 10))


def test_time_left_follows_a_scale_that_ends_early():
    pace, earlier = Pace(), cut(SCALES, 1, 2)
    step = report(2, earlier)
    progress = pace.progress(step, seconds(step))
    assert (progress.iteration, progress.iterations, progress.undone) == (2, 6, 3)
    assert progress.seconds_left == pytest.approx(4 * 320 * SECONDS_PER_PIXEL)
    assert pace.scale_ended
    last = report(3, cut(earlier, 2, 3), StopReason.THRESHOLD)
    assert pace.progress(last, seconds(last)).seconds_left == 0


def test_the_pace_is_smoothed():
    pace, step = Pace(), report(1, SCALES)
    pace.progress(step, 1.0)
    assert pace.progress(step, 2.0).iterations_per_second == pytest.approx(1 / 1.2)
