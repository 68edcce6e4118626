"""What was recorded for one job serves the next of its shape, as if that had been launched operation by operation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Pixels, bytes_for, finish, quick, stepped
from replayed import Replayed
from torch import Tensor

from nst_engine import Engine, Session, Style, hardware, recording, weights
from nst_engine.recording import Loan, Pool, Recording, Recordings, Shelf

SMALL = {"size": 32, "iterations": 4}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "gram": {"style_statistic": "gram"},
    "bfloat16": {"precision": "bfloat16"},
    "raw": {"strength": None, "style_weight": 10.0, "padding": "zeros"},
    "fourier": {"parametrization": "fourier"},
    "rate": {"learning_rate": 0.7},
}


# What has recordings of its own, some of it in turns with what is launched.
OTHERS: dict[str, dict[str, Any]] = {
    "two scales": {"size": 64, "scales": 2, "iterations": 6},
    "diverging": {"learning_rate": 30.0, "iterations": 8},
    "adam": {"optimizer": "adam"},
    "network": {"parametrization": "network"},
    "sliced": {"style_statistic": "sliced"},
    "hole": {},
    "regions": {},
    "subject": {},
    "tiles": {"size": 40},
}


@dataclass
class Recorder:
    """An engine on a CPU that records as if on a GPU, and how often it has."""

    engine: Engine
    count: int = 0
    failing: bool = False


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, loaded: dict[str, Tensor]) -> Iterator[Recorder]:
    monkeypatch.setattr(weights, "load", lambda *_: loaded)
    # What is compiled for a CPU is no operation of torch's that could be replayed.
    monkeypatch.setattr(hardware, "has_gnu_threads", lambda: False)
    made = Pool.__init__

    def willing(pool: Pool, device: Any) -> None:
        made(pool, device)
        pool.records = True

    monkeypatch.setattr(Pool, "__init__", willing)
    recorder = Recorder(Engine("cpu", threads=1))

    def record(_: Pool, function: Any, inputs: Any) -> Any:
        if recorder.failing:
            raise torch.OutOfMemoryError("as if")
        recorder.count += 1
        graph = Replayed(function, inputs)
        return graph, graph.outputs

    monkeypatch.setattr(Pool, "record", record)
    return recorder


@pytest.fixture
def launched(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Calls something while nothing is recorded, replayed, or handed on."""

    def call(work: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(Recording, "__call__", lambda _, function, *inputs: function(*inputs))
            patched.setattr(Recordings, "call", lambda _, owners, make, inputs: make()(*inputs))
            patched.setattr(Shelf, "lend", lambda _, kind, make: Loan(make()))
            return work()

    return call


def start(engine: Engine, content: Pixels, style: Pixels, **changes: Any) -> Session:
    return engine.start(content, [Style(style)], quick(**{**SMALL, **changes}))


def outcome(engine: Engine, *sessions: Session) -> list[Any]:
    """What comes of sessions that are stepped together."""
    reports = []
    while running := [session for session in sessions if not session.finished]:
        reports += stepped(engine, running)
    return [reports, *(session.image().tobytes() for session in sessions)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_job_of_a_shape_records_nothing(recorder, launched, photo, texture, kind):
    engine = recorder.engine
    finish(engine, start(engine, photo[:, ::-1], texture, **KINDS[kind]))
    recorded = recorder.count
    assert recorded == 3  # an evaluation, and both halves of a step
    layers = {"content_layers": {"relu2_1": 2.0}, "style_layers": {"relu1_1": 0.5, "relu1_2": 2.0, "relu2_1": 1.0}}
    other = {**KINDS[kind], **layers, "tv_weight": 3e-3}

    def job() -> list[Any]:
        return outcome(engine, start(engine, photo, texture[::-1], **other))

    assert job() == launched(job)
    assert recorder.count == recorded


@pytest.mark.parametrize("kind", OTHERS)
def test_any_job_is_as_launched(recorder, launched, photo, texture, kind):
    """The second of its kind, and a pair of them; a recording must refer to nothing that has gone."""
    engine, options = recorder.engine, quick(**{**SMALL, **OTHERS[kind]})
    left = np.zeros(photo.shape[:2], np.uint8)
    left[:, :40] = 255

    def job(content: Pixels, style: Pixels) -> Session:
        styles = [Style(style, region=left if kind == "regions" else None)]
        masks = {kind: left} if kind in ("hole", "subject") else {}
        budget = bytes_for(options, 900) if kind == "tiles" else None
        return engine.start(content, styles, options, **masks, memory_budget=budget)

    def jobs() -> list[Any]:
        alone = outcome(engine, job(photo, texture))
        return [alone, outcome(engine, job(photo[:, ::-1], texture), job(photo, texture[::-1]))]

    finish(engine, job(photo, texture[:, ::-1]))
    assert jobs() == launched(jobs)


def test_batches_go_on_with_what_others_have_left(recorder, launched, photo, texture):
    engine = recorder.engine

    def batch(*strengths: float) -> list[Any]:
        return outcome(engine, *(start(engine, photo, texture, strength=strength) for strength in strengths))

    batch(0.4, 0.5)
    recorded = recorder.count
    assert batch(0.7, 0.2) == launched(lambda: batch(0.7, 0.2))
    assert recorder.count == recorded


def test_one_leaves_another_comes_and_memory_is_released(recorder, launched, photo, texture):
    engine = recorder.engine

    def turns() -> list[Any]:
        staying, leaving = (start(engine, photo, texture, strength=strength) for strength in (0.3, 0.6))
        reports = [stepped(engine, [staying, leaving]) for _ in range(2)]
        del leaving
        coming = start(engine, photo[:, ::-1], texture[::-1])
        reports += [stepped(engine, [coming, staying]), stepped(engine, [coming])]
        engine.release_memory()
        return [reports, *outcome(engine, staying, coming)]

    assert turns() == launched(turns)


def test_a_steered_job_goes_on_with_its_own(recorder, launched, photo, texture):
    engine = recorder.engine

    def steered() -> list[Any]:
        session = start(engine, photo, texture)
        stepped(engine, [session])
        stepped(engine, [session])
        session.update(strength=0.9, tv_weight=0.01)
        return outcome(engine, session)

    assert steered() == launched(steered)
    assert recorder.count == 3


def test_jobs_that_take_turns_have_one_each(recorder, launched, photo, texture):
    engine = recorder.engine

    def turns() -> list[Any]:
        first, second = start(engine, photo, texture), start(engine, photo, texture[::-1])
        reports = [stepped(engine, [session]) for _ in range(4) for session in (first, second)]
        return [reports, first.image().tobytes(), second.image().tobytes()]

    assert turns() == launched(turns)
    assert recorder.count == 6


@pytest.mark.parametrize(
    "changes",
    [{"size": 48}, {"pooling": "average"}, {"style_layers": {"relu1_1": 1.0}}, {"style_statistic": "moments"}],
)
def test_another_shape_is_recorded(recorder, launched, photo, texture, changes):
    engine = recorder.engine
    finish(engine, start(engine, photo, texture, style_statistic="gram"))
    recorded = recorder.count

    def job() -> list[Any]:
        return outcome(engine, start(engine, photo, texture, **{"style_statistic": "gram", **changes}))

    assert job() == launched(job)
    assert recorder.count > recorded


def test_a_resumed_job_goes_on_with_what_others_have_left(recorder, launched, photo, texture):
    engine, styles = recorder.engine, [Style(texture)]
    uncut = start(engine, photo, texture)
    for _ in range(3):
        stepped(engine, [uncut])
    state = uncut.state_dict()
    del uncut

    def resumed() -> list[Any]:
        return outcome(engine, engine.resume(state, photo, styles))

    recorded = recorder.count
    assert resumed() == launched(resumed)
    assert recorder.count == recorded


def test_a_history_of_another_size_takes_the_place_of_the_first(recorder, launched, photo, texture):
    engine, styles = recorder.engine, [Style(texture)]
    cut = start(engine, photo, texture, history_size=3)
    for _ in range(3):
        stepped(engine, [cut])
    state = cut.state_dict()
    shelf = cut._resources.backbone.optimizer_shelf
    del cut
    more = replace(state, options=replace(state.options, history_size=5))  # as where the budget has grown

    def resumed() -> Session:
        return engine.resume(more, photo, styles)

    held = len(shelf)
    session = resumed()
    assert len(shelf) == held  # one was taken, and that of five was left again
    assert outcome(engine, session) == launched(lambda: outcome(engine, resumed()))


def test_what_could_not_be_recorded_is_tried_again_by_the_next_job(recorder, photo, texture, monkeypatch):
    monkeypatch.setattr(recording.log, "disabled", True)  # pytest would keep tracebacks, and the job in them
    engine, recorder.failing = recorder.engine, True
    finish(engine, start(engine, photo, texture))
    recorder.failing = False
    finish(engine, start(engine, photo, texture))
    assert recorder.count == 3


def test_what_is_left_goes_when_memory_is_released(recorder, photo, texture):
    engine = recorder.engine
    session = start(engine, photo, texture)
    backbone = session._resources.backbone
    finish(engine, session)
    del session
    assert (len(backbone.recordings), len(backbone.optimizer_shelf)) == (1, 1)
    engine.release_memory()
    assert (len(backbone.recordings), len(backbone.optimizer_shelf)) == (0, 0)
