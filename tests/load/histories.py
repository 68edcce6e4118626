"""What a job's history must be, and what it says about work that was done twice."""

from collections.abc import Sequence
from dataclasses import dataclass

from nst_client import AnyEvent, JobState, ProgressEvent, StateEvent


@dataclass(frozen=True)
class Resume:
    """An attempt that went on where another had stopped.

    Attributes:
        attempt: its number.
        iterations: how many the one before had done beyond where this one starts.
        seconds: what computing those had taken, at the pace that was last told.
    """

    attempt: int
    iterations: int
    seconds: float


def is_gapless(events: Sequence[AnyEvent]) -> bool:
    """Whether the numbers are 1, 2, 3 ..."""
    return [event.sequence for event in events] == list(range(1, len(events) + 1))


def ended_once(events: Sequence[AnyEvent]) -> bool:
    """Whether the last event is final and no other."""
    return [event.job_state.is_final for event in events] == [False] * (len(events) - 1) + [True]


def resumes(events: Sequence[AnyEvent]) -> list[Resume]:
    """Every attempt but the first, with the work that it repeats."""
    found = []
    furthest: ProgressEvent | None = None
    for event in events:
        if isinstance(event, ProgressEvent):
            furthest = event
        elif isinstance(event, StateEvent) and event.state is JobState.RUNNING and event.attempt > 1:
            lost = max(furthest.iteration - event.from_iteration, 0) if furthest else 0
            pace = furthest.iterations_per_second if furthest else 0.0
            found.append(Resume(event.attempt, lost, lost / pace if pace else 0.0))
    return found
