"""torchvision's own ResNet-50 and DenseNet-121 with seeded weights, and what they compute in float64."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nst_engine.torchvision_import import models

RESNET, DENSENET = "resnet50-torchvision", "densenet121-torchvision"
BUILDERS = {RESNET: "resnet50", DENSENET: "densenet121"}
MEAN = torch.tensor((0.485, 0.456, 0.406), dtype=torch.float64).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225), dtype=torch.float64).view(1, 3, 1, 1)


def seeded_state(name: str, seed: int = 7) -> dict[str, Tensor]:
    """A state dict of full shapes over little storage: kernels are overlapping windows of one row of numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in getattr(models(), BUILDERS[name])().state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        numbers = torch.rand(sum(shape) + 1, generator=generator)
        if len(shape) == 4:
            outputs, inputs, side, _ = shape
            area = side * side
            row = torch.randn(area * (inputs + 5 * outputs), generator=generator) * (2 / (area * inputs)) ** 0.5
            state[key] = row.as_strided(tuple(shape), (5 * area, area, side, 1))
        elif len(shape) == 2:
            state[key] = numbers[:1].expand(shape)
        elif len(shape) == 0:
            state[key] = torch.tensor(3)
        elif key.endswith(("bias", "running_mean")):
            state[key] = numbers[: shape[0]] - 0.5
        else:
            state[key] = 0.5 + numbers[: shape[0]]
    return state


def torchvision_file(file: Path, name: str, seed: int = 7) -> Path:
    """A file as torchvision serves it: DenseNet's layers are named as of old, "norm.1" for "norm1"."""
    state = seeded_state(name, seed)
    torch.save({re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): state[key] for key in state}, file)
    return file


def kept(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the engine keeps of a state dict: not the classifier, not the counters."""
    return {key: tensor for key, tensor in state.items() if tensor.dim() and not key.startswith(("fc.", "classifier."))}


def module(name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """torchvision's module in float64, as for inference."""
    with torch.device("meta"):
        made: nn.Module = getattr(models(), BUILDERS[name])()
    made.load_state_dict(state, assign=True)
    return made.double().eval()


def path_of(name: str, tap: str) -> str:
    """Where torchvision's module has the tap."""
    return tap if name == RESNET else f"features.{tap}"


def raw_maps(name: str, network: nn.Module, image: Tensor, taps: Iterable[str]) -> dict[str, Tensor]:
    """The module's own outputs at the taps, of a (1, 3, H, W) picture in 0-255."""
    maps: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(path_of(name, tap)).register_forward_hook(
            lambda _, __, output, tap=tap: maps.update({tap: output.clone()})
        )
        for tap in taps
    ]
    with torch.no_grad():
        network((image.double() / 255 - MEAN) / STD)
    for hook in hooks:
        hook.remove()
    return maps


def smooth(features: Tensor) -> Tensor:
    """The softmax at a temperature of three standard deviations, with a mean of 1, in the dtype given."""
    logits = features / (3 * features.std(correction=0))
    return torch.softmax(logits.flatten(), 0).view_as(features) * features.numel()
