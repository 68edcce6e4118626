"""When a scale has done its work before its iterations are used up."""

import enum
from collections import deque
from collections.abc import Iterable

from nst_engine.evaluation import Evaluation
from nst_engine.options import StylizeOptions


class StopReason(enum.Enum):
    """Why a run ended.

    Its iterations were done, its loss stood still, its content loss met the threshold, or every
    further step, however small, diverged.
    """

    ITERATIONS = "iterations"
    IMPROVEMENT = "improvement"
    THRESHOLD = "threshold"
    DIVERGENCE = "divergence"


class StopRule:
    """Watches the losses of one scale, under one objective.

    Args:
        options: `min_improvement`, `window` and `content_threshold`.
        final: whether this is the last scale, the only one where the threshold counts.
        recent: the `recent` of a rule that this one continues.
    """

    def __init__(self, options: StylizeOptions, *, final: bool, recent: Iterable[float] = ()) -> None:
        self._min_improvement = options.min_improvement
        self._threshold = options.content_threshold if final else None
        self._recent = deque(recent, maxlen=options.window + 1)

    @property
    def recent(self) -> tuple[float, ...]:
        """The latest total losses, at most one more than the window, oldest first."""
        return tuple(self._recent)

    def judge(self, before: Evaluation, after: Evaluation) -> StopReason | None:
        """Takes note of an iteration; the reason to end the scale after it, or None."""
        if not self._recent:
            self._recent.append(before.total)
        self._recent.append(after.total)
        if self._threshold is not None:
            sides = {evaluation.losses["content"] > self._threshold for evaluation in (before, after)}
            if len(sides) == 2:
                return StopReason.THRESHOLD
        if self._min_improvement > 0 and len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            if oldest - after.total <= self._min_improvement * oldest:
                return StopReason.IMPROVEMENT
        return None
