"""What a GPU does again and again is recorded, and what is recorded is what was launched one by one."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Pixels, quick
from torch import Tensor

from nst_engine import Engine, Session, StepReport, Style
from nst_engine import recording as recording_module
from nst_engine.recording import Recordings

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


class Owner:
    """Something that a function belongs to."""


def doubled(tensor: Tensor) -> Sequence[Tensor]:
    return [2 * tensor]


def call(recordings: Recordings, key: object, owner: Owner, made: list[object]) -> Tensor:
    """The result, with a note of what had to be made for it."""

    def make() -> Any:
        made.append(key)
        return doubled

    (result,) = recordings.call(key, [owner], make, [torch.ones(1)])
    return result


def test_a_function_is_made_once_as_long_as_its_owner_lives():
    recordings, made, owner = Recordings(2), list[object](), Owner()
    assert [call(recordings, "a", owner, made).item() for _ in range(3)] == [2.0] * 3
    assert made == ["a"]
    del owner
    call(recordings, "b", Owner(), made)
    assert len(recordings) == 1
    assert made == ["a", "b"]


def test_the_least_recently_used_makes_room():
    recordings, made, owner = Recordings(2), list[object](), Owner()
    for key in ("a", "b", "a", "c", "a", "b"):
        call(recordings, key, owner, made)
        assert len(recordings) <= 2
    assert made == ["a", "b", "c", "b"]
    recordings.clear()
    assert len(recordings) == 0


@pytest.fixture(scope="module")
def gpu() -> Iterator[Engine]:
    engine = Engine("cuda")
    yield engine
    engine.release_memory()


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "gram": {"style_statistic": "gram"},
    "sliced": {"style_statistic": "sliced"},
    "fourier": {"parametrization": "fourier"},
    "adam": {"optimizer": "adam"},
    "diverging": {"learning_rate": 20.0},
    "two scales": {"size": 128, "scales": 2},
}


def start(engine: Engine, photo: Pixels, texture: Pixels, **changes: Any) -> Session:
    return engine.start(photo, [Style(texture)], quick(**{"iterations": 12, **changes}))


def stepped(engine: Engine, sessions: Sequence[Session]) -> list[StepReport]:
    reports = []
    for outcome in engine.step(sessions):
        assert isinstance(outcome, StepReport), outcome
        reports.append(outcome)
    return reports


def finish(engine: Engine, session: Session) -> list[float]:
    """The losses on the way."""
    losses = []
    while not session.finished:
        (report,) = stepped(engine, [session])
        losses.append(report.total_loss)
    return losses


@needs_gpu
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_recorded_run_is_the_launched_one(
    gpu: Engine, photo: Pixels, texture: Pixels, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    recorded = start(gpu, photo, texture, **OPTIONS[kind])
    losses = finish(gpu, recorded)
    assert not caplog.records
    monkeypatch.setattr(recording_module, "WARM_UP_CALLS", float("inf"))
    launched = start(gpu, photo, texture, **OPTIONS[kind])
    assert finish(gpu, launched) == losses
    assert np.array_equal(recorded.image(), launched.image())


@needs_gpu
def test_a_recorded_batch_is_about_its_sessions_alone(gpu: Engine, photo: Pixels, texture: Pixels, caplog: Any):
    """Of different kinds, of which some are computed at once; with one that is steered and one that leaves early."""
    kinds = [{}, {"strength": 0.8}, OPTIONS["gram"], OPTIONS["sliced"], {"iterations": 4}]
    together = [start(gpu, photo, texture, **kind) for kind in kinds]
    alone = [start(gpu, photo, texture, **kind) for kind in kinds]
    for turn in range(8):
        if turn == 5:
            together[0].update(strength=0.2)
            alone[0].update(strength=0.2)
        running = [index for index, session in enumerate(together) if not session.finished]
        reports = stepped(gpu, [together[index] for index in running])
        for index, report in zip(running, reports, strict=True):
            (single,) = stepped(gpu, [alone[index]])
            assert report.total_loss == pytest.approx(single.total_loss, rel=2e-2), (turn, index)
    assert not caplog.records


@needs_gpu
def test_what_is_recorded_goes_with_its_sessions(gpu: Engine, photo: Pixels, texture: Pixels):
    gpu.release_memory()
    before = torch.cuda.memory_reserved()
    sessions = [start(gpu, photo, texture) for _ in range(3)]
    for session in sessions:
        finish(gpu, session)
    assert torch.cuda.memory_reserved() > before
    del session
    sessions.clear()
    gpu.release_memory()
    assert torch.cuda.memory_reserved() <= before
