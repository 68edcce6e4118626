"""What tensors a network is made of, and the names that files have for them."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from nst_engine.network import Network, TorchvisionNetwork
from nst_engine.torchvision_import import build
from nst_engine.vgg import Vgg
from nst_engine.weight_sources import WeightsError

FEATURE_WEIGHT = re.compile(r"features\.(\d+)\.weight")
# torchvision's DenseNet files are older than its module, which has "norm1" for their "norm.1".
OLD_DENSE_LAYER = re.compile(r"(?<=\.)(norm|conv)\.(?=[12]\.)")


def conform(tensors: Mapping[str, Tensor], network: Network, origin: str) -> dict[str, Tensor]:
    """Exactly the tensors of `network`, by their names here, in float32.

    Args:
        tensors: by their names here or in torchvision's files; what else there is, is left out.
        network: the network.
        origin: where they come from, for the error.

    Raises:
        WeightsError: a tensor is missing or has another shape.
    """
    shapes, renamed = _layout(tensors, network)
    conformed = {}
    for name, shape in shapes.items():
        tensor = renamed.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise WeightsError(f"{origin}: {name} is {found}; {network.name} needs {shape}")
        conformed[name] = tensor.to(torch.float32, copy=True).contiguous()  # a file is mapped, and may be written over
    return conformed


Layout = tuple[dict[str, tuple[int, ...]], Mapping[str, Tensor]]


def _layout(tensors: Mapping[str, Tensor], network: Network) -> Layout:
    """The shapes that `network` needs by name, and the tensors by these names."""
    match network:
        case Vgg():
            return _vgg_layout(tensors, network)
        case TorchvisionNetwork():
            return _module_layout(tensors, network)
    raise TypeError(f"there are no weights for a {type(network).__name__}")


def _vgg_layout(tensors: Mapping[str, Tensor], network: Vgg) -> Layout:
    """Files count the layers: the convolutions are "features.0.weight", "features.2.weight" and so on."""
    indices = sorted(int(match[1]) for key in tensors if (match := FEATURE_WEIGHT.fullmatch(key)))
    shapes: dict[str, tuple[int, ...]] = {}
    renamed = dict(tensors)
    for name, (inputs, outputs) in network.convs.items():
        shapes |= {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}
    for name, index in zip(network.convs, indices, strict=False):
        for part in ("weight", "bias"):
            if f"features.{index}.{part}" in tensors:
                renamed[f"{name}.{part}"] = tensors[f"features.{index}.{part}"]
    return shapes, renamed


def _module_layout(tensors: Mapping[str, Tensor], network: TorchvisionNetwork) -> Layout:
    """Files have the module's own names, or older ones. Its counters of training steps, scalars, are not needed."""
    state = build(network.builder, network.classifier).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.dim()}
    return shapes, {OLD_DENSE_LAYER.sub(r"\1", name): tensor for name, tensor in tensors.items()}
