"""How pictures look, in numbers that no engine here optimises, and on a contact sheet for the eye.

style: the sliced Wasserstein-2 distance between the features of the picture and of the style, channels
scaled by the style's own deviation, averaged over taps that no default uses. content: 1 - the cosine
similarity to the content's features at relu4_3, averaged over positions. Lower is better in both, and a
method is a curve from one to the other as its strength goes from 0 to 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from clock import timed
from neural_style import NETWORK, NeuralStyle, Picture, as_tensor
from pairs import PAIRS, Pair
from PIL import Image
from processes import RESULTS
from report import Facts, Report
from style_transfer_pytorch import StyleTransferPytorch
from torch import Tensor

from nst_engine import Engine, Style, weights
from nst_engine.backbone import Backbone
from nst_engine.options import StylizeOptions

SIZE = 256
STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
RAW_STYLE_WEIGHTS = (1.0, 10.0, 100.0)  # beside a content weight of 1
NEURAL_STYLE_ITERATIONS = 300
ADAM_ITERATIONS = 150
LOOKED_AT_EVERY = 3  # iterations of the engine between two looks at whether it is as good
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
        return self._backbone.features(as_tensor(picture).to(self._backbone.device), STYLE_TAPS)


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Scores every pair at every strength, with fixed raw weights, and the opponents' results."""
    engine = Engine()
    backbone = Backbone(NETWORK, weights.load(NETWORK.name), engine.device, torch.float32)
    ways: dict[str, Callable[[Picture, Picture], tuple[Picture, float]]] = {
        name: partial(_stylised, engine, options) for name, options in _options().items()
    }
    if not quick:
        ways |= {name: partial(opponent, engine.device) for name, opponent in OPPONENTS.items()}
    content, style, spread, seconds, sooner = (
        Report(f"looks-{name}", f"{title}, {SIZE} px", facts)
        for name, title in (
            ("content", "Distance to the content"),
            ("style", "Distance to the style"),
            ("spread", "How far apart the pairs are"),
            ("seconds", "Time that a picture takes"),
            ("sooner", "How much sooner than all of an opponent's run the best of five strengths is as good in both"),
        )
    )
    contents: dict[str, list[float]] = {way: [] for way in ways}
    shares: dict[str, list[float]] = {way: [] for way in ways}
    for pair in PAIRS[: 1 if quick else None]:
        pictures = pair.load(SIZE)
        judge = Judge(backbone, *pictures)
        results, taken = {}, {}
        for way, stylised in ways.items():
            results[way], taken[way] = stylised(*pictures)
        scores = {way: judge.scores(picture) for way, picture in results.items()}
        content.add(pair.name, "", "", {way: [score.content] for way, score in scores.items()})
        style.add(pair.name, "", "", {way: [score.style] for way, score in scores.items()})
        seconds.add(pair.name, "s", "", {way: [taken[way]] for way in ways if not way.startswith("raw")})
        for opponent in (way for way in OPPONENTS if way in ways):
            found = _as_good(engine, judge, scores[opponent], *pictures)
            ratio = {f"strength {found[0]}": [taken[opponent] / found[1]]} if found else {"never": [0.0]}
            sooner.add(f"{pair.name}, {opponent}", "times", "at least 10", ratio)
        unstyled = judge.scores(pictures[0]).style
        for way, score in scores.items():
            contents[way].append(score.content)
            shares[way].append(score.style / unstyled)
        _sheet(pair, pictures, results)
    spread.add("distance to the content", "", "close together", contents)
    spread.add("distance to the style, of the content's own", "", "close together", shares)
    return [content, style, spread, seconds, sooner]


def _options() -> dict[str, StylizeOptions]:
    options = {f"strength {strength}": StylizeOptions(size=SIZE, strength=strength) for strength in STRENGTHS}
    for weight in RAW_STYLE_WEIGHTS:
        raw = StylizeOptions(size=SIZE, strength=None, content_weight=1.0, style_weight=weight)
        options[f"raw style weight {weight:g}"] = raw
    return options


def _stylised(engine: Engine, options: StylizeOptions, content: Picture, style: Picture) -> tuple[Picture, float]:
    def picture() -> Picture:
        session = engine.start(content, [Style(style)], options)
        while not session.finished:
            session.advance()
        return session.image()

    return timed(picture)


def _as_good(
    engine: Engine, judge: Judge, goal: Scores, content: Picture, style: Picture
) -> tuple[float, float] | None:
    """The strength that is soonest at least as good in both scores as `goal`, and its seconds; None if none is."""
    found = []
    for strength in STRENGTHS:
        options = StylizeOptions(size=SIZE, strength=strength)
        session, seconds = timed(partial(engine.start, content, [Style(style)], options))
        while not session.finished:
            report, more = timed(session.advance)
            seconds += more
            if report.scale < report.scales or report.iteration % LOOKED_AT_EVERY:
                continue
            scores = judge.scores(session.image())
            if scores.content <= goal.content and scores.style <= goal.style:
                found.append((seconds, strength))
                break
    return None if not found else min(found)[::-1]


def _neural_style(device: torch.device, content: Picture, style: Picture) -> tuple[Picture, float]:
    *_, last = NeuralStyle(content, style, device).optimise(NEURAL_STYLE_ITERATIONS)
    return last.picture, last.seconds


def _style_transfer_pytorch(device: torch.device, content: Picture, style: Picture) -> tuple[Picture, float]:
    return timed(partial(StyleTransferPytorch(content, style, device).optimise, ADAM_ITERATIONS))


OPPONENTS = {
    f"neural-style-pt, {NEURAL_STYLE_ITERATIONS}": _neural_style,
    f"style-transfer-pytorch, {ADAM_ITERATIONS}": _style_transfer_pytorch,
}


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


def _sheet(pair: Pair, pictures: tuple[Picture, Picture], results: dict[str, Picture]) -> None:
    """Content, style and every result side by side, in the order of the table."""
    height = pictures[0].shape[0]
    style = Image.fromarray(pictures[1]).resize((height, height))
    row = np.concatenate([pictures[0], np.asarray(style), *results.values()], axis=1)
    Image.fromarray(row).save(RESULTS / f"looks {pair.name}.png")
