"""The other opponent: style-transfer-pytorch's default losses and optimiser, in plain torch and float32.

Written for this benchmark, after that project's published defaults, at one scale: content relu4_2 x 0.015, mean
squared; style by the Wasserstein-2 distance of normal distributions, the mean over channels, at relu1_1 to relu5_1,
weighted 256 : 64 : 16 : 4 : 1 and normalised; the squares of the differences between neighbours x 2; Adam with a
rate of 0.02 from the content, clipped to 0-1 after every iteration; the result is the exponential average of the
iterates, with a decay of 0.99. Its VGG-19 is replaced by the VGG-16 that all here use, with maps brought to the
range of torchvision's. Roots of matrices come from eigenvalues, which is faster than its own way.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from neural_style import NETWORK, Picture, as_picture, as_tensor
from torch import Tensor

from nst_engine import weights
from nst_engine.backbone import Backbone

CONTENT_TAP = "relu4_2"
CONTENT_WEIGHT = 0.015
STYLE_WEIGHTS = {f"relu{block}_1": 4.0 ** (5 - block) / 341 for block in range(1, 6)}
TV_WEIGHT = 2.0
STEP = 0.02
BETAS = (0.9, 0.99)
AVERAGE_DECAY = 0.99
VARIANCE = 1e-4  # added in every direction
# Of torchvision's inputs, in those of the original weights.
UNIT = 57.4

Moments = tuple[Tensor, Tensor]


class StyleTransferPytorch:
    """The objective for one content and one style, (H, W, 3) RGB pictures at the working size, on a device."""

    def __init__(self, content: Picture, style: Picture, device: torch.device) -> None:
        self._backbone = Backbone(NETWORK, weights.load(NETWORK.name), device, torch.float32)
        self._start = as_tensor(content).to(device) / 255
        with torch.no_grad():
            self._content = self._maps(self._start)[CONTENT_TAP]
            maps = self._maps(as_tensor(style).to(device) / 255)
            self._styles = {tap: _moments(maps[tap]) for tap in STYLE_WEIGHTS}
            self._roots = {tap: _root(covariance) for tap, (_, covariance) in self._styles.items()}

    def optimise(self, iterations: int) -> Picture:
        """The result of so many iterations."""
        image = self._start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([image], lr=STEP, betas=BETAS)
        average = self._start * (1 - AVERAGE_DECAY)
        for _ in range(iterations):
            optimizer.zero_grad()
            self._loss(image).backward()
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)
                average.lerp_(image, 1 - AVERAGE_DECAY)
        return as_picture(average / (1 - AVERAGE_DECAY ** (iterations + 1)) * 255)

    def _loss(self, image: Tensor) -> Tensor:
        maps = self._maps(image)
        content = F.mse_loss(maps[CONTENT_TAP], self._content)
        style = sum(weight * self._distance(tap, maps) for tap, weight in STYLE_WEIGHTS.items())
        return CONTENT_WEIGHT * content + style + TV_WEIGHT * _variation(image)

    def _distance(self, tap: str, maps: Mapping[str, Tensor]) -> Tensor:
        mean, covariance = _moments(maps[tap])
        target_mean, target = self._styles[tap]
        root = self._roots[tap]
        shared = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=VARIANCE**2).sqrt().sum()
        return ((mean - target_mean).square().sum() + covariance.trace() + target.trace() - 2 * shared) / len(mean)

    def _maps(self, image: Tensor) -> dict[str, Tensor]:
        maps = self._backbone.features(image * 255, (*STYLE_WEIGHTS, CONTENT_TAP))
        return {tap: features / UNIT for tap, features in maps.items()}


def _moments(features: Tensor) -> Moments:
    rows = features[0].flatten(1)
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    covariance = centred @ centred.T / rows.shape[1]
    return mean, covariance + VARIANCE * torch.eye(len(rows), device=rows.device)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _variation(image: Tensor) -> Tensor:
    """The mean square of the differences to all eight neighbours, the diagonal ones a quarter as much."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    height, width = image.shape[2:]
    total = image.new_zeros(())
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            neighbour = padded[:, :, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
            total = total + (image - neighbour).square().mean() / max(1, 4 * abs(down * right))
    return total / 3
