"""How pictures look, in numbers that no engine here optimises, and on a contact sheet for the eye.

style: the sliced Wasserstein-2 distance between the features of the picture and of the style, channels
scaled by the style's own deviation, averaged over taps that no default uses. content: 1 - the cosine
similarity to the content's features at relu4_3, averaged over positions. Lower is better in both, and a
method is a curve from one to the other as its strength goes from 0 to 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from neural_style import NETWORK, NeuralStyle, Picture, as_tensor
from pairs import PAIRS, Pair
from PIL import Image
from processes import RESULTS
from report import Facts, Report
from torch import Tensor

from nst_engine import Engine, Style, stylize, weights
from nst_engine.backbone import Backbone
from nst_engine.options import StylizeOptions

SIZE = 256
STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
RAW_STYLE_WEIGHTS = (1e2, 1e4)  # beside a content weight of 1
OPPONENT_ITERATIONS = 300
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

    def __init__(self, backbone: Backbone, content: Picture, style: Picture) -> None:
        self._backbone = backbone
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
        return self._backbone.features(as_tensor(picture), STYLE_TAPS)


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Scores every pair at every strength, with fixed raw weights, and the opponent's result."""
    engine = Engine()
    backbone = Backbone(NETWORK, weights.load(NETWORK.name), torch.device("cpu"), torch.float32)
    ways = {f"strength {strength}": StylizeOptions(size=SIZE, strength=strength) for strength in STRENGTHS}
    for weight in RAW_STYLE_WEIGHTS:
        raw = StylizeOptions(size=SIZE, strength=None, content_weight=1.0, style_weight=weight)
        ways[f"raw style weight {weight:g}"] = raw
    content, style = (
        Report(f"looks-{side}", f"Distance to the {side}, {SIZE} px", facts) for side in ("content", "style")
    )
    for pair in PAIRS[: 1 if quick else None]:
        pictures = pair.load(SIZE)
        judge = Judge(backbone, *pictures)
        results = {way: _stylised(engine, pictures, options) for way, options in ways.items()}
        if not quick:
            results["neural-style-pt, 300"] = _opponent(pictures)
        scores = {way: judge.scores(picture) for way, picture in results.items()}
        content.add(pair.name, "", "", {way: [score.content] for way, score in scores.items()})
        style.add(pair.name, "", "", {way: [score.style] for way, score in scores.items()})
        _sheet(pair, pictures, results)
    return [content, style]


def _stylised(engine: Engine, pictures: tuple[Picture, Picture], options: StylizeOptions) -> Picture:
    content, style = pictures
    *_, (_, picture) = stylize(content, [Style(style)], options, engine=engine)
    return picture


def _opponent(pictures: tuple[Picture, Picture]) -> Picture:
    *_, last = NeuralStyle(*pictures).optimise(OPPONENT_ITERATIONS)
    return last.picture


def _sliced_distance(picture: Tensor, style: Tensor, generator: torch.Generator) -> float:
    """Sliced Wasserstein-2 of the values at all positions, with the style's quantiles for its size."""
    value, target = picture.flatten(2)[0], style.flatten(2)[0]
    scale = target.std(1, keepdim=True) + 0.01 * target.std()
    directions = F.normalize(torch.randn(DIRECTIONS, len(value), generator=generator), dim=1)
    levels = torch.linspace(0, 1, QUANTILES + 2)[1:-1]
    difference = torch.quantile(directions @ (value / scale), levels, dim=1) - torch.quantile(
        directions @ (target / scale), levels, dim=1
    )
    return float(difference.square().mean().sqrt())


def _sheet(pair: Pair, pictures: tuple[Picture, Picture], results: dict[str, Picture]) -> None:
    """Content, style and every result side by side, in the order of the table."""
    height = pictures[0].shape[0]
    style = Image.fromarray(pictures[1]).resize((height, height))
    row = np.concatenate([pictures[0], np.asarray(style), *results.values()], axis=1)
    Image.fromarray(row).save(RESULTS / f"looks {pair.name}.png")
