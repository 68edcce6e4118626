"""Pictures and masks far larger than the job take the memory of the job, and give the same picture."""

from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Pixels, quick, steps
from PIL import Image

from nst_engine import Engine, Style
from nst_engine.masks import area_resized
from nst_engine.pictures import resize, to_mask, to_tensor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def large(photo: Pixels, texture: Pixels) -> tuple[Pixels, Pixels]:
    """A content and a style of 1200 px and more."""
    return tuple(np.array(Image.fromarray(picture).resize((1320, 1200))) for picture in (photo, texture))


def half(size: int = 900) -> np.ndarray:
    """A mask of the upper half, finer than the job."""
    mask = np.zeros((size, size), np.float32)
    mask[: size // 2] = 1
    return mask


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "subject": {"subject": half()},
    "hole": {"hole": half()},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_session_holds_no_more_than_its_size_needs(
    engine: Engine, photo: Pixels, texture: Pixels, large: tuple[Pixels, Pixels], kind: str, masked: bool
):
    def held(content: Pixels, image: Pixels) -> int:
        style = Style(image, region=half(), source_region=half()) if masked else Style(image)
        session = engine.start(content, [style], quick(size=48), **KINDS[kind])
        return session._resources.material.nbytes

    small = [np.array(Image.fromarray(picture).resize((48, 44))) for picture in large]
    assert held(*large) <= 1.1 * held(*small)


def test_a_hole_without_a_style_holds_no_more_either(engine: Engine, large: tuple[Pixels, Pixels]):
    session = engine.start(large[0][::4, ::4], [], quick(size=48), hole=half(100))
    assert session._resources.material.nbytes < 100 * 48**2


def test_the_last_scale_sees_what_it_would_of_the_whole(engine: Engine, large: tuple[Pixels, Pixels]):
    content, image = large
    session = engine.start(content, [Style(image, region=half())], quick(size=48))
    material = session._resources.material
    height, width = material.content.shape[2:]
    assert (height, width) == (44, 48)
    assert torch.equal(material.content, resize(to_tensor(content, "content", CPU), (height, width)))
    assert torch.equal(material.styles[0], resize(to_tensor(image, "style", CPU), (44, 48)))
    region = area_resized(to_mask(half(), "region", CPU), material.content.shape[2:])
    assert material.masks[0].region is not None
    assert torch.allclose(material.masks[0].region, region, atol=1e-6)
    steps(engine, session, 1)
    assert session.image().shape == (44, 48, 3)


def test_a_mask_keeps_the_detail_that_a_small_content_has_not(engine: Engine, large: tuple[Pixels, Pixels]):
    small = np.array(Image.fromarray(large[0]).resize((24, 22)))
    session = engine.start(small, [Style(large[1], region=half())], quick(size=48))
    region = session._resources.material.masks[0].region
    assert region is not None
    assert region.shape[2:] == (44, 48)
