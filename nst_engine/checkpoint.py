"""Session states, and how they become bytes: safetensors, with all that is no tensor as JSON in the metadata."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nst_engine.options import OptionError, StylizeOptions

FORMAT = "nst-checkpoint"
VERSION = 5


@dataclass(frozen=True)
class SessionState:
    """What a run has earned: enough, with its pictures, to continue it bit for bit.

    Attributes:
        options: as steered so far.
        style_shares: likewise.
        iteration: iterations done.
        scale_ends: the last iteration of each scale; not as planned where one was cut short, or more or fewer
            iterations were asked for since.
        recent_losses: `StopRule.recent` of the scale worked on.
        undone: as in `StepReport`.
        step: the current step factor, below 1 after a divergence.
        setbacks: divergences since the best state.
        total_loss, losses: as in `StepReport`, at the parameters; None when steering has made them stale.
        best_total_loss, best_losses: likewise at the best state of the scale; None when the parameters are it.
        tensors: float32; what is optimised, as `Parametrization.tensors` gives it, which for pixels is
            "image" (1, 3, H, W); unless stale, "gradient", of the shape of what is optimised;
            "best_parameters" and "best_gradient" where `best_losses` are; the optimiser's state under
            "optimizer.".
    """

    options: StylizeOptions
    style_shares: tuple[float, ...]
    iteration: int
    scale_ends: tuple[int, ...]
    recent_losses: tuple[float, ...]
    undone: int
    step: float
    setbacks: int
    total_loss: float | None
    losses: dict[str, float] | None
    best_total_loss: float | None
    best_losses: dict[str, float] | None
    tensors: dict[str, Tensor]


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on a GPU, by way of memory that it writes itself: several times as fast; others as they are."""
    copies = {
        name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
        if tensor.is_cuda
    }
    if copies:
        torch.cuda.current_stream(tensors[next(iter(copies))].device).synchronize()
    return {name: copies.get(name, tensor) for name, tensor in tensors.items()}


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
        for name in ("style_shares", "scale_ends", "recent_losses"):
            fields[name] = tuple(fields[name])
        return SessionState(**fields, tensors=tensors)
    except (OptionError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's fields cannot be read ({error})") from error


def _header(data: bytes) -> dict[str, Any]:
    """The metadata of a safetensors blob: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, Any] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return metadata
