"""Session states as bytes: safetensors, with everything that is no tensor as JSON in its metadata."""

import dataclasses
import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from nst_engine.options import OptionError, StylizeOptions
from nst_engine.session import SessionState

FORMAT = "nst-checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """The bytes are no checkpoint that this version can read."""


def dumps(state: SessionState) -> bytes:
    """The state as bytes, which `loads` takes back exactly."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "tensors"}
    fields["options"] = dataclasses.asdict(state.options)
    header = {"format": FORMAT, "version": str(VERSION), "state": json.dumps(fields)}
    return save({name: tensor.contiguous() for name, tensor in state.tensors.items()}, metadata=header)


def loads(data: bytes) -> SessionState:
    """The state that `dumps` wrote.

    Raises:
        CheckpointError: the bytes are cut short, damaged, something else, or of another version.
    """
    try:
        tensors = load(data)
        header = _header(data)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"not a checkpoint, or cut short ({error}): start the job again") from error
    if header.get("format") != FORMAT:
        raise CheckpointError("these are safetensors, but no checkpoint of a session")
    if header.get("version") != str(VERSION):
        raise CheckpointError(f"checkpoint version {header.get('version')}; this release reads {VERSION}")
    try:
        fields = json.loads(header["state"])
        fields["options"] = StylizeOptions(**fields["options"])
        fields["style_shares"] = tuple(fields["style_shares"])
        return SessionState(**fields, tensors=tensors)
    except (OptionError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's fields cannot be read ({error})") from error


def _header(data: bytes) -> dict[str, Any]:
    """The metadata of a safetensors blob: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, Any] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return metadata
