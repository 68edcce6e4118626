"""Sessions of one shape advance as one batch, and each as if it were alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from engine_runs import OTHER_PRECISIONS, Pixels, bytes_for, finish, noisy, quick, stepped, steps
from reference import relative_error
from torch import Tensor

from nst_engine import Engine, OptionError, Session, StepReport, Style, batching, checkpoint
from nst_engine.backbone import Backbone
from nst_engine.batching import Batches, Request
from nst_engine.evaluation import Evaluation, Stack, evaluated, stackable
from nst_engine.objective import Objective

ROWS, COLUMNS = 24, 64
# What sessions of one batch may differ in: everything but their shape, network and taps.
MIXED: dict[str, dict[str, Any]] = {
    "moments": {"iterations": 5},
    "gram, weak": {"style_statistic": "gram", "strength": 0.2, "iterations": 3},
    "sliced, adam": {"style_statistic": "sliced", "optimizer": "adam", "iterations": 6},
    "raw": {"strength": None, "content_weight": 5.0, "style_weight": 100.0, "padding": "replicate"},
    "fourier": {"parametrization": "fourier", "optimizer": "adagrad"},
    "network": {"parametrization": "network", "iterations": 4},
    "diverging": {"optimizer": "adam", "learning_rate": 1000.0},
    "two scales": {"size": 128, "scales": 2, "iterations": 6},
    "protected": {},
    "region": {},
    "hole": {},
}


def left() -> Pixels:
    """A mask of the left half, with a soft edge."""
    return np.tile(np.linspace(400, -145, COLUMNS).clip(0, 255).astype(np.uint8), (ROWS, 1))


def start(engine: Engine, photo: Pixels, texture: Pixels, job: str, **changes: Any) -> Session:
    given: dict[str, Any] = {}
    style = Style(texture)
    if job == "protected":
        given["subject"] = left()
    elif job == "hole":
        given["hole"] = left()
    elif job == "region":
        style = Style(texture, region=left(), source_region=left())
    return engine.start(photo[:ROWS, :COLUMNS], [style], quick(**{**MIXED[job], **changes}), **given)


@pytest.fixture(scope="module")
def alone(engine: Engine, photo: Pixels, texture: Pixels) -> dict[str, Session]:
    """Every job, run by itself."""
    runs = {job: start(engine, photo, texture, job) for job in MIXED}
    for session in runs.values():
        finish(engine, session)
    return runs


def identical(one: Session, other: Session) -> bool:
    """Whether all that is kept of them is, and what they show."""
    first, second = one.state_dict(), other.state_dict()
    return (
        replace(first, tensors={}) == replace(second, tensors={})
        and first.tensors.keys() == second.tensors.keys()
        and all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
        and np.array_equal(one.image(), other.image())
    )


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what goes through the network meanwhile."""
    shapes: list[tuple[int, ...]] = []
    features = Backbone.features

    def noting(backbone: Backbone, images: Tensor, *given: Any) -> dict[str, Tensor]:
        shapes.append(tuple(images.shape))
        return features(backbone, images, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Backbone, "features", noting)
        yield shapes


def test_sessions_of_one_shape_go_through_the_network_together(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    """Twice at first, for the start and the first proposal, then once an iteration; another shape goes by itself."""
    sessions = [start(engine, photo, texture, job) for job in ("moments", "fourier", "protected")]
    sessions.insert(1, start(engine, photo, texture, "raw", size=48))
    with counted(monkeypatch) as shapes:
        widths = [[report.width for report in stepped(engine, sessions)] for _ in range(2)]
    one, three = (1, 3, 18, 48), (3, 3, ROWS, COLUMNS)
    assert sorted(shapes) == [one] * 3 + [three] * 3
    assert widths == [[64, 48, 64, 64]] * 2


def test_together_is_alone(engine: Engine, photo: Pixels, texture: Pixels, alone: dict[str, Session]):
    """To the bit on a CPU: whoever else runs, whenever they join and leave, and if cut and resumed on the way."""
    waiting, running = list(MIXED), dict[str, Session]()
    while waiting or running:
        for job in waiting[:4]:
            waiting.remove(job)
            running[job] = start(engine, photo, texture, job)
        if len(running) > 5:
            cut = list(running)[2]
            state = checkpoint.loads(checkpoint.dumps(running[cut].state_dict()))
            if cut not in ("protected", "hole", "region"):
                running[cut] = engine.resume(state, photo[:ROWS, :COLUMNS], [Style(texture)])
        stepped(engine, list(running.values()))
        for job, session in list(running.items()):
            if session.finished:
                assert identical(running.pop(job), alone[job]), job


def test_a_checkpoint_of_a_batch_goes_on_alone(
    engine: Engine, photo: Pixels, texture: Pixels, alone: dict[str, Session]
):
    batch = [start(engine, photo, texture, job) for job in ("moments", "fourier", "raw")]
    for _ in range(2):
        stepped(engine, batch)
    state = checkpoint.loads(checkpoint.dumps(batch[0].state_dict()))
    resumed = engine.resume(state, photo[:ROWS, :COLUMNS], [Style(texture)])
    finish(engine, resumed)
    assert identical(resumed, alone["moments"])


def test_steering_one_leaves_the_others_as_they_are(
    engine: Engine, photo: Pixels, texture: Pixels, alone: dict[str, Session]
):
    steered, other = (start(engine, photo, texture, "moments") for _ in range(2))
    stepped(engine, [steered, other])
    steered.update(strength=0.9)
    while not other.finished:
        stepped(engine, [steered, other])
    assert identical(other, alone["moments"])
    single = start(engine, photo, texture, "moments")
    steps(engine, single, 1)
    single.update(strength=0.9)
    finish(engine, single)
    assert identical(steered, single)


def test_one_that_cannot_begin_leaves_the_others_as_they_are(
    engine: Engine, photo: Pixels, texture: Pixels, alone: dict[str, Session]
):
    layers = {"relu1_1": 1e12, "relu1_2": 1e12, "relu2_1": 1e12}
    heavy = start(engine, photo, texture, "raw", style_layers=layers, style_weight=1e12)
    good = start(engine, photo, texture, "moments")
    done = start(engine, photo, texture, "gram, weak", iterations=1)
    stepped(engine, [done])
    finished, refused, report = engine.step([done, heavy, good])
    assert isinstance(finished, RuntimeError)
    assert isinstance(refused, OptionError)
    assert refused.field == "style_weight"
    assert isinstance(report, StepReport)
    finish(engine, good)
    assert identical(good, alone["moments"])


def test_one_whose_evaluation_fails_leaves_the_others_as_they_are(
    engine: Engine, photo: Pixels, texture: Pixels, alone: dict[str, Session], monkeypatch: pytest.MonkeyPatch
):
    sessions = [start(engine, photo, texture, job) for job in ("moments", "raw", "fourier")]
    stepped(engine, sessions)
    terms, broken = Objective.terms, sessions[1]._stage.objective

    def failing(objective: Objective, *given: Any) -> dict[str, Tensor]:
        if objective is broken:
            raise ArithmeticError("as if")
        return terms(objective, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Objective, "terms", failing)
        first, second, third = engine.step(sessions)
    assert isinstance(first, StepReport)
    assert isinstance(second, ArithmeticError)
    assert isinstance(third, StepReport)
    for session, job in ((sessions[0], "moments"), (sessions[2], "fourier")):
        finish(engine, session)
        assert identical(session, alone[job])


def test_a_batch_that_does_not_fit_goes_one_by_one_and_then_in_halves(
    engine: Engine, photo: Pixels, texture: Pixels, alone: dict[str, Session], monkeypatch: pytest.MonkeyPatch
):
    features, tried = Backbone.features, []

    def scarce(backbone: Backbone, images: Tensor, *given: Any) -> dict[str, Tensor]:
        tried.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("as if")
        return features(backbone, images, *given)

    sessions = [start(engine, photo, texture, "gram, weak") for _ in range(5)]
    monkeypatch.setattr(Backbone, "features", scarce)
    for release, expected in ((False, [5, 1, 1, 1, 1, 1]), (False, [2, 2, 1]), (True, [5, 1, 1, 1, 1, 1])):
        if release:
            engine.release_memory()
        tried.clear()
        stepped(engine, sessions)
        assert tried[: len(expected)] == expected
    while not sessions[0].finished:
        stepped(engine, sessions)
    engine.release_memory()
    assert all(identical(session, alone["gram, weak"]) for session in sessions)


def test_a_batch_that_one_of_it_fails_alone_is_not_too_large(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    sessions = [start(engine, photo, texture, job) for job in ("moments", "raw", "gram, weak")]
    stepped(engine, sessions)
    monkeypatch.setattr(sessions[1]._stage.objective, "terms", Mock(side_effect=ArithmeticError("as if")))
    engine.step(sessions)
    with counted(monkeypatch) as shapes:
        stepped(engine, [sessions[0], sessions[2]])
    assert shapes[0][0] == 2


def test_a_session_is_stepped_once_at_a_time(engine: Engine, photo: Pixels, texture: Pixels):
    session = start(engine, photo, texture, "moments")
    with pytest.raises(ValueError, match="twice"):
        engine.step([session, session])
    assert session.iteration == 0


def test_a_batch_is_as_large_as_memory_and_the_limit_let_it_be(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    budget = bytes_for(quick(), 2 * ROWS * COLUMNS)
    for given, largest in (({"memory_budget": budget}, 2), ({"batch_limit": 3}, 3), ({"batch_limit": 1}, 1)):
        bounded = Engine("cpu", threads=1, **given)
        bounded._backbones = engine._backbones
        sessions = [start(bounded, photo, texture, "moments") for _ in range(5)]
        stepped(bounded, sessions)
        with counted(monkeypatch) as shapes:
            stepped(bounded, sessions)
        assert [shape[0] for shape in shapes] == [*[largest] * (5 // largest), *[5 % largest] * (5 % largest > 0)]
    with pytest.raises(ValueError, match="batch_limit"):
        Engine("cpu", batch_limit=0)


@pytest.mark.parametrize(
    ("pixels", "sizes"), [(3 * ROWS * COLUMNS, [3, 2]), (3 * ROWS * COLUMNS - 1, [2, 2, 1]), (1, [1] * 5)]
)
def test_a_batch_has_so_many_pixels_at_most(
    engine: Engine, photo: Pixels, texture: Pixels, pixels: int, sizes: list[int]
):
    """As on a GPU."""
    key = start(engine, photo, texture, "moments").batch_key
    batches = Batches(memory_budget=2**40, limit=None, pixels=pixels).of([(number, key) for number in range(5)])
    assert [len(batch) for _, batch in batches] == sizes


def test_the_same_sessions_go_together_in_whatever_order(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    """On a GPU other companions would be another recording."""
    pairs = Engine("cpu", threads=1, batch_limit=2)
    pairs._backbones = engine._backbones
    sessions = [start(pairs, photo, texture, "moments") for _ in range(4)]
    together: list[list[int]] = []

    def noted(objectives: Sequence[Objective], images: Sequence[Tensor]) -> list[Evaluation]:
        together.append([objective.revision for objective in objectives])
        return evaluated(objectives, images)

    monkeypatch.setattr(batching, "evaluated", noted)
    stepped(pairs, sessions)
    companions = {frozenset(revisions) for revisions in together}
    assert len(companions) == 2
    for order in ((2, 0, 3, 1), (3, 2, 1, 0)):
        reports = stepped(pairs, [sessions[place] for place in order])
        assert [report.iteration for report in reports] == [sessions[place].iteration for place in order]
    assert {frozenset(revisions) for revisions in together} == companions


def test_what_goes_together_has_one_key(engine: Engine, photo: Pixels, texture: Pixels):
    def key(job: str = "moments", **changes: Any) -> object:
        return start(engine, photo, texture, job, **changes).batch_key

    assert key() is not None
    assert {key(job, size=64, scales=1) for job in MIXED if job != "hole"} == {key()}
    others = [{"size": 48}, {"pooling": "average"}, {"padding": "zeros"}, {"content_layers": {"relu2_2": 1.0}}]
    others += OTHER_PRECISIONS
    assert len({key(), *(key(**changes) for changes in others)}) == 1 + len(others)
    growing = start(engine, photo, texture, "two scales")
    assert growing.batch_key == key()
    steps(engine, growing, 3)
    assert growing.batch_key == key(size=128)
    finish(engine, growing)
    assert growing.batch_key is None


def test_what_is_worked_in_tiles_goes_alone(engine: Engine, photo: Pixels, texture: Pixels, alone: dict[str, Session]):
    options = quick(size=128, iterations=1)
    small = Engine("cpu", threads=1, memory_budget=bytes_for(options, 64 * 80))
    small._backbones = engine._backbones
    tiled = [small.start(photo[:ROWS, :COLUMNS], [Style(texture)], options) for _ in range(2)]
    whole = start(small, photo, texture, "moments")
    assert [session.batch_key is None for session in (*tiled, whole)] == [True, True, False]
    first, second, _ = stepped(small, [*tiled, whole])
    assert first == second
    finish(small, whole)
    assert identical(whole, alone["moments"])


def requests(engine: Engine, photo: Pixels, texture: Pixels, jobs: list[str], **changes: Any) -> list[Request]:
    """Jobs at the content under noise, each under another."""
    found = []
    for seed, job in enumerate(jobs):
        objective = start(engine, photo, texture, job, iterations=2, **changes)._stage.objective
        found.append(Request(objective, noisy(photo[:ROWS, :COLUMNS], seed=seed)))
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_of_several_at_once_are_those_of_each(engine: Engine, photo: Pixels, texture: Pixels, precision: str):
    """What a GPU is given; here only its rounding differs. A region, sliced distances and a subject are none of it."""
    jobs = ["moments", "gram, weak", "raw", "region", "moments", "sliced, adam", "protected"]
    given = requests(engine, photo, texture, jobs, precision=precision)
    images = torch.cat([request.image for request in given])
    objectives = [request.objective for request in given]
    maps = objectives[0].features(images)
    groups = stackable(objectives)
    assert sorted(groups) == [[0, 4], [1, 2]]
    for stack in (Stack(objectives, places) for places in groups):
        for place, losses in zip(stack.places, stack(images, maps).unbind(1), strict=True):
            request = given[place]
            terms = request.objective.terms(request.image, request.objective.features(request.image))
            for name, value, own in zip(request.objective.loss_names, losses, terms.values(), strict=True):
                assert value.item() == pytest.approx(own.item(), rel=1e-3 if name == "style" else 1e-5)


def test_gradients_of_several_at_once_are_those_of_each(engine: Engine, photo: Pixels, texture: Pixels):
    for job in ("gram, weak", "moments"):
        given = requests(engine, photo, texture, [job] * 3)
        objectives = [request.objective for request in given]
        images = torch.cat([request.image for request in given]).requires_grad_(True)
        stack = Stack(objectives, range(3))
        found = stack(images, objectives[0].features(images))
        (style,) = torch.autograd.grad(found[1].sum(), images, retain_graph=True)
        (together,) = torch.autograd.grad(found.sum(), images)
        for index, request in enumerate(given):
            image = request.image.requires_grad_(True)
            terms = request.objective.terms(image, request.objective.features(image))
            (single,) = torch.autograd.grad(terms["style"], image)
            assert relative_error(style[index : index + 1], single) < 1e-3
            whole = request.objective.evaluate(request.image).gradient
            assert relative_error(together[index : index + 1], whole) < 1e-3
