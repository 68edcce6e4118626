"""Steering the number of iterations: the schedule that it leaves, and that nothing else changes."""

from typing import Any

import numpy as np
import pytest
from engine_runs import Pixels, finish, quick, steps
from hypothesis import given
from hypothesis import strategies as st
from test_engine_resume import identical

from nst_engine import Engine, OptionError, Session, StepReport, StopReason, Style, StylizeOptions, checkpoint
from nst_engine.schedule import plan, with_total

SCALES = {"size": 256, "scales": 3, "iterations": 9}
PIXELS = {3: (64, 16), 6: (128, 32), 9: (256, 64)}


def start(engine: Engine, photo: Pixels, texture: Pixels, **changes: Any) -> Session:
    return engine.start(photo[24:48], [Style(texture)], quick(**{"history_size": 2, **changes}))


def ends(report: StepReport) -> list[int]:
    return [scale.last for scale in report.schedule]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_more_iterations_are_as_if_they_had_been_planned(
    engine: Engine, photo: Pixels, texture: Pixels, optimizer: str
):
    planned = start(engine, photo, texture, iterations=9, optimizer=optimizer)
    finish(engine, planned)
    for asked_at in (0, 3, 5):
        asked = start(engine, photo, texture, iterations=6, optimizer=optimizer)
        reports = steps(engine, asked, asked_at)
        asked.update(iterations=9)
        reports += finish(engine, asked)
        assert [report.iterations for report in reports] == [6] * asked_at + [9] * (9 - asked_at)
        assert identical(asked.state_dict(), planned.state_dict())


def test_more_iterations_go_to_the_last_scale(engine: Engine, photo: Pixels, texture: Pixels):
    session = start(engine, photo, texture, **SCALES)
    steps(engine, session, 1)
    session.update(iterations=11)
    reports = finish(engine, session)
    assert all(ends(report) == [3, 6, 11] for report in reports)
    assert [report.scale for report in reports] == [1, 1, 2, 2, 2, 3, 3, 3, 3, 3]
    assert reports[-1].stop_reason is StopReason.ITERATIONS


@pytest.mark.parametrize(
    ("done", "asked", "left"),
    [
        (1, 7, [3, 6, 7]),  # of the last scale
        (1, 5, [3, 5, 5]),  # the last scale falls away
        (1, 2, [2, 2, 2]),
        (4, 4, [3, 5, 5]),  # what is done, or less, leaves one more
        (4, 1, [3, 5, 5]),
        (3, 2, [3, 4, 4]),  # between two scales
    ],
)
def test_fewer_iterations_end_the_run_where_they_say(
    engine: Engine, photo: Pixels, texture: Pixels, done: int, asked: int, left: list[int]
):
    session = start(engine, photo, texture, **SCALES)
    steps(engine, session, done)
    session.update(iterations=asked)
    assert not session.finished
    reports = finish(engine, session)
    assert ends(reports[-1]) == left
    assert (reports[-1].iteration, reports[-1].iterations) == (left[-1], left[-1])
    assert reports[-1].stop_reason is StopReason.ITERATIONS
    width = next(size[0] for end, size in PIXELS.items() if left[-1] <= end)
    assert session.image().shape[1] == reports[-1].width == width


def test_fewer_then_more_leave_out_the_scales_between(engine: Engine, photo: Pixels, texture: Pixels):
    """A cut scale stays cut; what is asked for after that goes to the last one."""
    session = start(engine, photo, texture, **SCALES)
    steps(engine, session, 1)
    session.update(iterations=2)
    session.update(iterations=5)
    reports = finish(engine, session)
    assert ends(reports[-1]) == [2, 2, 5]
    assert [report.scale for report in reports] == [1, 3, 3, 3]


def test_a_run_that_has_ended_goes_on(engine: Engine, photo: Pixels, texture: Pixels):
    planned, session = (start(engine, photo, texture, iterations=iterations) for iterations in (8, 6))
    finish(engine, session)
    session.update(iterations=4)
    assert session.finished
    session.update(iterations=8)
    assert [report.iteration for report in finish(engine, session)] == [7, 8]
    finish(engine, planned)
    assert identical(session.state_dict(), planned.state_dict())


def test_iterations_that_a_scale_left_undone_come_back_only_when_asked_for_anew(
    engine: Engine, photo: Pixels, texture: Pixels
):
    session = start(engine, photo, texture, **SCALES, min_improvement=1.0, window=1, optimizer="adam")
    assert ends(steps(engine, session, 1)[0]) == [1, 4, 7]
    session.update(tv_weight=0.5, iterations=9)
    assert ends(steps(engine, session, 1)[0]) == [1, 2, 5]
    session.update(iterations=8)
    assert session.state_dict().scale_ends == (1, 2, 8)


@pytest.mark.parametrize("asked", [(9,), (4,), (2, 7)])
def test_a_run_with_other_iterations_resumes_to_the_bit(
    engine: Engine, photo: Pixels, texture: Pixels, asked: tuple[int, ...]
):
    """From bytes, before the change and after it, whichever scale it is in."""
    session = start(engine, photo, texture, size=128, scales=2, iterations=6)
    states = []
    while not session.finished:
        if session.iteration == 1:
            for iterations in asked:
                session.update(iterations=iterations)
        states.append(session.state_dict())
        steps(engine, session, 1)
    states.append(session.state_dict())
    for cut in (0, 2, 4):
        state = checkpoint.loads(checkpoint.dumps(states[min(cut, len(states) - 1)]))
        resumed = engine.resume(state, photo[24:48], [Style(texture)])
        if resumed.iteration == 0:
            steps(engine, resumed, 1)
            for iterations in asked:
                resumed.update(iterations=iterations)
        finish(engine, resumed)
        assert identical(resumed.state_dict(), session.state_dict()), cut
        assert np.array_equal(resumed.image(), session.image()), cut


def test_a_run_that_began_with_fewer_iterations_than_scales_keeps_the_scales_it_had(
    engine: Engine, photo: Pixels, texture: Pixels
):
    session = start(engine, photo, texture, size=256, scales=3, iterations=2)
    steps(engine, session, 1)
    session.update(iterations=4)
    resumed = engine.resume(session.state_dict(), photo[24:48], [Style(texture)])
    assert ends(finish(engine, resumed)[-1]) == [1, 4]
    finish(engine, session)
    assert identical(resumed.state_dict(), session.state_dict())


@pytest.mark.parametrize("iterations", [0, -1, 10_001, 2.5])
def test_a_number_of_iterations_that_no_run_can_have_is_refused(
    engine: Engine, photo: Pixels, texture: Pixels, iterations: Any
):
    session = start(engine, photo, texture)
    with pytest.raises(OptionError) as caught:
        session.update(iterations=iterations)
    assert caught.value.field == "iterations"
    assert len(finish(engine, session)) == 6


@given(iterations=st.integers(1, 50), scales=st.integers(1, 6), total=st.integers(1, 100), then=st.integers(1, 100))
def test_a_schedule_is_found_again_from_its_ends(iterations: int, scales: int, total: int, then: int):
    """Whatever the options say of iterations by then."""
    planned = plan(640, 640, StylizeOptions(size=640, iterations=iterations, scales=scales))
    changed = with_total(planned, total)
    assert changed[-1].last == total
    assert all(one.last == min(other.last, total) for one, other in zip(changed[:-1], planned[:-1], strict=True))
    options = StylizeOptions(size=640, iterations=then, scales=scales)
    assert plan(640, 640, options, [scale.last for scale in changed]) == changed
