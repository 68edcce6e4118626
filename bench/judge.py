"""How near a picture is to a content and to a style, in numbers that no engine here optimises.

style: the sliced Wasserstein-2 distance between the features of the picture and of the style, channels
scaled by the style's own deviation, averaged over taps that no default uses. content: 1 - the cosine
similarity to the content's features at relu4_3, averaged over positions. Lower is better in both.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from neural_style import NETWORK, Picture, as_tensor
from torch import Tensor

from nst_engine import Engine, weights
from nst_engine.backbone import Backbone

STYLE_TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_2")
CONTENT_TAP = "relu4_3"
DIRECTIONS = 128
QUANTILES = 255


@dataclass(frozen=True)
class Scores:
    """Both distances of one picture."""

    content: float
    style: float


class Judge:
    """Scores pictures against one content and one style of the same long side."""

    def __init__(self, engine: Engine, content: Picture, style: Picture) -> None:
        """Judges on the engine's device."""
        self._backbone = Backbone(NETWORK, weights.load(NETWORK.name), engine.device, torch.float32)
        self._content = self._maps(content)[CONTENT_TAP]
        self._style = self._maps(style)

    def scores(self, picture: Picture) -> Scores:
        """Of a picture of the content's shape."""
        maps = self._maps(picture)
        likeness = F.cosine_similarity(maps[CONTENT_TAP], self._content, dim=1).mean()
        generator = torch.Generator().manual_seed(0)
        distances = [_sliced_distance(maps[tap], self._style[tap], generator) for tap in STYLE_TAPS]
        return Scores(1 - float(likeness), sum(distances) / len(distances))

    @torch.no_grad()
    def _maps(self, picture: Picture) -> dict[str, Tensor]:
        return self._backbone.features(as_tensor(picture).to(self._backbone.device), STYLE_TAPS)


def _sliced_distance(picture: Tensor, style: Tensor, generator: torch.Generator) -> float:
    """Sliced Wasserstein-2 of the values at all positions, with the style's quantiles for its size."""
    value, target = picture.flatten(2)[0], style.flatten(2)[0]
    scale = target.std(1, keepdim=True) + 0.01 * target.std()
    directions = F.normalize(torch.randn(DIRECTIONS, len(value), generator=generator), dim=1).to(value.device)
    levels = torch.linspace(0, 1, QUANTILES + 2, device=value.device)[1:-1]
    difference = torch.quantile(directions @ (value / scale), levels, dim=1) - torch.quantile(
        directions @ (target / scale), levels, dim=1
    )
    return float(difference.square().mean().sqrt())
