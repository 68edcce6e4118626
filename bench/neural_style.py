"""The opponent: neural-style-pt's default objective and optimiser, in plain torch and float32.

Written for this benchmark, after that project's published defaults: VGG-16 with the original weights,
content relu4_2 x 5, style relu1_1 to relu5_1 x 100 each on Gram matrices / (C H W), both mean squared;
total variation 1e-3 x the sum of absolute differences; torch's L-BFGS with a history of 100 and no line
search, from the content. One iteration is one evaluation of the loss and its gradient.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from clock import timed
from numpy.typing import NDArray
from torch import Tensor

from nst_engine import weights
from nst_engine.networks import NETWORKS

NETWORK = NETWORKS["vgg16-caffe"]
CONTENT_LAYERS = {"relu4_2": 5.0}
STYLE_LAYERS = {f"relu{block}_1": 100.0 for block in range(1, 6)}
TV_WEIGHT = 1e-3
HISTORY = 100
# The same objective for the engine.
OBJECTIVE = {
    "content_layers": CONTENT_LAYERS,
    "style_layers": STYLE_LAYERS,
    "tv_weight": TV_WEIGHT,
    "strength": None,
    "padding": "zeros",
}

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Iterate:
    """Where the opponent is after one more iteration.

    Attributes:
        seconds: what its iterations have taken so far, without what is measured in between.
        printed: the loss of the image as it is, with values outside 0-255.
        picture: the image as it would be saved: clipped and rounded to 8 bits.
    """

    seconds: float
    printed: float
    picture: Picture


class NeuralStyle:
    """The objective for one content and one style, (H, W, 3) RGB pictures at the working size, on a device."""

    def __init__(self, content: Picture, style: Picture, device: torch.device) -> None:
        self._device = device
        self._kernels = {name: kernel.to(device) for name, kernel in weights.load(NETWORK.name).items()}
        self._mean = torch.tensor(NETWORK.mean, device=device).view(1, 3, 1, 1)
        self._content = as_tensor(content).to(device)
        with torch.no_grad():
            maps = self._features(self._content)
            self._content_maps = {tap: maps[tap] for tap in CONTENT_LAYERS}
            maps = self._features(as_tensor(style).to(device))
            self._grams = {tap: _gram(maps[tap]) for tap in STYLE_LAYERS}

    def loss(self, image: Tensor) -> Tensor:
        """The loss of (1, 3, H, W) in 0-255."""
        maps = self._features(image)
        content = sum(w * F.mse_loss(maps[tap], self._content_maps[tap]) for tap, w in CONTENT_LAYERS.items())
        style = sum(w * F.mse_loss(_gram(maps[tap]), self._grams[tap]) for tap, w in STYLE_LAYERS.items())
        vertical = (image[:, :, 1:] - image[:, :, :-1]).abs().sum()
        horizontal = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().sum()
        return content + style + TV_WEIGHT * (vertical + horizontal)

    @torch.no_grad()
    def loss_of(self, picture: Picture) -> float:
        """The loss of a picture as saved."""
        return float(self.loss(as_tensor(picture).to(self._device)))

    def optimise(self, iterations: int) -> Iterator[Iterate]:
        """Runs the opponent. What its caller does between two iterations is not timed."""
        return _optimise(self._content, self.loss, iterations)

    def history_seconds(self, iterations: int) -> float:
        """What the optimiser's history adds to so many iterations: they take longer the more of it there is.

        On a loss that costs next to nothing, with the history and without.
        """
        weights = torch.logspace(0, 3, self._content.numel(), device=self._device).view_as(self._content)

        def loss(image: Tensor) -> Tensor:
            return (weights * image.square()).sum()

        runs = (_optimise(self._content, loss, iterations, history) for history in (HISTORY, 1))
        whole, none = (deque(run, maxlen=1).pop().seconds for run in runs)
        return whole - none

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        hidden = image.flip(1) - self._mean
        maps = {}
        for tap in NETWORK.taps[: NETWORK.taps.index("relu5_1") + 1]:
            if tap.startswith("conv"):
                hidden = F.conv2d(hidden, self._kernels[f"{tap}.weight"], self._kernels[f"{tap}.bias"], padding=1)
            elif tap.startswith("relu"):
                hidden = maps[tap] = F.relu(hidden)
            else:
                hidden = F.max_pool2d(hidden, 2)
        return maps


def _optimise(
    start: Tensor, loss: Callable[[Tensor], Tensor], iterations: int, history: int = HISTORY
) -> Iterator[Iterate]:
    image = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([image], lr=1, max_iter=1, history_size=history, tolerance_grad=0, tolerance_change=0)
    printed = torch.zeros(())

    def closure() -> Tensor:
        nonlocal printed
        optimizer.zero_grad()
        printed = loss(image)
        printed.backward()
        return printed

    seconds = 0.0
    for _ in range(iterations):
        seconds += timed(lambda: optimizer.step(closure))[1]
        yield Iterate(seconds, printed.item(), as_picture(image.detach()))


def as_tensor(picture: Picture) -> Tensor:
    """(1, 3, H, W) float32 of an (H, W, 3) picture."""
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None].contiguous()


def as_picture(image: Tensor) -> Picture:
    """What (1, 3, H, W) in 0-255 is saved as."""
    picture: Picture = image[0].clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return picture


def _gram(features: Tensor) -> Tensor:
    flat = features.flatten(2)[0]
    return flat @ flat.T / flat.numel()
