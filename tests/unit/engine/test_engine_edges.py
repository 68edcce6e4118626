"""Odd pictures, and options drawn at random: a sound picture, or an error before work starts."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import DEEPER, SHALLOW, Pixels, finish, quick, run, steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nst_engine import Engine, OptionError, Session, StepReport, Style, StylizeOptions, checkpoint

STATISTICS = ("gram", "moments", "sliced")
OPTIMIZERS = ("lbfgs", "adam", "adagrad", "gradient_descent")
# Each with the default of the other.
STATISTICS_AND_OPTIMIZERS = [(name, "lbfgs") for name in STATISTICS] + [("moments", name) for name in OPTIMIZERS[1:]]
GREYS = {"black": 0, "grey": 128, "white": 255}
LAYERS = [{}, {"relu1_1": 1.0}, {"conv2_2": 0.5, "pool3": 2.0}, {"relu3_1": 1e-3}, {"pool1": 1e4, "relu2_1": 0.0}]


def flat(level: int, height: int = 24, width: int = 32) -> Pixels:
    return np.full((height, width, 3), level, np.uint8)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng((height, width, seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sound(reports: list[StepReport], session: Session) -> bool:
    """Whether all losses and pixels are finite, and no pixel is far outside of what 8 bits hold."""
    finite = all(math.isfinite(value) for report in reports for value in (report.total_loss, *report.losses.values()))
    image = session._stage.image
    return finite and bool(image.isfinite().all()) and bool(((image > -255) & (image < 510)).all())


def varied(picture: Pixels) -> bool:
    return bool(picture.std() > 3)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("level", GREYS.values(), ids=GREYS)
def test_constant_pictures(engine: Engine, photo: Pixels, level: int, statistic: str):
    """A constant content takes on the style; a constant style leaves a content; both make nothing up.

    Two at once are not quite flat, as the network sees the edge of the picture.
    """
    options = quick(**DEEPER, size=32, iterations=10, style_statistic=statistic)
    for content, style in ((flat(level), photo), (photo, flat(level)), (flat(level), flat(255 - level))):
        reports, session = run(engine, content, style, options)
        assert sound(reports, session)
        if content is photo or style is photo:
            assert varied(session.image())
        else:
            assert session.image().std() < 25
        assert reports[-1].total_loss < reports[0].total_loss or reports[-1].undone


STRIPS = {
    "1:20": ((320, 16), (30, 40), 320),
    "20:1": ((16, 320), (40, 30), 320),
    "a style of 1:20": ((24, 32), (320, 16), 32),
    "16 x 16": ((16, 16), (16, 16), 16),
    "a style 8 times as large": ((16, 24), (128, 192), 24),
    "a style 8 times smaller": ((48, 64), (6, 8), 64),
    "a style one pixel wide": ((24, 32), (40, 1), 32),
    "a style one pixel high": ((24, 32), (1, 40), 32),
    "a style of one pixel": ((24, 32), (1, 1), 32),
}


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("name", STRIPS)
def test_odd_shapes(engine: Engine, name: str, optimizer: str):
    content, style, size = STRIPS[name]
    reports, session = run(engine, noise(*content), noise(*style), quick(size=size, iterations=3, optimizer=optimizer))
    assert sound(reports, session)
    assert session.image().shape == (*(round(side * size / max(content)) for side in content), 3)
    assert varied(session.image())
    assert reports[-1].total_loss <= 2 * reports[0].total_loss


@pytest.mark.parametrize(("statistic", "optimizer"), STATISTICS_AND_OPTIMIZERS)
def test_a_style_equal_to_the_content_leaves_it_nearly_alone(
    engine: Engine, photo: Pixels, statistic: str, optimizer: str
):
    """Optimisers whose first step has the length of their rate leave it, by that much at most, on the mean."""
    options = quick(size=64, iterations=5, style_statistic=statistic, optimizer=optimizer, tv_weight=0.0)
    part = photo[:40, :64]
    reports, session = run(engine, part, part, options)
    assert sound(reports, session)
    change = np.abs(session.image().astype(int) - part).mean()
    assert change <= {"lbfgs": 1, "gradient_descent": 1, "adam": 5, "adagrad": 5}[optimizer]


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize(("statistic", "optimizer"), STATISTICS_AND_OPTIMIZERS)
def test_either_end_of_strength_from_noise(
    engine: Engine, photo: Pixels, texture: Pixels, statistic: str, optimizer: str, strength: float
):
    options = quick(size=32, init="noise", style_statistic=statistic, optimizer=optimizer, strength=strength)
    reports, session = run(engine, photo, texture, options)
    assert sound(reports, session)
    assert varied(session.image())
    assert reports[-1].total_loss < reports[0].total_loss
    assert reports[-1].losses["content" if strength else "style"] == 0


@pytest.mark.parametrize("only", ["content_layers", "style_layers"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_side_without_layers(engine: Engine, photo: Pixels, texture: Pixels, statistic: str, only: str):
    other = {"content_layers": "style_layers", "style_layers": "content_layers"}[only]
    options = quick(size=32, iterations=4, style_statistic=statistic, init="noise", **{other: {}})
    reports, session = run(engine, photo, texture, options)
    assert sound(reports, session)
    assert reports[-1].losses[other.removesuffix("_layers")] == 0
    assert reports[-1].total_loss < reports[0].total_loss


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Both ends, and between them numbers of every magnitude."""
    return st.one_of(st.sampled_from([low, high]), st.floats(math.log10(max(low, 1e-6)), math.log10(high)).map(powers))


def powers(exponent: float) -> float:
    return 10.0**exponent


MASKS = st.one_of(
    st.none(),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9)).map(lambda it: noise(*it)[..., 0]),
    st.just(np.eye(24, dtype=np.uint8)),
)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Pixels, list[Style], dict[str, Any], dict[str, Any]]:
    """A content, styles, what else `Engine.start` takes, and options, of which all are within their ranges."""

    def picture() -> Pixels:
        height, width = draw(st.integers(1, 96)), draw(st.integers(1, 96))
        return draw(st.sampled_from([noise(height, width, 3), flat(height * 2, height, width)]))

    styles = [
        Style(picture(), draw(numbers(1e-3, 1e3)), region=draw(MASKS), source_region=draw(MASKS))
        for _ in range(draw(st.integers(1, 3)))
    ]
    raw = draw(st.booleans())
    options = {
        "size": draw(st.integers(16, 96)),
        "iterations": draw(st.integers(3, 5)),
        "scales": draw(st.integers(1, 6)),
        "tv_weight": draw(numbers(0.0, 1e6)),
        "box_weight": draw(numbers(0.0, 1e6)),
        "content_layers": draw(st.sampled_from([SHALLOW["content_layers"], *LAYERS])),
        "style_layers": draw(st.sampled_from([SHALLOW["style_layers"], *LAYERS])),
        "style_statistic": draw(st.sampled_from(("auto", *STATISTICS))),
        "min_improvement": draw(numbers(0.0, 1.0)),
        "window": draw(st.integers(1, 4)),
        "content_threshold": draw(st.one_of(st.none(), numbers(0.0, 1e12))),
        "optimizer": draw(st.sampled_from(OPTIMIZERS)),
        "learning_rate": draw(st.one_of(st.none(), numbers(1e-6, 1e3))),
        "history_size": draw(st.integers(1, 100)),
        "momentum": draw(st.floats(0.0, 0.999)),
        "weight_decay": draw(st.floats(0.0, 1.0)),
        "init": draw(st.sampled_from(("content", "noise", "recolored", "textured", "image"))),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "color": draw(st.sampled_from(("style", "keep_luminance", "match"))),
        "protection": draw(st.floats(0.0, 1.0)),
        "parametrization": draw(st.sampled_from(("pixels", "fourier", "network"))),
        "pooling": draw(st.sampled_from(("max", "average"))),
        "padding": draw(st.sampled_from(("auto", "replicate", "zeros"))),
        "precision": draw(st.sampled_from(("float32", "bfloat16"))),
        "strength": None if raw else draw(st.floats(0.0, 1.0)),
        **({"content_weight": draw(numbers(0.0, 1e12)), "style_weight": draw(numbers(0.0, 1e12))} if raw else {}),
    }
    given = {"initial": picture() if options["init"] == "image" else None, "subject": draw(MASKS)}
    return picture(), styles, options, given


def holds_its_promises(
    engine: Engine, content: Pixels, styles: list[Style], options: dict[str, Any], given: dict[str, Any]
) -> None:
    """Two steps, a cut and the rest are sound and the same as without the cut; or an error comes before them."""
    session: Session | None = None
    try:
        session = engine.start(content, styles, StylizeOptions(**options), **given)
        reports = steps(engine, session, 1)
    except OptionError:
        assert session is None or session.iteration == 0
        return
    if not session.finished:
        reports += steps(engine, session, 1)
    state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    resumed = engine.resume(state, content, styles, subject=given["subject"])
    reports += finish(engine, session)
    finish(engine, resumed)
    assert all(
        math.isfinite(value) for report in reports for value in (report.total_loss, *report.losses.values())
    )  # fmt: skip
    long = max(content.shape[:2])
    assert max(session.image().shape[:2]) == options["size"]
    assert session.image().shape[:2] == (reports[-1].height, reports[-1].width)
    assert abs(reports[-1].height - content.shape[0] * options["size"] / long) <= 0.5
    assert session.image().dtype == np.uint8
    ended, again = session.state_dict(), resumed.state_dict()
    assert replace(ended, tensors={}) == replace(again, tensors={})
    assert all(torch.equal(ended.tensors[name], again.tensors[name]) for name in ended.tensors)
    assert all(tensor.isfinite().all() for tensor in ended.tensors.values())


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(job=jobs())
def test_any_options_make_a_picture_or_an_error(engine: Engine, job: Any):
    holds_its_promises(engine, *job)
