"""The schedule's properties, and pictures of odd shapes put through it."""

from itertools import pairwise

import numpy as np
import pytest
from engine_runs import Pixels, run
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_engine import Engine, OptionError, Style, StylizeOptions
from nst_engine.schedule import MINIMUM_COARSE_SIDE, Scale, plan, taps_in_use

SIDES = st.integers(1, 6000)
BLACK, WHITE, GREY = ((0, 0, 0), (255, 255, 255), (128, 128, 128))


def planned(height: int, width: int, options: StylizeOptions) -> tuple[Scale, ...] | OptionError:
    """The schedule, or why there is none."""
    try:
        return plan(height, width, options)
    except OptionError as error:
        return error


def options_of(size: int, iterations: int, scales: int) -> StylizeOptions:
    return StylizeOptions(size=size, iterations=iterations, scales=scales)


@settings(max_examples=300, deadline=None)
@given(
    height=SIDES, width=SIDES, size=st.integers(16, 8192), iterations=st.integers(1, 10_000), scales=st.integers(1, 6)
)
def test_the_schedule_holds_its_promises(height: int, width: int, size: int, iterations: int, scales: int):
    """Or else it names the size, and the cure it offers works."""
    stages = planned(height, width, options_of(size, iterations, scales))
    if isinstance(stages, OptionError):
        assert stages.field == "size"
        enough = int(stages.message.split("set size to at least ")[1].split(",")[0])
        assert enough > size
        if enough <= 8192:
            plan(height, width, options_of(enough, iterations, scales))
        return
    assert stages[0].first == 0
    assert stages[-1].last == iterations
    assert all(stage.first < stage.last for stage in stages)
    assert all(one.last == other.first for one, other in pairwise(stages))
    assert [stage.number for stage in stages] == list(range(1, len(stages) + 1))
    assert len(stages) <= min(scales, iterations)
    assert max(stages[-1].height, stages[-1].width) == size
    sides = [max(stage.height, stage.width) for stage in stages]
    assert all(one < other for one, other in pairwise(sides))
    assert all(side >= MINIMUM_COARSE_SIDE for side in sides[:-1])
    assert min(min(stage.height, stage.width) for stage in stages) >= 16
    shares = [stage.last - stage.first for stage in stages]
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(100, 4000), width=st.integers(100, 4000), size=st.integers(16, 2048))
def test_the_last_scale_keeps_the_aspect(height: int, width: int, size: int):
    stages = planned(height, width, options_of(size, 10, 1))
    if isinstance(stages, OptionError):
        return
    (stage,) = stages
    assert abs(stage.height - height * size / max(height, width)) <= 0.5
    assert abs(stage.width - width * size / max(height, width)) <= 0.5


def test_each_scale_doubles():
    stages = plan(427, 640, options_of(512, 100, 3))
    assert [(stage.width, stage.height, stage.last - stage.first) for stage in stages] == [
        (128, 85, 34),
        (256, 171, 33),
        (512, 342, 33),
    ]


def test_only_taps_with_a_weight_are_in_use():
    options = StylizeOptions(
        content_layers={"relu4_2": 0.0, "conv2_1": 1.0}, style_layers={"relu1_1": 2.0, "pool5": 0.0}
    )
    assert taps_in_use(options) == ["relu1_1", "conv2_1"]


def flat(colour: tuple[int, int, int], height: int = 24, width: int = 32) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


ODD = {
    "a strip": (noise(16, 320), noise(30, 40), 320),
    "a standing strip": (noise(320, 16), noise(30, 40), 320),
    "a style that is a strip": (noise(40, 30), noise(4, 300), 48),
    "a stamp": (noise(16, 16), noise(16, 16), 16),
    "a stamp enlarged": (noise(16, 16), noise(16, 16), 80),
    "one pixel": (noise(1, 1), noise(1, 1), 32),
    "a style far larger": (noise(24, 32), noise(350, 450), 32),
    "a style far smaller": (noise(60, 70), noise(3, 2), 64),
    "constant content": (flat(GREY), noise(30, 40), 48),
    "constant style": (noise(30, 40), flat(WHITE), 48),
    "black on white": (flat(BLACK), flat(WHITE), 48),
    "black on black": (flat(BLACK), flat(BLACK), 48),
    "the same twice": (noise(30, 40), noise(30, 40), 48),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_come_out_whole(engine: Engine, name: str):
    content, style, size = ODD[name]
    options = StylizeOptions(size=size, iterations=2, precision="float32")
    reports, session = run(engine, content, style, options)
    assert all(np.isfinite(report.total_loss) for report in reports)
    assert max(session.image().shape[:2]) == size
    assert session.state_dict().tensors["image"].isfinite().all()


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("colour", [BLACK, GREY, WHITE])
def test_a_side_without_a_gradient_does_no_harm(engine: Engine, strength: float, colour: tuple[int, int, int]):
    """Constant pictures of one colour already agree: there is nothing to do."""
    options = StylizeOptions(size=32, iterations=2, strength=strength, precision="float32")
    _, session = run(engine, flat(colour), flat(colour), options)
    assert np.abs(session.image().astype(int) - np.array(colour)).max() <= 1


@pytest.mark.parametrize(("statistic", "change"), [("gram", 0), ("moments", 4), ("sliced", 0)])
def test_a_style_equal_to_the_content_leaves_it_alone(engine: Engine, statistic: str, change: int):
    """Moments leave a trace: directions in which the style hardly varies are taken for constant."""
    picture = noise(48, 48)
    given = {"tv_weight": 0.0, "precision": "float32", "style_statistic": statistic}
    _, session = run(engine, picture, picture, StylizeOptions(size=48, iterations=4, scales=1, **given))
    assert np.abs(session.image().astype(int) - picture).max() <= change


@pytest.mark.parametrize(
    ("height", "width", "size"), [(5, 400, 320), (400, 5, 320), (100, 100, 16 - 1), (1, 6000, 8192)]
)
def test_what_is_too_thin_is_refused_before_work_starts(engine: Engine, height: int, width: int, size: int):
    with pytest.raises(OptionError) as caught:
        engine.start(noise(height, width), [Style(noise(16, 16))], StylizeOptions(size=size))
    assert caught.value.field == "size"
