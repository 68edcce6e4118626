"""A style picture that was measured is not measured again, and its targets are the same to the bit."""

from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import OTHER_PRECISIONS, Pixels, finish, quick
from torch import Tensor

from nst_engine import Engine, Session, Style
from nst_engine.backbone import Backbone
from nst_engine.statistics import GramMatrix
from nst_engine.style_cache import StyleCache

STYLE_SHAPE = (1, 3, 64, 60)


def engine_with(capacity: int, engine: Engine) -> Engine:
    """One with a cache of that many bytes, and the network of another."""
    made = Engine("cpu", threads=1, style_cache_bytes=capacity)
    made._backbones = engine._backbones
    return made


def start(engine: Engine, content: Pixels, style: Style, **changes: Any) -> Session:
    # The content is lower than the style, so that shapes tell which goes through the network.
    return engine.start(content[:40], [style], quick(**changes))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The style pictures that go through the network."""
    found: list[Tensor] = []
    features = Backbone.features

    def noting(backbone: Backbone, images: Tensor, *given: Any) -> dict[str, Tensor]:
        if images.shape[2] > 48:
            found.append(images)
        return features(backbone, images, *given)

    monkeypatch.setattr(Backbone, "features", noting)
    return found


@pytest.mark.parametrize("statistic", ["gram", "moments", "sliced"])
def test_a_style_is_measured_once(
    engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels, measured: list[Tensor], statistic: str
):
    """Also when the content is another, and a job with it ends in the same bits as without a cache."""
    caching, plain = engine_with(2**28, engine), engine_with(0, engine)
    start(caching, checks, Style(texture), style_statistic=statistic)
    assert len(measured) == 1
    session = start(caching, photo, Style(texture.copy()), style_statistic=statistic)
    assert len(measured) == 1
    fresh = start(plain, photo, Style(texture), style_statistic=statistic)
    start(plain, photo, Style(texture), style_statistic=statistic)
    assert len(measured) == 3
    for one in (session, fresh):
        finish(plain, one)
    left, right = session.state_dict().tensors, fresh.state_dict().tensors
    assert all(torch.equal(left[name], right[name]) for name in left | right)


def test_whatever_a_measure_depends_on_counts(engine: Engine, photo: Pixels, texture: Pixels, measured: list[Tensor]):
    caching = engine_with(2**28, engine)
    half = np.zeros(texture.shape[:2], np.uint8)
    half[:40] = 255
    other = texture.copy()
    other[3, 4, 1] ^= 1
    shallow = {"relu1_1": 1.0, "relu2_1": 1.0}
    cases: list[tuple[Style, dict[str, Any]]] = [
        (Style(texture), {}),
        (Style(other), {}),
        (Style(texture, source_region=half), {}),
        (Style(texture, source_region=255 - half), {}),
        (Style(texture), {"size": 72}),
        (Style(texture), {"style_statistic": "gram"}),
        (Style(texture), {"style_statistic": "sliced"}),
        (Style(texture), {"style_statistic": "sliced", "seed": 1}),
        (Style(texture), {"pooling": "average"}),
        (Style(texture), {"padding": "zeros"}),
        *((Style(texture), precision) for precision in OTHER_PRECISIONS),
        (Style(texture), {"style_layers": shallow}),
        (Style(texture), {"color": "match"}),
    ]
    for count, (style, changes) in enumerate(cases, start=1):
        for _ in range(2):
            start(caching, photo, style, **changes)
            assert len(measured) == count, changes


def test_what_a_measure_does_not_depend_on_does_not_count(
    engine: Engine, photo: Pixels, texture: Pixels, measured: list[Tensor]
):
    caching = engine_with(2**28, engine)
    region = np.zeros(photo.shape[:2], np.uint8)
    region[:, :40] = 255
    for style, changes in (
        (Style(texture), {}),
        (Style(texture, 3.0, region=region), {}),
        (Style(texture), {"seed": 7, "init": "noise", "optimizer": "adam", "strength": 0.9}),
        (Style(texture), {"style_layers": {"relu1_1": 5.0, "relu1_2": 1.0, "relu2_1": 2.0}}),
    ):
        start(caching, photo, style, **changes)
    assert len(measured) == 1


def entry(value: float, numbers: int = 25) -> dict[str, Any]:
    return {"tap": GramMatrix(torch.full((numbers,), value))}


def test_the_least_recently_used_makes_room():
    cache = StyleCache(250)
    asked: list[str] = []

    def get(key: str, numbers: int = 25) -> None:
        cache.get(key, lambda: asked.append(key) or entry(1.0, numbers))

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert asked == ["a", "b", "c", "b"]
    assert cache.nbytes == 200
    get("large", 63)
    assert cache.nbytes == 200
    get("a")
    assert asked == ["a", "b", "c", "b", "large"]


def test_an_engine_refuses_a_cache_below_nothing():
    with pytest.raises(ValueError, match="style_cache_bytes"):
        Engine("cpu", style_cache_bytes=-1)
