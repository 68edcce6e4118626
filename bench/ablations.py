"""What each choice in the engine is worth: runs with one thing changed, beside runs as it is."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest.mock import patch

from clock import timed
from neural_style import OBJECTIVE, NeuralStyle
from pairs import PAIRS, Pair
from report import Facts, Report

from nst_engine import Engine, Style, hardware, lbfgs
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
    "float32 instead of bfloat16": Change({"precision": "float32"}),
    "convolutions without Winograd": Change(module=hardware, name="multiplies_dearly", value=lambda *_: False),
    "no preconditioner": Change(module=lbfgs, name="FREQUENCY_EXPONENT", value=0.0),
    "preconditioner's exponent -0.5": Change(module=lbfgs, name="FREQUENCY_EXPONENT", value=0.5),
    "preconditioner's exponent -1": Change(module=lbfgs, name="FREQUENCY_EXPONENT", value=1.0),
    "as long as the newest pair says": Change(module=lbfgs, name="LENGTHENING", value=1.0),
    "three times as long": Change(module=lbfgs, name="LENGTHENING", value=3.0),
    "history of 5 pairs": Change({"history_size": 5}),
    "history of 40 pairs": Change({"history_size": 40}),
    "no penalty outside 0-255": Change({"box_weight": 0.0}),
    "start recoloured": Change({"init": "recolored"}),
    "three scales": Change({"scales": 3}),
    "Adam": Change({"optimizer": "adam"}),
    "Adagrad": Change({"optimizer": "adagrad"}),
    "gradient descent": Change({"optimizer": "gradient_descent"}),
}


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """neural-style-pt's objective in its saved pictures, by the engine as it is and with each of the `CHANGES`."""
    iterations = 8 if quick else ITERATIONS
    report = Report("ablations", f"One thing changed, {SIZE} px, {iterations} iterations, relative to none", facts)
    for name, change in CHANGES.items():
        compared = {pair.name: _compared(pair, change, iterations) for pair in PAIRS[: 1 if quick else 2]}
        report.add(f"{name}: loss", "%", "", {pair: [loss] for pair, (loss, _) in compared.items()})
        report.add(f"{name}: an iteration's time", "times", "", {pair: [time] for pair, (_, time) in compared.items()})
    return [report]


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
