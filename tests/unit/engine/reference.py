"""What the engine should compute, written again in plain float64.

It shares no code with the engine: convolutions are matrix products over unfolded neighbourhoods,
the layer plans are spelt out, and gradients come from float64 autograd.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


@dataclass(frozen=True)
class Trunk:
    """A VGG; `channels` picks the RGB channels in the order that `mean` and `std` (0-255) belong to."""

    weights: Mapping[str, Tensor]
    blocks: tuple[tuple[int, ...], ...] = VGG16
    channels: tuple[int, int, int] = (2, 1, 0)
    mean: tuple[float, float, float] = CAFFE_MEAN_BGR
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pooling: str = "max"

    def maps(self, image: Tensor, taps: Collection[str] = ("pool5",)) -> dict[str, Tensor]:
        """(1, 3, H, W) RGB in 0-255 to every map (C, h, w) by its tap's name, as far as these taps need them."""
        hidden = (image.double()[0, list(self.channels)] - column(self.mean)) / column(self.std)
        found = {}
        for block, widths in enumerate(self.blocks, start=1):
            for index in range(1, len(widths) + 1):
                name = f"{block}_{index}"
                padded = replicated(hidden) if name == "1_1" else F.pad(hidden, (1, 1, 1, 1))
                found[f"conv{name}"] = self.convolved(padded, f"conv{name}")
                found[f"relu{name}"] = hidden = found[f"conv{name}"].clamp(min=0)
                if found.keys() >= {*taps}:
                    return found
            found[f"pool{block}"] = hidden = self.pooled(hidden)
        return found

    def convolved(self, padded: Tensor, name: str) -> Tensor:
        kernel, bias = self.weights[f"{name}.weight"].double(), self.weights[f"{name}.bias"].double()
        flat = kernel.flatten(1) @ F.unfold(padded[None], 3)[0] + bias[:, None]
        return flat.view(-1, padded.shape[1] - 2, padded.shape[2] - 2)

    def pooled(self, hidden: Tensor) -> Tensor:
        channels, height, width = hidden.shape
        whole = hidden[:, : height // 2 * 2, : width // 2 * 2]
        cells = whole.reshape(channels, height // 2, 2, width // 2, 2)
        return cells.amax((2, 4)) if self.pooling == "max" else 1.5 * cells.mean((2, 4))


def cached_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as they lie there."""
    with safe_open(file, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - it is no mapping


def column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def replicated(hidden: Tensor) -> Tensor:
    """One more row and column on every side, copies of the outermost ones."""
    taller = torch.cat((hidden[:, :1], hidden, hidden[:, -1:]), 1)
    return torch.cat((taller[:, :, :1], taller, taller[:, :, -1:]), 2)


def gram(features: Tensor) -> Tensor:
    return torch.einsum("chw,dhw->cd", features, features) / features.numel()


def mean_square(difference: Tensor) -> Tensor:
    return (difference**2).sum() / difference.numel()


def total_variation(image: Tensor) -> Tensor:
    picture = image.double()
    return torch.diff(picture, dim=2).abs().sum() + torch.diff(picture, dim=3).abs().sum()


def box_penalty(image: Tensor) -> Tensor:
    picture = image.double()
    return ((picture - 255).clamp(min=0) ** 2).sum() + ((-picture).clamp(min=0) ** 2).sum()


@dataclass(frozen=True)
class Problem:
    """One stylisation: pictures (1, 3, H, W), layer weights, and the weight of each loss."""

    trunk: Trunk
    content: Tensor
    styles: Sequence[Tensor]
    shares: Sequence[float]
    content_layers: Mapping[str, float]
    style_layers: Mapping[str, float]
    content_weight: float = 1.0
    style_weight: float = 1.0
    tv_weight: float = 0.0
    box_weight: float = 0.0

    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """Each weighted loss; the target of several styles is the mean of their Gram matrices."""
        maps = self.trunk.maps(image, {*self.content_layers, *self.style_layers})
        wanted = self.trunk.maps(self.content, self.content_layers)
        content = [weight * mean_square(maps[tap] - wanted[tap]) for tap, weight in self.content_layers.items()]
        targets = self.style_targets()
        style = [weight * mean_square(gram(maps[tap]) - targets[tap]) for tap, weight in self.style_layers.items()]
        return {
            "content": self.content_weight * total(content),
            "style": self.style_weight * total(style),
            "tv": self.tv_weight * total_variation(image),
            "box": self.box_weight * box_penalty(image),
        }

    def style_targets(self) -> dict[str, Tensor]:
        maps = [self.trunk.maps(style, self.style_layers) for style in self.styles]
        whole = sum(self.shares)
        blended = {}
        for tap in self.style_layers:
            parts = [share / whole * gram(each[tap]) for share, each in zip(self.shares, maps, strict=True)]
            blended[tap] = torch.stack(parts).sum(0)
        return blended

    def separate_style_loss(self, image: Tensor) -> Tensor:
        """The other reading of several styles: the share-weighted sum of the loss to each."""
        maps, whole = self.trunk.maps(image, self.style_layers), sum(self.shares)
        terms = []
        for style, share in zip(self.styles, self.shares, strict=True):
            wanted = self.trunk.maps(style, self.style_layers)
            for tap, weight in self.style_layers.items():
                terms.append(share / whole * weight * mean_square(gram(maps[tap]) - gram(wanted[tap])))
        return self.style_weight * total(terms)

    def solve(self, image: Tensor) -> tuple[dict[str, float], float, Tensor]:
        """The losses, their sum and its gradient."""
        variable = image.double().requires_grad_(True)
        losses = self.losses(variable)
        whole = total(list(losses.values()))
        (gradient,) = torch.autograd.grad(whole, variable)
        return {name: loss.item() for name, loss in losses.items()}, whole.item(), gradient


def total(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum() if terms else torch.zeros((), dtype=torch.float64)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """||value - truth|| / ||truth||."""
    return float((value.double().flatten() - truth.double().flatten()).norm() / truth.double().norm())
