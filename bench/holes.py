"""Filling a hole: an iteration that sees what is around it, against one that sees the whole picture."""

from contextlib import ExitStack
from statistics import median
from unittest.mock import patch

import numpy as np
from clock import timed
from jobs import CONTENT
from PIL import Image
from report import Facts, Report

from nst_engine import Engine, Session, StylizeOptions, material, objective
from nst_engine.tiling import whole

SHARE = 0.125  # of the picture's sides, the hole's


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Runs both by turns, at sizes whose maps fit into memory as a whole."""
    sizes, iterations = ((128,), 3) if quick else ((256, 512, 1024), 12)
    title = f"A hole of {SHARE:g} of the picture's sides: an iteration, against one that sees the whole picture"
    report = Report("holes", title, facts)
    for size in sizes:
        windowed, entire = _started(size, iterations, entire=False), _started(size, iterations, entire=True)
        ratios = []
        while not windowed.finished:
            (first, seconds), (second, longer) = timed(windowed.advance), timed(entire.advance)
            ratios.append(longer / seconds)
        report.add(f"{size} px: an iteration, sooner by", "times", "", {"in the window": [median(ratios)]})
        higher = 100 * (first.losses["style"] / second.losses["style"] - 1)
        report.add(f"{size} px: the style loss at the end, higher by", "%", "", {"in the window": [higher]})
    return [report]


def _started(size: int, iterations: int, *, entire: bool) -> Session:
    content = np.asarray(Image.open(CONTENT).convert("RGB").resize((size, size)))
    hole = np.zeros((size, size), np.float32)
    start, side = size // 3, round(SHARE * size)
    hole[start : start + side, start : start + side] = 1.0
    with ExitStack() as stack:
        for module in (material, objective) if entire else ():
            stack.enter_context(patch.object(module, "window", lambda _, size, *__: whole(*size)))
        options = StylizeOptions(size=size, iterations=iterations, scales=1)
        return Engine(memory_budget=2**40).start(content, [], options, hole=hole)
