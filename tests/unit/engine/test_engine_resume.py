"""A run that is cut and resumed lands on the same bits as one that is not."""

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import Pixels, finish, quick, shares_of, steps

from nst_engine import Engine, OptionError, Session, SessionState, Style, StylizeOptions, checkpoint

ITERATIONS, CUT, BOUNDARY, STEERED = 8, 2, 4, 6


def options(optimizer: str, precision: str) -> StylizeOptions:
    """Two scales of four iterations, and a history that wraps round within one."""
    return quick(
        size=128, scales=2, iterations=ITERATIONS, optimizer=optimizer, precision=precision, history_size=2
    )  # fmt: skip


CUTS = [0, STEERED, CUT, BOUNDARY, 7, ITERATIONS]
CASES = [(optimizer, precision) for optimizer in ("lbfgs", "adam") for precision in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def content(photo: Pixels) -> Pixels:
    """Wide, so that 128 px cost little."""
    return photo[20:52]


@pytest.fixture(scope="module")
def styles(texture: Pixels, checks: Pixels) -> list[Pixels]:
    return [texture[:64, :64], checks]


def whole_run(engine: Engine, content: Pixels, styles: list[Pixels], chosen: StylizeOptions) -> dict[int, SessionState]:
    """States of a run by iteration, steered half-way through the second scale."""
    session = engine.start(content, shares_of(styles, [1, 1]), chosen)
    states = {0: session.state_dict()}
    while not session.finished:
        if session.iteration == STEERED:
            session.update(strength=0.8, tv_weight=0.01, style_shares=[1, 3])
            states[STEERED] = session.state_dict()
        session.advance()
        states.setdefault(session.iteration, session.state_dict())
    states[ITERATIONS] = session.state_dict()
    return states


@pytest.fixture(scope="module")
def runs(engine: Engine, content: Pixels, styles: list[Pixels]) -> dict[tuple[str, str], dict[int, SessionState]]:
    return {case: whole_run(engine, content, styles, options(*case)) for case in CASES}


def go_on(engine: Engine, state: SessionState, content: Pixels, styles: list[Pixels]) -> Session:
    """Resumes from bytes and finishes, steering where the whole run did."""
    revived = checkpoint.loads(checkpoint.dumps(state))
    session = engine.resume(revived, content, [Style(picture) for picture in styles])
    if session.iteration < STEERED:
        steps(engine, session, STEERED - session.iteration)
        session.update(strength=0.8, tv_weight=0.01, style_shares=[1, 3])
    finish(engine, session)
    return session


def identical(left: SessionState, right: SessionState) -> bool:
    return (
        replace(left, tensors={}) == replace(right, tensors={})
        and left.tensors.keys() == right.tensors.keys()
        and all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)
    )


@pytest.mark.parametrize(("iteration", "case"), [*product(CUTS, CASES[:1]), *zip(CUTS[1:], CASES[1:], strict=False)])
def test_a_resumed_run_ends_in_the_same_bits(
    engine: Engine, content: Pixels, styles: list[Pixels], runs: dict[tuple[str, str], dict[int, SessionState]],
    case: tuple[str, str], iteration: int,
):  # fmt: skip
    """From the start, just after steering, within a scale, between two, late, and from the end."""
    states = runs[case]
    session = go_on(engine, states[iteration], content, styles)
    assert identical(session.state_dict(), states[ITERATIONS])


def test_a_resumed_run_in_another_process_ends_in_the_same_bits(
    content: Pixels, styles: list[Pixels], runs: dict[tuple[str, str], dict[int, SessionState]], tmp_path: Path
):
    np.save(tmp_path / "content.npy", content)
    np.save(tmp_path / "styles.npy", np.stack(styles))
    expected = {}
    for case, states in runs.items():
        for iteration in (STEERED, 7):
            name = "-".join((*case, str(iteration)))
            (tmp_path / f"{name}.checkpoint").write_bytes(checkpoint.dumps(states[iteration]))
            expected[name] = states[ITERATIONS].tensors["image"].numpy()
    program = Path(__file__).with_name("resume_in_process.py")
    completed = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    for name, image in expected.items():
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), image), name


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_snapshot_is_not_touched_by_later_steps(
    engine: Engine, content: Pixels, styles: list[Pixels], optimizer: str
):
    session = engine.start(content, [Style(styles[0])], options(optimizer, "float32"))
    steps(engine, session, 3)
    state = session.state_dict()
    before = checkpoint.dumps(state)
    steps(engine, session, 2)
    session.update(tv_weight=1.0)
    finish(engine, session)
    assert identical(checkpoint.loads(before), state)


def test_a_resumed_session_does_not_touch_the_state_it_came_from(
    engine: Engine, content: Pixels, styles: list[Pixels], runs: dict[tuple[str, str], dict[int, SessionState]]
):
    for case in (("lbfgs", "float32"), ("adam", "float32")):
        state = runs[case][CUT]
        before = checkpoint.dumps(state)
        go_on(engine, state, content, styles)
        assert identical(checkpoint.loads(before), state)


def test_a_state_needs_the_pictures_it_was_made_with(
    engine: Engine, content: Pixels, styles: list[Pixels], runs: dict[tuple[str, str], dict[int, SessionState]]
):
    state = runs["lbfgs", "float32"][CUT]
    with pytest.raises(OptionError) as caught:
        engine.resume(state, content[:, ::2], [Style(picture) for picture in styles])
    assert caught.value.field == "content"
    assert "64x21" in caught.value.message
    with pytest.raises(OptionError) as caught:
        engine.resume(state, content, [Style(styles[0])])
    assert caught.value.field == "style_shares"
