"""Iterations of several sessions side by side, their pictures evaluated together."""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from nst_engine.backbone import Backbone
from nst_engine.evaluation import Evaluation, evaluated
from nst_engine.objective import Objective
from nst_engine.report import StepReport

Member = TypeVar("Member")


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


class Batches:
    """How many sessions go together: as many as fit into memory, by their maps and by what has been seen.

    Args:
        memory_budget: bytes for the maps of one batch.
        limit: how many go together at most; None is no other limit.
        pixels: how many all pictures of a batch of several have at most; None is any number.
    """

    def __init__(self, memory_budget: int, limit: int | None, pixels: int | None) -> None:
        self._memory_budget = memory_budget
        self._limit = limit
        self._pixels = pixels
        self._seen: dict[BatchKey, int] = {}

    def of(self, keyed: Iterable[tuple[Member, BatchKey | None]]) -> list[tuple[BatchKey | None, list[Member]]]:
        """Those of equal keys, in batches of one at least, each with its key; None goes alone."""
        groups: dict[BatchKey | None, list[Member]] = {}
        for member, key in keyed:
            groups.setdefault(key, []).append(member)
        found = []
        for shared, members in groups.items():
            size = 1 if shared is None else self._size(shared)
            found += [(shared, members[first : first + size]) for first in range(0, len(members), size)]
        return found

    def was_too_large(self, key: BatchKey | None, size: int) -> None:
        """Has those with this key go in half of such batches from now on."""
        if key is not None:
            self._seen[key] = size // 2

    def forget(self) -> None:
        """Has them tried again in batches that were too large: there is more memory now."""
        self._seen.clear()

    def _size(self, key: BatchKey) -> int:
        bounds = [self._memory_budget // key.map_bytes]
        if self._pixels is not None:
            bounds.append(self._pixels // (key.height * key.width))
        most = max(1, min(bounds))
        return min(most, self._limit or most, self._seen.get(key, most))


log = logging.getLogger(__name__)

# One iteration of a session: it asks for evaluations and is sent them.
Iteration = Generator[Request, Evaluation, StepReport]
Outcome = StepReport | Exception


def advance(iterations: Sequence[Iteration], *, too_large: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Runs iterations to their ends, and tells of each its report or what it raised.

    Whatever several of them ask for at a time is evaluated as one batch, so their sessions must have one
    `BatchKey`. An iteration that asks again goes round again with those that do. `too_large` is called where
    pictures could be evaluated one by one and not together.
    """
    outcomes: dict[int, Outcome] = {}
    answers: dict[int, Evaluation | Exception | None] = dict.fromkeys(range(len(iterations)))
    while answers:
        asked = {index: _answered(iterations[index], answer) for index, answer in answers.items()}
        outcomes |= {index: item for index, item in asked.items() if not isinstance(item, Request)}
        requests = {index: item for index, item in asked.items() if isinstance(item, Request)}
        answers = dict(zip(requests, _evaluated(list(requests.values()), too_large), strict=True))
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


def _evaluated(requests: Sequence[Request], too_large: Callable[[], None]) -> list[Evaluation | Exception]:
    """The evaluation of each, or the error that it alone causes."""
    if len(requests) < 2:
        return [_evaluated_alone(request) for request in requests]
    try:
        return [*evaluated([each.objective for each in requests], [each.image for each in requests])]
    except Exception:
        # Whose fault it is, and whether there is memory for one at a time, shows below.
        log.warning("%d pictures could not be evaluated together", len(requests), exc_info=True)
        requests[0].objective.recordings.clear()
    found = [_evaluated_alone(request) for request in requests]
    if not any(isinstance(one, Exception) for one in found):
        too_large()
    return found


def _evaluated_alone(request: Request) -> Evaluation | Exception:
    try:
        return request.objective.evaluate(request.image)
    except Exception as error:
        return error
