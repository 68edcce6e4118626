"""What a run does to a picture, and what it does when its optimiser goes astray."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Pixels, as_image, finish, quick, run, shares_of, steps

from nst_engine import Engine, OptionError, StepReport, Style
from nst_engine.backbone import Backbone
from nst_engine.divergence import EXPLOSION
from nst_engine.objective import Objective
from nst_engine.pictures import resize
from nst_engine.stage import Stage
from nst_engine.start import NOISE_DEVIATION


def sound(reports: list[StepReport]) -> bool:
    """Whether every loss is finite and none explodes."""
    totals = [report.total_loss for report in reports]
    finite = all(math.isfinite(value) for report in reports for value in (report.total_loss, *report.losses.values()))
    return finite and all(after <= EXPLOSION * before for before, after in pairwise(totals))


def test_reports_tell_where_a_run_is(engine: Engine, photo: Pixels, texture: Pixels):
    options = quick(size=128, scales=2, iterations=5)
    reports, session = run(engine, photo, texture, options)
    assert [report.iteration for report in reports] == [1, 2, 3, 4, 5]
    assert [(report.scale, report.width, report.height) for report in reports] == [(1, 64, 43)] * 3 + [(2, 128, 85)] * 2
    assert {(report.iterations, report.scales) for report in reports} == {(5, 2)}
    assert [report.finished for report in reports] == [False] * 4 + [True]
    assert session.finished
    assert session.image().shape == (85, 128, 3)
    for report in reports:
        assert set(report.losses) == {"content", "style", "tv", "box"}
        assert report.total_loss == pytest.approx(sum(report.losses.values()), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_brings_the_style_nearer(engine: Engine, photo: Pixels, texture: Pixels, optimizer: str, precision: str):
    options = quick(size=48, iterations=12, optimizer=optimizer, precision=precision, strength=0.95)
    reports, session = run(engine, photo, texture, options)
    assert sound(reports)
    assert reports[-1].losses["style"] < 0.4 * reports[0].losses["style"]
    assert session.image().std() > 10


def test_a_report_is_about_the_picture_that_is_shown(
    engine: Engine, backbone: Callable[[torch.dtype], Backbone], photo: Pixels, texture: Pixels
):
    options = quick(strength=None, style_weight=0.01, padding="replicate")
    session = engine.start(photo, [Style(texture)], options)
    (report,) = steps(engine, session, 1)
    content, style = (resize(as_image(picture), size) for picture, size in ((photo, (43, 64)), (texture, (58, 64))))
    evaluation = Objective(backbone(torch.float32), content, [style], options, [1.0]).evaluate(
        session.state_dict().tensors["image"]
    )
    assert report.losses == pytest.approx(evaluation.losses, rel=1e-5)


def test_a_finished_session_takes_no_step(engine: Engine, photo: Pixels, texture: Pixels):
    _, session = run(engine, photo, texture, quick(size=32, iterations=1))
    with pytest.raises(RuntimeError, match="finished"):
        session.advance()
    (outcome,) = engine.step([session])
    assert isinstance(outcome, RuntimeError)


def test_sessions_stepped_together_do_not_mix(engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels):
    options = [quick(size=32, iterations=3), quick(size=48, iterations=3, optimizer="adam")]
    pairs = [(photo, texture), (checks, photo)]
    together = [
        engine.start(content, [Style(style)], given) for (content, style), given in zip(pairs, options, strict=True)
    ]
    for _ in range(3):
        assert [report.width for report in engine.step(together)] == [32, 48]
    for session, (content, style), given in zip(together, pairs, options, strict=True):
        _, alone = run(engine, content, style, given)
        assert np.array_equal(session.image(), alone.image())


def test_strength_0_stays_the_content(engine: Engine, photo: Pixels, texture: Pixels):
    _, session = run(engine, photo, texture, quick(size=96, strength=0.0, tv_weight=0.0))
    assert np.array_equal(session.image(), photo)
    _, smoothed = run(engine, photo, texture, quick(size=96, strength=0.0))
    assert np.abs(smoothed.image().astype(int) - photo).mean() < 1


def test_more_strength_is_more_style_and_less_content(
    engine: Engine, backbone: Callable[[torch.dtype], Backbone], photo: Pixels, texture: Pixels
):
    content, style = resize(as_image(photo), (32, 48)), resize(as_image(texture), (43, 48))
    measure = Objective(backbone(torch.float32), content, [style], quick(strength=None), [1.0])
    found = []
    for strength in (0.1, 0.3, 0.5, 0.7, 0.9):
        _, session = run(engine, photo, texture, quick(size=48, iterations=10, strength=strength))
        found.append(measure.evaluate(session.state_dict().tensors["image"]).losses)
    for name, order in (("style", 1), ("content", -1)):
        values = [losses[name] for losses in found][::order]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.7 * values[0]


def test_noise_is_seeded(engine: Engine, photo: Pixels, texture: Pixels):
    def first(**changes: Any) -> Pixels:
        return engine.start(photo, [Style(texture)], quick(init="noise", **changes)).image()

    assert np.array_equal(first(seed=3), first(seed=3))
    assert not np.array_equal(first(seed=3), first(seed=4))
    assert first().mean() == pytest.approx(127.5, abs=1.5)
    assert first().std() == pytest.approx(NOISE_DEVIATION, rel=0.05)
    reports, _ = run(engine, photo, texture, quick(size=48, init="noise", iterations=12))
    assert sound(reports)
    assert reports[-1].total_loss < 0.5 * reports[0].total_loss


def test_a_style_without_a_share_counts_for_nothing(engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels):
    _, alone = run(engine, photo, texture, quick())
    for shares in ([1, 0], [7, 0]):
        session = engine.start(photo, shares_of([texture, checks], shares), quick())
        finish(engine, session)
        assert np.array_equal(session.image(), alone.image())
    both = engine.start(photo, shares_of([texture, checks], [1, 1]), quick())
    finish(engine, both)
    assert not np.array_equal(both.image(), alone.image())


@pytest.mark.parametrize(
    ("shares", "field"),
    [
        ([], "styles"),
        ([1, -1], "styles[1].weight"),
        ([math.nan], "styles[0].weight"),
        ([1, math.inf], "styles[1].weight"),
        ([1, None], "styles[1].weight"),
        ([1, "0.5"], "styles[1].weight"),
        ([0, 0], "style_shares"),
    ],
)
def test_unusable_shares_are_named(engine: Engine, photo: Pixels, texture: Pixels, shares: list[Any], field: str):
    with pytest.raises(OptionError) as caught:
        engine.start(photo, shares_of([texture] * len(shares), shares), quick())
    assert caught.value.field == field


@pytest.mark.parametrize(("optimizer", "rate"), [("lbfgs", 300.0), ("adam", 1000.0)])
def test_an_exploding_rate_is_undone(engine: Engine, photo: Pixels, texture: Pixels, optimizer: str, rate: float):
    """Proposals are dropped and the step shrinks until one will do."""
    options = quick(size=48, iterations=16, optimizer=optimizer, learning_rate=rate)
    start = engine.start(photo, [Style(texture)], replace(options, learning_rate=1e-6))
    (before,) = steps(engine, start, 1)
    reports, session = run(engine, photo, texture, options)
    assert sound([before, *reports])
    assert any(after.total_loss == before.total_loss for before, after in pairwise(reports))
    image = session.state_dict().tensors["image"]
    assert (image - image.clamp(0, 255)).abs().max() < 64
    assert session.state_dict().step < 1


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_poisoned_gradient_never_reaches_the_picture(
    engine: Engine, photo: Pixels, texture: Pixels, optimizer: str, poison: float
):
    session = engine.start(photo, [Style(texture)], quick(size=48, optimizer=optimizer))
    (before,) = steps(engine, session, 2)[1:]
    state = session.state_dict()
    gradient = state.tensors["gradient"].clone()
    gradient[0, 1, 3, 4] = poison
    hurt = engine.resume(replace(state, tensors={**state.tensors, "gradient": gradient}), photo, [Style(texture)])
    reports = finish(engine, hurt)
    assert sound([before, *reports])
    assert hurt.state_dict().tensors["image"].isfinite().all()


def test_sessions_say_what_they_hold(engine: Engine, photo: Pixels, texture: Pixels):
    def held(**changes: Any) -> int:
        return engine.start(photo, [Style(texture)], quick(**changes)).nbytes

    picture = 3 * 64 * 43 * 4
    assert held(history_size=20) - held(history_size=10) == 10 * 2 * picture
    assert held(optimizer="adam") < held(history_size=10)


def test_an_engine_names_its_device_and_refuses_others(engine: Engine):
    assert engine.device.type == "cpu"
    assert engine.device_name.endswith("(1 threads)")
    for name in ("cuda:99", "abacus"):
        with pytest.raises(ValueError, match=f"device: '{name}' cannot be used here"):
            Engine(name)


def test_a_bfloat16_run_follows_the_float32_one(engine: Engine, photo: Pixels, texture: Pixels):
    curves = []
    for precision in ("float32", "bfloat16"):
        reports, _ = run(engine, photo, texture, quick(size=48, iterations=6, precision=precision))
        curves.append([report.total_loss for report in reports])
    assert curves[1] == pytest.approx(curves[0], rel=0.1)


def test_a_scale_starts_from_what_the_last_one_made(engine: Engine, photo: Pixels, texture: Pixels):
    """At a tiny learning rate the noise of the first scale comes out of the second, only enlarged."""
    options = quick(size=128, scales=2, iterations=2, init="noise", learning_rate=1e-6)
    session = engine.start(photo, [Style(texture)], options)
    noise = session.state_dict().tensors["image"]
    finish(engine, session)
    enlarged = session.state_dict().tensors["image"]
    assert enlarged.shape == (1, 3, 85, 128)
    assert torch.allclose(enlarged, resize(noise, (85, 128)), atol=0.1)


def test_another_thread_may_read_the_picture_at_any_time(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    """It is the one after the last whole iteration, also while a scale is made or begins."""
    session = engine.start(photo, [Style(texture)], quick(size=128, scales=2, iterations=4))
    whole, read = [session.image()], []

    def reading(work: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*args: Any, **kwargs: Any) -> Any:
            seen = reader.submit(session.image).result()
            read.append((seen, len(whole) - 1))
            return work(*args, **kwargs)

        return observed

    monkeypatch.setattr(Stage, "start", reading(Stage.start))
    monkeypatch.setattr(Stage, "_evaluated", reading(Stage._evaluated))
    with ThreadPoolExecutor(1) as reader:
        while not session.finished:
            session.advance()
            whole.append(session.image())
    assert len(read) == 1 + 6  # the second scale is made, and both begin by evaluating where they start
    assert [picture.shape[1] for picture in whole] == [64, 64, 64, 128, 128]
    assert all(np.array_equal(seen, whole[index]) for seen, index in read)
