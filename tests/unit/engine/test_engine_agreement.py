"""One job, run in different ways, ends in the same picture."""

from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Pixels, bytes_for, finish, quick, steps
from torch import Tensor

from nst_engine import Engine, Session, Style, StylizeOptions, checkpoint
from nst_engine.tiled import TiledObjective

ITERATIONS, BOUNDARY = 6, 3
# Places to cut a run of two scales: before the first iteration and after it, within a scale,
# between two, before the last iteration.
CUTS = {"start": 0, "first": 1, "mid-scale": 2, "boundary": BOUNDARY, "after it": 4, "last but one": 5}
JOBS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gram, raw": {"strength": None, "content_weight": 5.0, "style_weight": 100.0},
    "bfloat16": {"precision": "bfloat16"},
    "sliced, adam": {"style_statistic": "sliced", "optimizer": "adam"},
    "adagrad, noise": {"optimizer": "adagrad", "init": "noise", "seed": 5, "style_statistic": "gram"},
    "descent, average": {"optimizer": "gradient_descent", "pooling": "average", "color": "keep_luminance"},
    "fourier": {"parametrization": "fourier"},
    "network": {"parametrization": "network"},
    "diverging": {"optimizer": "adam", "learning_rate": 1000.0},
}
# What tiles change, by job, in grey levels: the largest difference of a pixel and the mean, with a margin
# of six and more over what was measured on any processor. It is rounding, which optimisers magnify from iteration to
# iteration; the signs of tiny gradients, which Adagrad follows, have no bound.
TILED = {"defaults": (0.5, 0.01), "gram, raw": (0.2, 1e-3), "descent, average": (0.05, 1e-3)}


def options_of(job: str) -> StylizeOptions:
    return quick(size=96, scales=2, iterations=ITERATIONS, **JOBS[job])


@pytest.fixture(scope="module")
def content(photo: Pixels) -> Pixels:
    """Wide, so that 96 px cost little."""
    return photo[20:44]


@pytest.fixture(scope="module")
def plain(engine: Engine, content: Pixels, texture: Pixels) -> dict[str, Session]:
    """Every job, run by itself."""
    runs = {job: start(engine, content, texture, job) for job in JOBS}
    for session in runs.values():
        finish(engine, session)
    return runs


def start(engine: Engine, content: Pixels, texture: Pixels, job: str) -> Session:
    return engine.start(content, [Style(texture)], options_of(job))


def resumed(engine: Engine, session: Session, content: Pixels, texture: Pixels) -> Session:
    state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    return engine.resume(state, content, [Style(texture)])


def image_of(session: Session) -> Tensor:
    return session._stage.image


def identical(one: Session, other: Session) -> bool:
    """Whether all that is kept of them is, and what they show."""
    left, right = one.state_dict(), other.state_dict()
    return (
        replace(left, tensors={}) == replace(right, tensors={})
        and left.tensors.keys() == right.tensors.keys()
        and all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)
        and np.array_equal(one.image(), other.image())
    )


@pytest.mark.parametrize(("job", "cut"), [*zip(JOBS, cycle(CUTS), strict=False), *(("diverging", cut) for cut in CUTS)])
def test_resumed_is_plain(
    engine: Engine, content: Pixels, texture: Pixels, plain: dict[str, Session], job: str, cut: str
):
    session = start(engine, content, texture, job)
    steps(engine, session, CUTS[cut])
    session = resumed(engine, session, content, texture)
    finish(engine, session)
    assert identical(session, plain[job])


def test_together_is_alone(engine: Engine, content: Pixels, texture: Pixels, plain: dict[str, Session]):
    """Whoever else runs, in whichever order, whenever they join; and some are cut and resumed in the midst."""
    waiting = list(JOBS)[::-1]
    running: dict[str, Session] = {}
    while waiting or running:
        if waiting:
            name = waiting.pop(0)
            running[name] = start(engine, content, texture, name)
        if len(running) > 2:
            name = list(running)[1]
            running[name] = resumed(engine, running[name], content, texture)
        engine.step(list(running.values()))
        for name, session in list(running.items()):
            if session.finished:
                assert identical(running.pop(name), plain[name]), name


def test_another_network_beside_it_changes_nothing(
    engine: Engine, content: Pixels, texture: Pixels, plain: dict[str, Session]
):
    """The same weights padded and rounded otherwise are another network, with kernels packed anew."""
    session = start(engine, content, texture, "defaults")
    for padding in ("replicate", "zeros"):
        beside = quick(size=32, iterations=2, precision="bfloat16", padding=padding)
        other = engine.start(texture, [Style(content)], beside)
        for _ in range(2):
            engine.step([other, session])
    finish(engine, session)
    assert identical(session, plain["defaults"])


def test_an_engine_of_its_own_makes_the_same(content: Pixels, texture: Pixels, plain: dict[str, Session]):
    engine = Engine("cpu", threads=1)
    session = start(engine, content, texture, "defaults")
    finish(engine, session)
    assert identical(session, plain["defaults"])


@pytest.mark.parametrize("job", TILED)
def test_tiled_is_plain_but_for_rounding(
    engine: Engine, content: Pixels, texture: Pixels, plain: dict[str, Session], job: str
):
    """And a tiled run that is resumed is the tiled run, to the bit."""
    options = options_of(job)
    tiled = Engine("cpu", threads=1, memory_budget=bytes_for(options, 64 * 24))
    tiled._backbones = engine._backbones
    whole = tiled.start(content, [Style(texture)], options)
    cut = tiled.start(content, [Style(texture)], options)
    finish(tiled, whole)
    assert isinstance(whole._stage.objective, TiledObjective)
    for count in (1, 3, 1):
        steps(tiled, cut, count)
        cut = resumed(tiled, cut, content, texture)
    finish(tiled, cut)
    assert identical(cut, whole)
    difference = (image_of(whole) - image_of(plain[job])).abs()
    largest, mean = TILED[job]
    assert 0 < difference.max() <= largest
    assert difference.mean() <= mean


def unaligned(tensor: Tensor) -> Tensor:
    """The same values, 8 bytes past an address that is aligned to 64."""
    moved = torch.empty(tensor.nbytes + 8, dtype=torch.uint8)[8:].view(tensor.dtype).view(tensor.shape)
    return moved.copy_(tensor)


def test_a_state_may_lie_anywhere_in_memory(engine: Engine, photo: Pixels, texture: Pixels):
    """Products of unaligned vectors are added up in another order; what is read from bytes lies as it comes."""
    session = engine.start(photo, [Style(texture)], quick(size=32, iterations=16))
    steps(engine, session, 12)  # a full history: sums of few terms may agree by chance
    state = session.state_dict()
    moved = replace(state, tensors={name: unaligned(tensor) for name, tensor in state.tensors.items()})
    revived = engine.resume(moved, photo, [Style(texture)])
    for one in (session, revived):
        finish(engine, one)
    assert identical(session, revived)
