"""What a GPU does again and again is recorded, and what is recorded is what was launched one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from engine_runs import Pixels, finish, quick, step, stepped
from torch import Tensor

from nst_engine import Engine, Session, Style
from nst_engine.recording import Pool, Recording, Recordings, Shelf

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


class Owner:
    """Something that a function belongs to."""

    def __init__(self, revision: int) -> None:
        self.revision = revision


class Doubled:
    """A function whose recording is of no use to another."""

    shape = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        return [2 * tensor for tensor in inputs]

    def take_over(self, other: object) -> None:
        raise AssertionError(other)


def call(recordings: Recordings, owner: Owner, made: list[int]) -> float:
    """The result, with a note of what had to be made for it."""

    def make() -> Doubled:
        made.append(owner.revision)
        return Doubled()

    (result,) = recordings.call([owner], make, [torch.ones(1)])
    return float(result)


@pytest.fixture
def recordings() -> Recordings:
    return Recordings(torch.device("cpu"), limit=2)


def test_a_function_is_made_once_as_long_as_its_owner_lives(recordings: Recordings):
    made, owner = list[int](), Owner(1)
    assert [call(recordings, owner, made) for _ in range(3)] == [2.0] * 3
    assert made == [1]
    del owner
    call(recordings, Owner(2), made)
    assert len(recordings) == 1
    assert made == [1, 2]


def test_a_function_is_made_anew_when_its_owner_has_changed(recordings: Recordings):
    made, owner = list[int](), Owner(1)
    call(recordings, owner, made)
    owner.revision = 2
    call(recordings, owner, made)
    assert made == [1, 2]
    assert len(recordings) == 1


def test_the_least_recently_used_makes_room(recordings: Recordings):
    made, owners = list[int](), [Owner(revision) for revision in range(3)]
    for index in (0, 1, 0, 2, 0, 1):
        call(recordings, owners[index], made)
        assert len(recordings) <= 2
    assert made == [0, 1, 2, 1]
    recordings.clear()
    assert len(recordings) == 0


@dataclass(eq=False)
class Heavy:
    """Something of so many bytes."""

    nbytes: int
    failed: bool = False


def test_what_is_left_is_lent_again_and_the_oldest_make_room():
    shelf = Shelf(torch.device("cpu"), limit=10)
    shelf.pool.records = True
    loans = {kind: shelf.lend(kind, lambda: Heavy(4)) for kind in "abc"}
    lent = {kind: loan.thing for kind, loan in loans.items()}
    assert len(shelf) == 0
    for kind in "abc":
        del loans[kind]
    assert len(shelf) == 2
    assert shelf.lend("c", lambda: Heavy(4)).thing is lent["c"]
    assert shelf.lend("a", lambda: Heavy(4)).thing is not lent["a"]


def test_memory_that_torch_keeps_makes_room_for_a_recording(monkeypatch: pytest.MonkeyPatch):
    cuda = MagicMock()
    monkeypatch.setattr(torch, "cuda", cuda)

    def large(tensor: Tensor) -> Sequence[Tensor]:
        if not cuda.empty_cache.called:
            raise torch.OutOfMemoryError("as if")
        return [tensor]

    one = torch.ones(1)
    assert Pool(torch.device("cpu")).record(large, [one])[1] == [one]


def test_engines_share_no_memory_of_recordings(photo: Pixels, texture: Pixels):
    """Each may be in a thread of its own, and all that it records is replayed there."""
    pools = []
    for _ in range(2):
        session = start(Engine("cpu", threads=1), photo, texture)
        pools.append(session._resources.backbone.optimizer_shelf.pool)
        pairs = session._stage._optimizer._pairs
        assert pairs._proposing._pool is pairs._learning._pool is pools[-1]
    assert pools[0] is not pools[1]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Engine]:
    engine = Engine("cuda")
    yield engine
    engine.release_memory()


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "gram": {"style_statistic": "gram"},
    "sliced": {"style_statistic": "sliced"},
    "sliced, a hole": {"style_statistic": "sliced", "hole": True},
    "hole": {"hole": True},
    "fourier": {"parametrization": "fourier"},
    "adam": {"optimizer": "adam"},
    "diverging": {"learning_rate": 20.0},
    "two scales": {"size": 128, "scales": 2},
}


def start(engine: Engine, photo: Pixels, texture: Pixels, *, hole: bool = False, **changes: Any) -> Session:
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[:, : mask.shape[1] // 2] = 255
    options = quick(**{"iterations": 12, **changes})
    return engine.start(photo, [Style(texture)], options, hole=mask if hole else None)


@needs_gpu
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_recorded_run_is_the_launched_one(
    gpu: Engine, photo: Pixels, texture: Pixels, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    options = {"precision": "auto", **OPTIONS[kind]}  # in float32 cuDNN adds up some gradients in any order
    recorded = start(gpu, photo, texture, **options)
    reports = finish(gpu, recorded)
    assert not caplog.records
    monkeypatch.setattr(Recording, "_record", lambda *_: None)
    launched = start(gpu, photo, texture, **options)
    assert finish(gpu, launched) == reports
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
            single = step(gpu, alone[index])
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


@needs_gpu
def test_what_cannot_be_recorded_is_called_as_it_is(gpu: Engine, caplog: Any):
    """And does no harm to what can."""
    pool = Pool(gpu.device)
    waiting, good = Recording(pool), Recording(pool)

    def looks(tensor: Tensor) -> Sequence[Tensor]:
        return [tensor * tensor.sum().item()]

    one = torch.ones(3, device=gpu.device)
    for number in range(1, 5):
        assert waiting(looks, number * one)[0].tolist() == [3.0 * number**2] * 3
        assert good(lambda tensor: [tensor + 1], number * one)[0].tolist() == [number + 1.0] * 3
    assert len(caplog.records) == 1
