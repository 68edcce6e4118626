"""How pictures look, by the distances of `judge`, and on a contact sheet for the eye.

A method is a curve from near the content to near the style as its strength goes from 0 to 1.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from clock import timed
from engine_side import last_picture
from judge import Judge, Scores
from neural_style import NeuralStyle, Picture
from pairs import PAIRS, Pair
from PIL import Image
from processes import RESULTS
from report import Facts, Report
from style_transfer_pytorch import StyleTransferPytorch

from nst_engine import Engine, Style
from nst_engine.options import StylizeOptions

SIZE = 256
STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
RAW_STYLE_WEIGHTS = (1.0, 10.0, 100.0)  # beside a content weight of 1
NEURAL_STYLE_ITERATIONS = 300
ADAM_ITERATIONS = 150
LOOKED_AT_EVERY = 3  # iterations of the engine between two looks at whether it is as good


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Scores every pair at every strength, with fixed raw weights, and the opponents' results."""
    engine = Engine()
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
        judge = Judge(engine, *pictures)
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
    return timed(lambda: last_picture(engine.start(content, [Style(style)], options)))


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


def _sheet(pair: Pair, pictures: tuple[Picture, Picture], results: dict[str, Picture]) -> None:
    """Content, style and every result side by side, in the order of the table."""
    height = pictures[0].shape[0]
    style = Image.fromarray(pictures[1]).resize((height, height))
    row = np.concatenate([pictures[0], np.asarray(style), *results.values()], axis=1)
    Image.fromarray(row).save(RESULTS / f"looks {pair.name}.png")
