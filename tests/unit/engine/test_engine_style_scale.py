"""A style is looked at in the size that is asked for: its pattern comes out finer or coarser."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_runs import Pixels, quick

from nst_engine import Engine, OptionError, Style, stylize

SIDE = 64


@pytest.fixture(scope="module")
def stripes() -> Pixels:
    """Upright stripes, 8 px from one to the next."""
    return np.tile(np.where(np.arange(SIDE) % 8 < 4, 60, 200).astype(np.uint8)[:, None], (SIDE, 1, 3))


def period(picture: Pixels) -> float:
    """From one stripe to the next in pixels: where the power spectrum of the rows has its peak."""
    rows = picture.astype(np.float64).mean(2)
    power = np.square(np.abs(np.fft.rfft(rows - rows.mean(), axis=1))).mean(0)
    return SIDE / int(power.argmax())


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_pattern_grows_with_the_scale(engine: Engine, stripes: Pixels, scale: float):
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    options = quick(size=SIDE, scales=1, iterations=30, strength=1.0, init="noise")
    *_, (_, picture) = stylize(grey, [Style(stripes, scale=scale)], options, engine=engine)
    assert period(picture) == pytest.approx(8 * scale, rel=0.25)


@pytest.mark.parametrize("scale", [0.0, 0.09, 2.01, -1.0, math.inf, math.nan])
def test_scales_that_no_style_can_have(engine: Engine, photo: Pixels, stripes: Pixels, scale: float):
    fine = Style(stripes)
    with pytest.raises(OptionError, match=r"from 0\.1 to 2") as refused:
        engine.start(photo, [fine, replace(fine, scale=scale)], quick(size=48))
    assert refused.value.field == "styles[1].scale"


@pytest.mark.parametrize("scale", [None, "0.5"])
def test_scales_that_are_no_numbers(engine: Engine, photo: Pixels, stripes: Pixels, scale: Any):
    with pytest.raises(OptionError, match="must be a number, not") as refused:
        engine.start(photo, [Style(stripes), Style(stripes, scale=scale)], quick(size=48))
    assert refused.value.field == "styles[1].scale"


def test_numbers_of_numpy_are_numbers(engine: Engine, photo: Pixels, stripes: Pixels):
    engine.start(photo, [Style(stripes, weight=np.int64(2), scale=np.float32(0.5))], quick(size=48))
