"""A start with the style's fine detail where the content has less of its own."""

import math

import numpy as np
import pytest
import torch
from engine_runs import Pixels, as_image, finish, quick, shares_of
from torch import Tensor

from nst_engine import Engine, Style
from nst_engine.pictures import resize
from nst_engine.texture import covering, detail, textured

SIZE = (43, 64)  # of a photo at a long side of 64


def grain(seed: int, size: tuple[int, int] = SIZE, deviation: float = 20.0) -> Tensor:
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    return 128 + deviation * noise


def contrast(image: Tensor) -> float:
    """The deviation of an image's detail."""
    return detail(image).square().mean().sqrt().item()


def started(engine: Engine, content: Pixels, styles: list[Style], **options: object) -> Tensor:
    return engine.start(content, styles, quick(init="textured", **options)).state_dict().tensors["image"]


def flat(level: int) -> Pixels:
    return np.full((64, 96, 3), level, np.uint8)


@pytest.mark.parametrize("size", [(5, 7), (10, 14), (23, 40), (4, 3)])
def test_an_image_is_continued_by_its_mirror_images(size: tuple[int, int]):
    image = grain(1, (5, 7))
    repeats = [-(-wanted // own) for wanted, own in zip(size, (5, 7), strict=True)]
    more = [(0, 5 * (repeats[0] - 1)), (0, 7 * (repeats[1] - 1))]
    whole = np.pad(image.numpy(), ((0, 0), (0, 0), *more), mode="symmetric")
    top, left = ((have - wanted) // 2 for have, wanted in zip(whole.shape[2:], size, strict=True))
    assert np.array_equal(covering(image, size).numpy(), whole[:, :, top : top + size[0], left : left + size[1]])


def test_detail_has_no_coarse_shapes():
    rows, columns = torch.meshgrid(torch.linspace(0, 255, 128), torch.linspace(0, 255, 192), indexing="ij")
    ramp = (0.5 * (rows + columns)).expand(1, 3, 128, 192)
    assert detail(ramp)[..., 12:-12, 12:-12].abs().max() < 2
    fine = grain(2, (128, 192), 1.0)
    assert torch.allclose(detail(ramp + fine) - detail(ramp), detail(fine), atol=1e-3)
    assert contrast(fine) == pytest.approx(1.0, rel=0.05)


def test_the_less_there_is_the_more_is_added():
    texture = detail(grain(3))
    for own, wanted in ((0.0, 20.0), (5.0, math.hypot(5, 20 * math.sqrt(1 - 1 / 4)))):
        assert contrast(textured(grain(4, deviation=own), texture)) == pytest.approx(wanted, rel=0.06), own
    rich = grain(5, deviation=15.0)
    assert (textured(rich, texture) - rich).abs().mean() < 0.2
    assert torch.equal(textured(grain(6), torch.zeros_like(texture)), grain(6).clamp(0, 255))


def test_nothing_leaves_the_range():
    bright = textured(torch.full((1, 3, *SIZE), 250.0), detail(grain(7, deviation=60.0)))
    assert 0 <= bright.min() < bright.max() == 255


def test_flat_content_is_painted_with_the_styles_own_detail(engine: Engine, texture: Pixels):
    image = started(engine, flat(90), [Style(texture)])
    style = covering(resize(as_image(texture), (58, 64)), SIZE)
    assert np.corrcoef(detail(image).flatten(), detail(style).flatten())[0, 1] > 0.95


def test_each_region_has_the_detail_of_its_style(engine: Engine, texture: Pixels):
    region, source = np.zeros((64, 96), np.uint8), np.zeros((72, 80), np.uint8)
    region[:, :48] = 255
    half = texture.copy()
    half[:, 40:] = 128
    source[:, 40:] = 255
    image = started(engine, flat(90), [Style(half, region=region)])
    assert contrast(image[..., :28]) > 10
    assert contrast(image[..., 36:]) < 0.5
    for white in (255, 100):
        source[:, 40:] = white
        taken_from_the_flat_half = started(engine, flat(90), [Style(half, region=region, source_region=source)])
        assert contrast(taken_from_the_flat_half) < 3


def test_styles_add_up_by_their_shares_to_as_much_as_one(engine: Engine):
    styles = [(128 + 30 * np.random.default_rng(seed).standard_normal((64, 64, 3))).clip(0, 255) for seed in (1, 2)]
    pictures = [style.astype(np.uint8) for style in styles]
    ones = [detail(covering(as_image(picture), SIZE)).flatten() for picture in pictures]
    image = started(engine, flat(128), shares_of(pictures, [3.0, 1.0]))
    assert contrast(image) == pytest.approx(contrast(as_image(pictures[0])), rel=0.1)
    likeness = [np.corrcoef(detail(image).flatten(), one)[0, 1] for one in ones]
    assert likeness[0] / likeness[1] == pytest.approx(3, rel=0.2)
    assert contrast(started(engine, flat(128), shares_of(pictures, [0.0, 1.0]))) > 10


def test_a_flat_content_ends_nearer_to_the_style_than_from_the_content(engine: Engine, texture: Pixels):
    losses = {
        init: finish(engine, engine.start(flat(120), [Style(texture)], quick(init=init, iterations=6)))[-1].total_loss
        for init in ("recolored", "textured")
    }
    assert losses["textured"] < losses["recolored"]
