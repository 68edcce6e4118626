"""The judges of tests/load see what is wrong: growth, gaps, second endings, work done again."""

from typing import Any

import numpy as np
import pytest
from histories import Resume, ended_once, is_gapless, resumes
from trend import by_minute, thirds, trend

from nst.v1 import job_pb2
from nst_client import AnyEvent, JobState
from nst_client.decoding import decode_event


def state(sequence: int, state: JobState, attempt: int = 1, from_iteration: int = 0) -> AnyEvent:
    change = job_pb2.StateChange(state=job_pb2.JobState.ValueType(state), from_iteration=from_iteration)
    return event(sequence, state, attempt, state=change)


def progress(sequence: int, iteration: int, pace: float, attempt: int = 1) -> AnyEvent:
    told = job_pb2.Progress(iteration=iteration, width=8, height=8, iterations_per_second=pace)
    return event(sequence, JobState.RUNNING, attempt, progress=told)


def event(sequence: int, job_state: JobState, attempt: int, **kind: Any) -> AnyEvent:
    number = job_pb2.JobState.ValueType(job_state)
    message = job_pb2.JobEvent(sequence=sequence, attempt=attempt, job_state=number, **kind)
    decoded = decode_event(message)
    assert decoded is not None
    return decoded


HISTORY: list[AnyEvent] = [
    state(1, JobState.QUEUED, attempt=0),
    state(2, JobState.RUNNING),
    progress(3, 11, pace=2.0),
    progress(4, 12, pace=0.1),  # frozen meanwhile
    state(5, JobState.RUNNING, attempt=2, from_iteration=5),
    progress(6, 9, pace=4.0, attempt=2),
    state(7, JobState.RUNNING, attempt=3, from_iteration=9),
    state(8, JobState.CANCELLED, attempt=3),
]


def test_a_line_has_the_slope_and_the_error_of_least_squares():
    rng = np.random.default_rng(3)
    xs = np.linspace(0, 2, 40)
    ys = 100 + 3 * xs + rng.normal(0, 0.5, 40)
    (slope, _), covariance = np.polyfit(xs, ys, 1, cov=True)
    found = trend(list(zip(xs.tolist(), ys.tolist(), strict=True)))
    assert found.slope == pytest.approx(slope)
    assert found.error == pytest.approx(covariance[0, 0] ** 0.5)
    assert found.mean == pytest.approx(ys.mean())


def test_a_trend_that_cannot_be_told_is_not_called_flat():
    assert trend([(0, 1.0), (1, 1.0), (2, 1.0)]).at_most(0.1) is True
    assert trend([(0, 1.0), (1, 2.0), (2, 3.0)]).at_most(0.1) is False
    assert trend([(0, 1.0), (1, 3.0), (2, 1.0)]).at_most(0.1) is None
    assert trend([(0, 1.0)]).at_most(0.1) is None


def test_samples_are_taken_together_by_minute_and_in_thirds():
    assert by_minute([(0, 1.0), (30, 3.0), (70, 5.0)]) == [(15, 2.0), (70, 5.0)]
    assert thirds([1, 2, 3, 4, 5, 6, 7]) == ([1, 2], [6, 7])
    assert thirds([1]) == ([1], [1])


def test_work_done_again_is_what_the_attempt_before_was_ahead():
    assert resumes(HISTORY) == [Resume(attempt=2, iterations=7, seconds=3.5), Resume(3, 0, 0.0)]


def test_gaps_repeats_and_second_endings_are_seen():
    assert is_gapless(HISTORY)
    assert ended_once(HISTORY)
    assert not is_gapless(HISTORY[:2] + HISTORY[3:])
    assert not is_gapless([*HISTORY[:3], HISTORY[2], *HISTORY[3:]])
    assert not ended_once([*HISTORY, state(9, JobState.CANCELLED)])
    assert not ended_once(HISTORY[:-1])
