"""Regions of the content take regions of styles, against statistics of the positions picked out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import SHALLOW, Pixels, as_image, at_balance, finish, noisy, quick, steps
from reference import Trunk, gram, mean_square, relative_error
from torch import Tensor

from nst_engine import Engine, OptionError, Style, StylizeOptions, checkpoint
from nst_engine.backbone import Backbone
from nst_engine.balance import PLAIN
from nst_engine.masks import StyleMasks, area_resized, distinct_regions, position_weights
from nst_engine.objective import Objective

Backbones = Callable[[torch.dtype], Backbone]
RAW = {**SHALLOW, "content_layers": {}, "strength": None, "tv_weight": 0.0, "box_weight": 0.0}
STATISTICS = ["gram", "moments", "sliced"]


def mask_of(height: int, width: int, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
    """1 in these rows and columns, else 0."""
    mask = torch.zeros(1, 1, height, width)
    mask[:, :, rows, columns] = 1.0
    return mask


def soft_mask(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


def masked_gram(features: Tensor, mask: Tensor) -> Tensor:
    """Block means of the mask, and the Gram matrix of the features times them, over their own sum."""
    _, height, width = features.shape
    tall, wide = mask.shape[2] // height, mask.shape[3] // width
    cells = mask[0, 0, : height * tall, : width * wide].double().reshape(height, tall, width, wide).mean((1, 3))
    return torch.einsum("hw,chw,dhw->cd", cells, features, features) / (cells.sum() * len(features))


def evaluated(backbone: Backbone, styles: list[Tensor], masks: list[StyleMasks], image: Tensor, **given: Any) -> Any:
    shares = given.pop("shares", [1.0] * len(styles))
    objective = Objective(backbone, image, styles, StylizeOptions(**{**RAW, **given}), shares, masks)
    return objective.evaluate(image)


def test_each_region_is_measured_over_its_own_area(
    backbone: Backbones, real_weights: dict[str, Tensor], photo: Pixels, texture: Pixels, checks: Pixels
):
    """Two soft regions, and a part of one style; every side is a multiple of eight, so that blocks fit the maps."""
    image, styles = noisy(photo), [as_image(texture), as_image(checks)]
    regions, source = [soft_mask(64, 96, 1), soft_mask(64, 96, 2) ** 4], soft_mask(72, 80, 3)
    masks = [StyleMasks(regions[0], source), StyleMasks(regions[1])]
    trunk, variable = Trunk(real_weights), image.double().requires_grad_(True)
    maps, *wanted = (trunk.maps(picture, SHALLOW["style_layers"]) for picture in (variable, *styles))
    total = torch.zeros((), dtype=torch.float64)
    for tap in SHALLOW["style_layers"]:
        targets = masked_gram(wanted[0][tap], source), gram(wanted[1][tap])
        for region, target in zip(regions, targets, strict=True):
            total = total + region.double().mean() * mean_square(masked_gram(maps[tap], region) - target)
    (gradient,) = torch.autograd.grad(total, variable)
    evaluation = evaluated(backbone(torch.float32), styles, masks, image)
    assert evaluation.losses["style"] == pytest.approx(float(total.detach()), rel=1e-4)
    assert relative_error(evaluation.gradient, gradient) < 1e-4


@pytest.mark.parametrize("name", STATISTICS)
def test_whole_masks_are_no_masks(backbone: Backbones, photo: Pixels, texture: Pixels, name: str):
    image, style, whole = noisy(photo), as_image(texture), StyleMasks(torch.ones(1, 1, 9, 5), torch.ones(1, 1, 7, 7))
    plain, masked = (
        evaluated(backbone(torch.float32), [style], [masks], image, style_statistic=name)
        for masks in (StyleMasks(), whole)
    )
    assert masked.losses["style"] == pytest.approx(plain.losses["style"], rel=1e-4)
    assert relative_error(masked.gradient, plain.gradient) < 1e-3


@pytest.mark.parametrize("name", STATISTICS)
def test_a_region_feels_nothing_of_the_rest(
    backbone: Backbones, photo: Pixels, texture: Pixels, checks: Pixels, name: str
):
    """Pixels that it does not see change nothing and have no gradient; nor do those of the style."""
    image, style = noisy(photo), as_image(texture)
    left, top = mask_of(64, 96, columns=slice(0, 40)), mask_of(72, 80, rows=slice(0, 32))
    other_image, other_style = image.clone(), style.clone()
    other_image[..., 64:], other_style[:, :, 56:] = as_image(checks)[..., :32], 0.0
    losses = []
    for picture, taken in ((image, style), (other_image, other_style)):
        masks = [StyleMasks(left, top)]
        evaluation = evaluated(backbone(torch.float32), [taken], masks, picture, style_statistic=name)
        assert evaluation.gradient[..., 64:].abs().max() == 0
        assert evaluation.gradient[..., :40].abs().min(-1).values.max() > 0
        losses.append(evaluation.losses["style"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_copy_of_the_region_in_the_style_is_a_match(backbone: Backbones, photo: Pixels, name: str):
    """The same part of the same picture, marked by masks of different sizes.

    Moments take directions of little variance for constant, which keeps their loss from 0.
    """
    image = as_image(photo)
    masks = [StyleMasks(mask_of(64, 96, columns=slice(0, 48)), mask_of(32, 48, columns=slice(0, 24)))]
    unmasked = evaluated(backbone(torch.float32), [image], [StyleMasks(masks[0].region)], image, style_statistic=name)
    matched = evaluated(backbone(torch.float32), [image], masks, image, style_statistic=name)
    assert matched.losses["style"] < (0.25 if name == "moments" else 1e-4) * unmasked.losses["style"]


def test_equal_regions_are_blended_and_different_ones_are_not(
    backbone: Backbones, photo: Pixels, texture: Pixels, checks: Pixels
):
    image, styles = noisy(photo), [as_image(texture), as_image(checks), as_image(texture)]
    left = mask_of(64, 96, columns=slice(0, 48))
    masks = [StyleMasks(left), StyleMasks(), StyleMasks(left.clone())]
    regions = distinct_regions(masks)
    assert [region.styles for region in regions] == [(0, 2), (1,)]
    assert [region.area for region in regions] == [0.5, 1.0]
    trunk = backbone(torch.float32)
    together = evaluated(trunk, styles, masks, image, shares=[1.0, 9.0, 3.0]).losses["style"]
    apart = [
        evaluated(trunk, styles[:1], masks[:1], image).losses["style"],
        evaluated(trunk, styles[1:2], masks[1:2], image).losses["style"],
    ]
    assert together == pytest.approx(sum(apart), rel=1e-4)
    silenced = evaluated(trunk, styles, masks, image, shares=[0.0, 1.0, 0.0])
    assert silenced.losses["style"] == pytest.approx(apart[1], rel=1e-4)


def test_a_mask_is_averaged_over_what_a_position_stands_for():
    mask = soft_mask(12, 20, 0)
    weights = position_weights(mask, (3, 5))
    expected = mask.view(3, 4, 5, 4).mean((1, 3)).flatten() / mask.mean()
    assert weights is not None
    assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    speck = position_weights(mask_of(512, 512, slice(7, 8), slice(9, 10)), (4, 4))
    assert speck is not None
    assert speck.tolist() == [16.0] + [0.0] * 15


def test_strength_is_alike_in_a_small_region(backbone: Backbones, photo: Pixels, texture: Pixels):
    """The style's pull on the pixels of a region is that of a whole picture, not of one with all of it in a corner."""
    image = at_balance(photo)
    options = StylizeOptions(**SHALLOW, style_statistic="gram", strength=1.0, tv_weight=0.0, box_weight=0.0)
    quarter = StyleMasks(mask_of(64, 96, columns=slice(0, 24)))
    objective = Objective(backbone(torch.float32), as_image(photo), [as_image(texture)], options, [1.0], [quarter])
    gradient = objective.evaluate(image).gradient
    assert gradient[..., :24].square().mean().sqrt().item() == pytest.approx(PLAIN.style_levels["gram"], rel=0.15)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_masked_run_resumes_in_the_same_bits_and_leaves_the_rest(
    engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels, name: str
):
    region = np.zeros((32, 48), np.uint8)
    region[:, :20] = 255
    styles = [Style(texture, region=region), Style(checks, 2.0, region, np.eye(64, dtype=np.float32))]
    session = engine.start(photo, styles, quick(style_statistic=name, iterations=5, strength=0.5))
    steps(engine, session, 2)
    state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    finish(engine, session)
    resumed = engine.resume(state, photo, styles)
    finish(engine, resumed)
    assert np.array_equal(resumed.image(), session.image())
    start = engine.start(photo, styles, quick()).image()
    change = np.abs(session.image().astype(int) - start).mean((0, 2))
    # Not 0 outside: L-BFGS is preconditioned by frequency, and low ones reach everywhere.
    assert change[:24].mean() > 4 * change[32:].mean()


BAD = {
    "empty": (np.zeros((8, 8)), "0 everywhere"),
    "three channels": (np.ones((8, 8, 3)), "(height, width)"),
    "no pixels": (np.ones((0, 8)), "(height, width)"),
    "a list": ([[1.0]], "(height, width)"),
    "booleans": (np.ones((8, 8), bool), "uint8 or floating"),
    "integers": (np.ones((8, 8), int), "uint8 or floating"),
    "NaN": (np.full((8, 8), np.nan), "finite"),
    "above one": (np.full((8, 8), 255.0), "divide"),
    "negative": (np.full((8, 8), -0.1), "from 0 to 1"),
}


@pytest.mark.parametrize("field", ["region", "source_region"])
@pytest.mark.parametrize("case", BAD)
def test_unusable_masks_are_refused_before_any_work(
    engine: Engine, photo: Pixels, texture: Pixels, field: str, case: str
):
    mask, words = BAD[case]
    with pytest.raises(OptionError) as caught:
        engine.start(photo, [Style(texture), Style(texture, **{field: mask})], quick())
    assert caught.value.field == f"styles[1].{field}"
    assert words in caught.value.message


def test_a_mask_smaller_than_the_picture_is_smooth():
    """A ramp of four columns stays a ramp: no two neighbours are alike between the outermost centres."""
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 2, 4) / 3
    large = area_resized(ramp, (32, 64))
    assert large.shape == (1, 1, 32, 64)
    assert torch.allclose(
        large[0, 0, 0], torch.tensor(np.interp((np.arange(64) + 0.5) / 16 - 0.5, range(4), ramp[0, 0, 0])).float()
    )
    wide = area_resized(mask_of(2, 64, columns=slice(32, None)), (8, 16))
    assert torch.equal(wide, mask_of(8, 16, columns=slice(8, None)))
