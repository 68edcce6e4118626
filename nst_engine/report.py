"""What is told of an iteration."""

from dataclasses import dataclass

from nst_engine.schedule import Scale
from nst_engine.stopping import StopReason


@dataclass(frozen=True)
class StepReport:
    """What one iteration did.

    Attributes:
        iteration: iterations done, of `iterations` in all, which fall when a scale ends early.
        scale: the scale worked on, from 1, of `scales`.
        width, height: the working size in pixels.
        total_loss: the weighted sum at the image that `Session.image` now gives, before rounding and
            before `options.color` gives it the content's chroma.
        losses: its parts, weighted: "content", "style", "tv", "box", and "detail" where a subject is
            protected.
        undone: how many of the iterations so far diverged, and were undone.
        schedule: every scale, with the iterations it owns as things stand.
        stop_reason: why this was the last iteration; None when it was not.
    """

    iteration: int
    iterations: int
    scale: int
    scales: int
    width: int
    height: int
    total_loss: float
    losses: dict[str, float]
    undone: int
    schedule: tuple[Scale, ...]
    stop_reason: StopReason | None

    @property
    def finished(self) -> bool:
        """Whether this was the last iteration."""
        return self.stop_reason is not None
