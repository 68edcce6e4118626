"""Iterations of several sessions side by side, their pictures evaluated together."""

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from nst_engine.backbone import Backbone
from nst_engine.evaluation import Evaluation, evaluated
from nst_engine.objective import Objective
from nst_engine.report import StepReport


@dataclass(frozen=True)
class BatchKey:
    """What sessions must have in common for their pictures to be evaluated together; the size is that of windows."""

    backbone: Backbone
    taps: tuple[str, ...]
    pooling: str
    height: int
    width: int

    @property
    def map_bytes(self) -> int:
        """Bytes of the maps that the evaluation of one picture keeps."""
        return int(self.height * self.width * self.backbone.bytes_per_pixel(self.taps, self.pooling))


@dataclass(frozen=True)
class Request:
    """A picture, (1, 3, H, W), that a session wants evaluated by an objective."""

    objective: Objective
    image: Tensor


def batches(keys: Sequence[BatchKey | None], memory_budget: int, limit: int | None) -> list[list[int]]:
    """The places of equal keys in batches whose maps fit into the budget in bytes together; None goes alone.

    A batch has `limit` places at most, if there is one, and one at least.
    """
    groups: dict[BatchKey | int, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(index if key is None else key, []).append(index)
    found = []
    for shared, places in groups.items():
        fitting = 1 if isinstance(shared, int) else max(1, memory_budget // shared.map_bytes)
        size = fitting if limit is None else min(fitting, limit)
        found += [places[first : first + size] for first in range(0, len(places), size)]
    return found


log = logging.getLogger(__name__)

# One iteration of a session: it asks for evaluations and is sent them.
Iteration = Generator[Request, Evaluation, StepReport]
Outcome = StepReport | Exception


def advance(iterations: Sequence[Iteration]) -> list[Outcome]:
    """Runs iterations to their ends, and tells of each its report or what it raised.

    Whatever several of them ask for at a time is evaluated as one batch, so their sessions must have one
    `BatchKey`. An iteration that asks again goes round again with those that do.
    """
    outcomes: dict[int, Outcome] = {}
    answers: dict[int, Evaluation | Exception | None] = dict.fromkeys(range(len(iterations)))
    while answers:
        asked = {index: _answered(iterations[index], answer) for index, answer in answers.items()}
        outcomes |= {index: item for index, item in asked.items() if not isinstance(item, Request)}
        requests = {index: item for index, item in asked.items() if isinstance(item, Request)}
        answers = dict(zip(requests, _evaluated(list(requests.values())), strict=True))
    return [outcomes[index] for index in range(len(iterations))]


def _answered(iteration: Iteration, answer: Evaluation | Exception | None) -> Request | Outcome:
    """What the iteration asks for next, or its end; None lets it begin."""
    try:
        if answer is None:
            return next(iteration)
        return iteration.throw(answer) if isinstance(answer, Exception) else iteration.send(answer)
    except StopIteration as end:
        report: StepReport = end.value
        return report
    except Exception as error:
        return error


def _evaluated(requests: Sequence[Request]) -> list[Evaluation | Exception]:
    """The evaluation of each, or the error that it alone causes."""
    if len(requests) > 1:
        try:
            return [*evaluated([each.objective for each in requests], [each.image for each in requests])]
        except Exception:
            # Whose fault it is, and whether there is memory for one at a time, shows below.
            log.warning("%d pictures could not be evaluated together", len(requests), exc_info=True)
            requests[0].objective.recordings.clear()
    return [_evaluated_alone(request) for request in requests]


def _evaluated_alone(request: Request) -> Evaluation | Exception:
    try:
        return request.objective.evaluate(request.image)
    except Exception as error:
        return error
