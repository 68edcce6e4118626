"""What each choice in the engine is worth: runs with one thing changed, beside runs as it is."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest.mock import patch

import engine_side
import numpy as np
from clock import timed
from judge import Judge
from neural_style import OBJECTIVE, NeuralStyle
from pairs import PAIRS, Pair
from PIL import Image
from processes import RESULTS
from report import Facts, Report

from nst_engine import Engine, Style, hardware, lbfgs, onednn, wasserstein
from nst_engine.options import StylizeOptions

SIZE = 256
ITERATIONS = 80


@dataclass(frozen=True)
class Change:
    """Options that are others, and a name of a module that is another one."""

    options: Mapping[str, Any] = field(default_factory=dict)
    module: Any = None
    name: str = ""
    value: Any = None

    def made(self) -> AbstractContextManager[Any]:
        """For as long as it is entered."""
        return nullcontext() if self.module is None else patch.object(self.module, self.name, self.value)


CHANGES = {
    "precision float32": Change({"precision": "float32"}),
    "convolutions without Winograd": Change(module=hardware, name="multiplies_dearly", value=lambda *_: False),
    "convolutions' weights in one layout": Change(module=onednn, name="packed_bytes", value=lambda *_: 0),
    "no preconditioner": Change(module=lbfgs, name="FREQUENCY_EXPONENT", value=0.0),
    "preconditioner's exponent -0.5": Change(module=lbfgs, name="FREQUENCY_EXPONENT", value=0.5),
    "preconditioner's exponent -1": Change(module=lbfgs, name="FREQUENCY_EXPONENT", value=1.0),
    "as long as the newest pair says": Change(module=lbfgs, name="LENGTHENING", value=1.0),
    "three times as long": Change(module=lbfgs, name="LENGTHENING", value=3.0),
    "history of 5 pairs": Change({"history_size": 5}),
    "history of 40 pairs": Change({"history_size": 40}),
    "no penalty outside 0-255": Change({"box_weight": 0.0}),
    "start recoloured": Change({"init": "recolored"}),
    "start recoloured, with the style's detail": Change({"init": "textured"}),
    "three scales": Change({"scales": 3}),
    "Adam": Change({"optimizer": "adam"}),
    "Adagrad": Change({"optimizer": "adagrad"}),
    "gradient descent": Change({"optimizer": "gradient_descent"}),
    "coefficients of the picture": Change({"parametrization": "fourier"}),
    "a network's output": Change({"parametrization": "network"}),
}
SEEN = {"as it is": Change()} | {
    f"directions below {share:g} of the largest variance taken for constant": Change(
        module=wasserstein, name="NOISE_SHARE", value=share
    )
    for share in (0.001, 0.003, 0.03, 0.1)
}
SEEN |= {f"{name} as the style statistic": Change({"style_statistic": name}) for name in ("gram", "sliced")}
SEEN |= {f"{name} as the parametrization": Change({"parametrization": name}) for name in ("fourier", "network")}


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """What each of the `CHANGES` does to a loss, and each of those `SEEN` to the distances of `judge`."""
    return [_losses(facts, quick=quick), _distances(facts, quick=quick)]


def _losses(facts: Facts, *, quick: bool) -> Report:
    """neural-style-pt's objective in its saved pictures, by the engine as it is and with each of the `CHANGES`."""
    iterations = 8 if quick else ITERATIONS
    report = Report("ablations", f"One thing changed, {SIZE} px, {iterations} iterations, relative to none", facts)
    for name, change in CHANGES.items():
        compared = {pair.name: _compared(pair, change, iterations) for pair in PAIRS[: 1 if quick else 2]}
        report.add(f"{name}: loss", "%", "", {pair: [loss] for pair, (loss, _) in compared.items()})
        report.add(f"{name}: an iteration's time", "times", "", {pair: [time] for pair, (_, time) in compared.items()})
    return report


def _distances(facts: Facts, *, quick: bool) -> Report:
    """Of the default picture, from content and style; writes a sheet: content, and all in the order of the table."""
    title = f"One thing changed in the default, {SIZE} px: distances to the content and to the style"
    report = Report("ablations-looks", title, facts)
    for pair in PAIRS[: 1 if quick else 3]:
        content, style = pair.load(SIZE)
        judge = Judge(Engine(), content, style)
        pictures = [content]
        for name, change in SEEN.items():
            with change.made():
                options = StylizeOptions(size=SIZE, **({"iterations": 6} if quick else {}), **change.options)
                pictures.append(engine_side.stylized(content, [Style(style)], options))
            scores = judge.scores(pictures[-1])
            report.add(f"{pair.name}, {name}", "", "", {"content": [scores.content], "style": [scores.style]})
        Image.fromarray(np.hstack(pictures)).save(RESULTS / f"ablations {pair.name}.png")
    return report


def _compared(pair: Pair, change: Change, iterations: int) -> tuple[float, float]:
    """By how many per cent the loss is higher, and how many times as long an iteration takes; both run by turns."""
    content, style = pair.load(SIZE)
    options = {"size": SIZE, "iterations": iterations, "scales": 1, **OBJECTIVE}
    plain = Engine().start(content, [Style(style)], StylizeOptions(**options))
    with change.made():
        changed = Engine().start(content, [Style(style)], StylizeOptions(**{**options, **change.options}))
    ratios = []
    while not (plain.finished or changed.finished):
        before = timed(plain.advance)[1]
        with change.made():
            ratios.append(timed(changed.advance)[1] / before)
    yardstick = NeuralStyle(content, style, Engine().device)
    first, second = (yardstick.loss_of(session.image()) for session in (plain, changed))
    return 100 * (second / first - 1), median(ratios)
