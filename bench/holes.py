"""Filling a hole: how long it takes, and how near what comes is to what had been there.

An iteration that sees what is around the hole, against one that sees the whole picture; and what fills a hole in
cuttings of photographs, by the distances of `judge` from what was cut out, and on a sheet for the eye.
"""

from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from unittest.mock import patch

import cv2
import numpy as np
from clock import timed
from engine_side import last_picture
from jobs import CONTENT
from judge import Judge
from neural_style import Picture
from pairs import SKIMAGE
from PIL import Image
from processes import RESULTS
from report import Facts, Report

from nst_engine import Engine, Session, Style, StylizeOptions, material, objective
from nst_engine.tiling import whole

SHARE = 0.125  # of the picture's sides, the hole's

SIDE, HOLE = 128, slice(44, 84)  # of cuttings, in pixels; the hole is a square
SCALES, ITERATIONS = 2, 60
# Where cuttings are: a regular texture, three that are not, and the edge of a thing on a ground.
CUTTINGS = {
    "brick": ("brick.png", 100, 100),
    "gravel": ("gravel.png", 100, 100),
    "grass": ("grass.png", 100, 100),
    "wood": ("coffee.png", 10, 440),
    "flag and wall": ("astronaut.png", 10, 20),
}


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """How long it takes, and what it looks like."""
    return [_speed(facts, quick=quick), _looks(facts, quick=quick)]


def _speed(facts: Facts, *, quick: bool) -> Report:
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
    return report


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


def _looks(facts: Facts, *, quick: bool) -> Report:
    """Fills all of the `CUTTINGS` in each way; writes a sheet with a row for each: as it was, then in each way."""
    report = Report("holes-looks", f"Distance from what had been in a hole of {HOLE.stop - HOLE.start} px", facts)
    rows = []
    for name, (file, top, left) in list(CUTTINGS.items())[: 1 if quick else None]:
        picture = np.asarray(Image.open(SKIMAGE / file).convert("RGB"))[top : top + SIDE, left : left + SIDE]
        judge = Judge(Engine(), picture[HOLE, HOLE], picture[HOLE, HOLE])
        filled = _filled(picture, 4 if quick else ITERATIONS)
        report.add(name, "", "", {way: [judge.scores(one[HOLE, HOLE]).style] for way, one in filled.items()})
        rows.append(np.hstack((picture, *filled.values())))
    Image.fromarray(np.vstack(rows)).save(RESULTS / "holes.png")
    return report


def _filled(picture: Picture, iterations: int) -> dict[str, Picture]:
    """The picture with a new middle, by the way in which it was found."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[HOLE, HOLE] = 255
    options = StylizeOptions(size=SIDE, iterations=iterations, scales=SCALES)
    outside = Style(picture, source_region=255 - mask)
    engine = Engine()
    return {
        "Telea": cv2.inpaint(picture, mask, 3, cv2.INPAINT_TELEA),
        "statistics of all that is outside": last_picture(engine.start(picture, [outside], options, hole=mask)),
        "patches alone": engine.start(picture, [], replace(options, scales=1), hole=mask).image(),
        "the engine": last_picture(engine.start(picture, [], options, hole=mask)),
    }
