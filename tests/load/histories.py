"""What a job's history must be, and what it says about work that was done twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nst_client import AnyEvent, JobState, ProgressEvent, StateEvent


@dataclass(frozen=True)
class Resume:
    """An attempt that went on where another had stopped.

    Attributes:
        attempt: its number.
        iterations: how many the one before had done beyond where this one starts.
        seconds: what computing those takes, at the pace that is usual for the job at that size. Not the pace that
            was told last: an iteration during which the process was frozen took as long as that.
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
            seconds = lost / _pace(events, furthest.width) if furthest and lost else 0.0
            found.append(Resume(event.attempt, lost, seconds))
    return found


def _pace(events: Sequence[AnyEvent], width: int) -> float:
    """The median of the paces told while the picture was this wide, in iterations a second."""
    return median(
        event.iterations_per_second for event in events if isinstance(event, ProgressEvent) and event.width == width
    )
