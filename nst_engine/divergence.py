"""Noticing that a run diverges, and going back to its last good state."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from nst_engine.evaluation import Evaluation
from nst_engine.optimizers import Optimizer
from nst_engine.options import OptionError

# A proposal whose loss is more than this many times the best one of its scale has diverged.
EXPLOSION = 2.0
# After a divergence the step shrinks by this factor; every step that is taken lets it double back to 1.
BACKOFF = 0.25
# From this many divergences since the best on, the step shrinks ever faster: a rate of 1e3 under
# weights of 1e12 is 18 orders of magnitude too large, which is 30 times `BACKOFF`.
PATIENCE = 3
# After so many the step has shrunk by 10**34: there is no way on from here.
MAXIMUM_SETBACKS = 12

# What scales each loss, for the error about it.
_WEIGHTS = {"content": "content_weight", "style": "style_weight", "tv": "tv_weight", "box": "box_weight"}


@dataclass(frozen=True)
class Point:
    """What is optimised, with its losses and gradient there."""

    parameters: Tensor
    evaluation: Evaluation


class Guard:
    """Lets an optimiser go on as long as it does not diverge, and takes it back to the best state if it does.

    Attributes:
        best: the state with the lowest total loss, of this scale and under this objective; None before `begin`.
        step: what the optimiser's steps are multiplied by, above 0, at most 1.
        setbacks: divergences since `best` was reached.
        undone: divergences of the whole run.
    """

    def __init__(self, best: Point | None = None, step: float = 1.0, setbacks: int = 0, undone: int = 0) -> None:
        self.best = best
        self.step = step
        self.setbacks = setbacks
        self.undone = undone

    @property
    def exhausted(self) -> bool:
        """Whether no step, however small, leads on from the best state."""
        return self.setbacks >= MAXIMUM_SETBACKS

    def has_left(self, parameters: Tensor) -> bool:
        """Whether the parameters are other than those of the best state."""
        return self.best is not None and self.best.parameters is not parameters

    def restart(self) -> None:
        """Forgets the best state and the step: another scale or objective follows."""
        self.best, self.step, self.setbacks = None, 1.0, 0

    def begin(self, start: Point) -> Point:
        """Takes where a scale or a new objective starts from, and returns it.

        Raises:
            OptionError: the losses or the gradient overflow.
        """
        if not start.evaluation.finite:
            field = _largest(start.evaluation.losses)
            raise OptionError(
                field,
                "the losses, or the squares of their gradient, are beyond the range of float32 where the run is to "
                f"start: set {field} or the weights of the layers lower",
            )
        self.best = start
        return start

    def propose(self, optimizer: Optimizer, point: Point) -> Tensor:
        """The optimiser's proposal at `point`: the parameters of a candidate."""
        evaluation = point.evaluation
        return optimizer.propose(point.parameters, evaluation.total, evaluation.gradient, self.step)

    def judge(self, optimizer: Optimizer, point: Point, candidate: Point) -> Point:
        """Where the iteration from `point` leads: to the candidate that was proposed, or back to the best state."""
        parameters, evaluation = point.parameters, point.evaluation
        best = point if self.best is None else self.best
        if _diverges(candidate.evaluation, best.evaluation):
            self._shrink()
            if self.has_left(parameters) or self.setbacks >= PATIENCE:
                optimizer.turn_back()
            return best
        optimizer.accept(parameters, evaluation.gradient, candidate.parameters, candidate.evaluation.gradient)
        self.step = min(1.0, 2 * self.step)
        if candidate.evaluation.total < best.evaluation.total:
            self.best, self.setbacks = candidate, 0
        return candidate

    def _shrink(self) -> None:
        self.undone += 1
        self.setbacks += 1
        self.step *= BACKOFF ** max(1, self.setbacks - PATIENCE + 1)


def _diverges(evaluation: Evaluation, best: Evaluation) -> bool:
    # Next to 0 a loss may be below it by its rounding.
    bound = best.total + (EXPLOSION - 1) * abs(best.total)
    return not evaluation.finite or evaluation.total > bound


def _largest(losses: Mapping[str, float]) -> str:
    """The weight behind the largest loss; one that is no number is larger than any."""
    name = max(losses, key=lambda name: (losses[name] != losses[name], losses[name]))
    return _WEIGHTS.get(name, "content_weight")
