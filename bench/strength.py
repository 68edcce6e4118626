"""How alike one strength looks on different pairs, by the image at which the balance of a job is struck.

The strength that brings a picture to a given distance is found for every pair. With a perfect balance all pairs would
need the same one; what is told is how far their log-odds spread. Pictures are made with the engine's own balance alone:
what they owe to the weights of content and style is the same in every other.
"""

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import engine_side
import numpy as np
import torch
from judge import Judge, Scores
from neural_style import NETWORK, as_tensor
from pairs import PAIRS, Pair
from report import Facts, Report

from nst_engine import Engine, Style, balance, weights
from nst_engine.backbone import Backbone
from nst_engine.objective import Objective
from nst_engine.options import StylizeOptions

SIZE = 128
ITERATIONS = 50
STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CONTENT_DISTANCE = 0.2
STYLE_DISTANCE = 0.3  # as a share of the content's own

PLACES = {
    "the content under noise of 100": replace(balance.PLAIN, grey=False, noise=100.0),
    **{f"mid-grey under noise of {noise:g}": replace(balance.PLAIN, noise=noise) for noise in (100, 50, 25, 10, 5, 2)},
    "mid-grey, flat": replace(balance.PLAIN, noise=0.0),
}


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """The spread over all pairs, with each of the `PLACES` and with fixed raw weights."""
    pairs, iterations = (PAIRS[:2], 4) if quick else (PAIRS, ITERATIONS)
    needed = [_needed(pair, iterations) for pair in pairs]
    struck = {"nothing: raw weights": [0.0] * len(pairs)}
    for name, place in PLACES.items():
        with patch.object(balance, "PLAIN", place):
            struck[name] = [_log_weights(pair) for pair in pairs]
    report = Report("strength", f"Spread of the log-odds of strengths, {SIZE} px, {iterations} iterations", facts)
    for name, weighed in struck.items():
        spreads = np.std(np.subtract(needed, np.reshape(weighed, (-1, 1))), axis=0)
        report.add(name, "", "", {"to a content distance": [spreads[0]], "to a style distance": [spreads[1]]})
    return [report]


def _needed(pair: Pair, iterations: int) -> tuple[float, float]:
    """The log of style's weight over content's at which a picture has `CONTENT_DISTANCE`, and `STYLE_DISTANCE`."""
    content, style = pair.load(SIZE)
    judge = Judge(Engine(), content, style)
    scores = []
    for strength in STRENGTHS:
        options = StylizeOptions(size=SIZE, iterations=iterations, strength=strength)
        scores.append(judge.scores(engine_side.stylized(content, [Style(style)], options)))
    odds = _log_weights(pair) + np.log(np.divide(STRENGTHS, np.subtract(1, STRENGTHS)))
    return _where(odds, scores, judge.scores(content).style)


def _where(odds: Sequence[float], scores: Sequence[Scores], unstyled: float) -> tuple[float, float]:
    """Where distances that rise, and fall, with the odds cross what is looked for."""
    rising = [score.content for score in scores]
    falling = [-score.style / unstyled for score in scores]
    return float(np.interp(CONTENT_DISTANCE, rising, odds)), float(np.interp(-STYLE_DISTANCE, falling, odds))


def _log_weights(pair: Pair) -> float:
    """The logarithm of style's weight over content's that the balance in force gives at strength 0.5."""
    content, style = (as_tensor(picture) for picture in pair.load(SIZE))
    backbone = Backbone(NETWORK, weights.load(NETWORK.name), torch.device("cpu"), torch.float32)
    objective = Objective(backbone, content, [style], StylizeOptions(size=SIZE, strength=0.5), [1.0])
    content_weight, style_weight, *_ = objective.loss_weights.tolist()
    return float(np.log(style_weight / content_weight))
