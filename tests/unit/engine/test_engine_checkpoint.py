"""Checkpoints as bytes: exact, and refused when they are not what they should be."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from engine_runs import Pixels, quick, steps
from safetensors.torch import load, save

from nst_engine import CheckpointError, Engine, SessionState, Style, checkpoint


@pytest.fixture(scope="module")
def state(engine: Engine, photo: Pixels, texture: Pixels) -> SessionState:
    session = engine.start(photo, [Style(texture, 2.0)], quick(size=32, iterations=5, history_size=2))
    steps(engine, session, 3)
    return session.state_dict()


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_what_is_on_a_device_is_copied_as_it_is(device: str):
    tensors = {"one": torch.arange(6.0, device=device).view(2, 3).T, "number": torch.tensor(7, device=device)}
    copies = checkpoint.on_cpu(tensors)
    assert {name: (copy.device.type, copy.dtype, copy.tolist()) for name, copy in copies.items()} == {
        "one": ("cpu", torch.float32, [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]),
        "number": ("cpu", torch.int64, 7),
    }


@pytest.fixture(scope="module")
def data(state: SessionState) -> bytes:
    return checkpoint.dumps(state)


def header_of(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length])["__metadata__"])


def rewritten(data: bytes, **changes: str) -> bytes:
    return save(load(data), metadata={**header_of(data), **changes})


def test_bytes_give_back_the_state_exactly(state: SessionState, data: bytes):
    revived = checkpoint.loads(data)
    assert replace(revived, tensors={}) == replace(state, tensors={})
    assert revived.tensors.keys() == state.tensors.keys() >= {"image", "gradient", "optimizer.steps"}
    for name, tensor in state.tensors.items():
        assert revived.tensors[name].dtype == tensor.dtype
        assert torch.equal(revived.tensors[name], tensor)


def test_a_state_without_losses_survives(engine: Engine, photo: Pixels, texture: Pixels):
    session = engine.start(photo, [Style(texture)], quick(size=32))
    steps(engine, session, 1)
    session.update(tv_weight=0.5)
    revived = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    assert (revived.total_loss, revived.losses) == (None, None)
    assert "gradient" not in revived.tensors
    assert revived.options.tv_weight == 0.5


def test_every_cut_is_noticed(data: bytes):
    for length in (0, 1, 7, 8, 9, 200, len(data) // 2, len(data) - 1):
        with pytest.raises(CheckpointError, match="cut short"):
            checkpoint.loads(data[:length])


@pytest.mark.parametrize(
    "foreign",
    [b"\x89PNG\r\n\x1a\n" + bytes(64), b"\xff" * 64, bytes(64), b'{"format": "nst-checkpoint"}'],
    ids=["picture", "ones", "zeros", "json"],
)
def test_other_bytes_are_refused(foreign: bytes):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.loads(foreign)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_other_safetensors_are_refused(metadata: dict[str, str] | None):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.loads(save({"image": torch.zeros(3)}, metadata=metadata))


def test_another_version_is_named(data: bytes):
    with pytest.raises(CheckpointError, match=f"version 999; this release reads {checkpoint.VERSION}"):
        checkpoint.loads(rewritten(data, version="999"))


def changed(state: SessionState, **changes: Any) -> str:
    fields = {**asdict(replace(state, tensors={})), **changes}
    del fields["tensors"]
    return json.dumps(fields)


def test_fields_that_cannot_be_read_are_refused(state: SessionState, data: bytes):
    options = asdict(state.options)
    for fields in (
        "{",
        "[]",
        changed(state, surprise=1),
        changed(state, options={**options, "size": -1}),
        changed(state, options={**options, "unheard_of": 1}),
        changed(state, style_shares=None),
    ):
        with pytest.raises(CheckpointError, match="fields cannot be read"):
            checkpoint.loads(rewritten(data, state=fields))
