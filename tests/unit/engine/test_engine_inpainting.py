"""A hole is filled from statistics, and everything else stays bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engine_runs import DEEPER, Pixels, as_image, finish, quick, steps
from numpy.typing import NDArray
from reference import Trunk
from scipy import ndimage
from torch import Tensor

from nst_engine import Engine, OptionError, Session, Style, checkpoint, stylize
from nst_engine.evaluation import Evaluation
from nst_engine.inpainting import Hole
from nst_engine.patches import fill_from_patches

Mask = NDArray[np.float64]
SIDE = 96
RAW = {**DEEPER, "size": SIDE, "strength": None, "style_weight": 1e4, "style_statistic": "moments"}


def square() -> Mask:
    """A hole in the middle, 1 inside and 0 outside."""
    mask = np.zeros((SIDE, SIDE))
    mask[30:66, 34:70] = 1
    return mask


def soft() -> Mask:
    """The same with edges that fall over 8 px."""
    return ndimage.uniform_filter(square(), 9)


@pytest.fixture(scope="module")
def surface() -> Pixels:
    """A rough surface in two colours."""
    rng = np.random.default_rng(4)
    blots = ndimage.zoom(rng.random((SIDE // 4, SIDE // 4)), 4, order=1)[..., None]
    colours = np.where(blots > 0.5, (190, 120, 60), (60, 80, 110)) + rng.normal(0, 15, (SIDE, SIDE, 3))
    return np.clip(np.round(colours), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def damaged(surface: Pixels) -> Pixels:
    """It, with something else where the hole is."""
    return np.where(square()[..., None] > 0, (255, 0, 255), surface).astype(np.uint8)


def moments_distance(trunk: Trunk, one: Pixels, other: Pixels) -> float:
    """Of means and covariances of relu2_1 over the hole, relative to the other's, in float64."""
    inside = torch.from_numpy(square()[::2, ::2] > 0)
    sides = []
    for picture in (one, other):
        vectors = trunk.maps(as_image(picture), ["relu2_1"])["relu2_1"].double().squeeze(0)[:, inside]
        sides.append((vectors.mean(1), torch.cov(vectors)))
    (mean, covariance), (wanted_mean, wanted_covariance) = sides
    means = (mean - wanted_mean).square().sum() / wanted_mean.square().sum()
    covariances = (covariance - wanted_covariance).square().sum() / wanted_covariance.square().sum()
    return float(means + covariances)


@pytest.fixture(scope="module")
def harmonic(damaged: Pixels) -> Pixels:
    """The hole filled by the heat equation at rest."""
    result = damaged.astype(np.float64)
    hole = square() > 0
    result[hole] = result[~hole].mean(0)
    for _ in range(2000):
        result[hole] = ndimage.uniform_filter(result, (3, 3, 0))[hole]
    return np.round(result).astype(np.uint8)


@pytest.mark.parametrize("color", ["style", "keep_luminance", "match"])
@pytest.mark.parametrize("styled", [True, False])
def test_every_pixel_outside_stays(engine: Engine, damaged: Pixels, texture: Pixels, styled: bool, color: str):
    styles = [Style(texture)] if styled else []
    run = engine.start(damaged, styles, quick(size=SIDE, iterations=3, color=color), hole=square())
    while not run.finished:
        run.advance()
        assert np.array_equal(run.image()[square() == 0], damaged[square() == 0])
    assert (run.image() != damaged)[square() > 0].mean() > 0.9


def test_at_another_size_it_is_the_resampled_content_that_stays(engine: Engine, damaged: Pixels):
    run = engine.start(damaged, [], quick(size=128, iterations=4, scales=2), hole=square())
    finish(engine, run)
    resampled = F.interpolate(as_image(damaged), size=(128, 128), mode="bicubic", antialias=True)
    wanted = resampled[0].permute(1, 2, 0).round().clamp(0, 255).numpy().astype(np.uint8)
    outside = ndimage.zoom(square(), 128 / SIDE, order=1) == 0
    outside = ~ndimage.binary_dilation(~outside, np.ones((3, 3)), iterations=2)
    assert np.array_equal(run.image()[outside], wanted[outside])


def test_soft_edges_blend(engine: Engine, surface: Pixels, texture: Pixels):
    """Where the mask is small a pixel can differ from the content by no more than the mask allows."""
    mask = soft()
    run = engine.start(surface, [Style(texture)], quick(size=SIDE, box_weight=10.0), hole=mask)
    finish(engine, run)
    change = np.abs(run.image().astype(float) - surface).max(2)
    assert not change[mask == 0].any()
    faint = (mask > 0) & (mask < 0.2)
    assert 0 < change[faint].mean() < 0.3 * change[mask == 1].mean()


def test_the_hole_takes_on_the_statistics_of_its_surroundings(
    engine: Engine, real_weights: dict[str, Tensor], surface: Pixels, damaged: Pixels, harmonic: Pixels
):
    """They come close to those of what was there, and much closer than diffusion does."""
    *_, (_, filled) = stylize(damaged, [], quick(**RAW, iterations=20), hole=square(), engine=engine)
    trunk = Trunk(real_weights)
    ours, smooth = (moments_distance(trunk, picture, surface) for picture in (filled, harmonic))
    assert ours < 0.25
    assert ours < 0.25 * smooth


def test_the_hole_takes_on_the_statistics_of_a_style(
    engine: Engine, real_weights: dict[str, Tensor], surface: Pixels, damaged: Pixels, harmonic: Pixels
):
    style = 255 - surface
    *_, (_, filled) = stylize(damaged, [Style(style)], quick(**RAW, iterations=20), hole=square(), engine=engine)
    trunk = Trunk(real_weights)
    ours, smooth = (moments_distance(trunk, picture, style) for picture in (filled, harmonic))
    assert ours < 0.25
    assert ours < 0.25 * smooth


@pytest.mark.parametrize("size", [SIDE, 80, 128])
def test_what_was_in_the_hole_is_of_no_consequence(engine: Engine, surface: Pixels, damaged: Pixels, size: int):
    """At no size, and at no scale on the way."""
    options = quick(size=size, scales=2)
    runs = [engine.start(picture, [], options, hole=square()) for picture in (surface, damaged)]
    assert finish(engine, runs[0]) == finish(engine, runs[1])
    assert np.array_equal(runs[0].image(), runs[1].image())


def test_nor_is_it_where_the_picture_is_larger_than_the_job(engine: Engine, surface: Pixels):
    """Not even beside the hole, where resampled pixels have something of both sides."""
    starts = []
    for level in (0, 255):
        picture = surface.copy()
        picture[square() > 0] = level
        material = engine.start(picture, [], quick(size=40), hole=square())._resources.material
        assert material.content.shape[2:] == (40, 40)
        starts.append(material.content)
    assert torch.allclose(*starts, atol=1e-3)
    mask, size = torch.from_numpy(square())[None, None], (40, 40)
    resampled = F.interpolate(as_image(surface), size=size, mode="bicubic", antialias=True)
    inside = F.interpolate(mask, size=size, mode="area")[0, 0] > 0
    far = torch.from_numpy(~ndimage.binary_dilation(inside.numpy(), iterations=3))
    assert torch.allclose(starts[0][:, :, far], resampled[:, :, far], atol=1e-3)


@pytest.mark.parametrize("side", [40, 67, 150])
@pytest.mark.parametrize("mask", [square(), np.clip(2 * soft() - 0.5, 0, 1)], ids=["hard", "soft"])
def test_no_line_is_left_around_a_hole(side: int, mask: Mask):
    """A grey picture stays grey up to the hole, which is white."""
    given = torch.from_numpy(mask).float()[None, None]
    picture = torch.where(given == 1, 255.0, 100.0).expand(1, 3, SIDE, SIDE)
    hole = Hole(given, picture).resized((side, side))
    assert (hole.mask == 1).any()
    seen = hole.content[(hole.mask < 1).expand_as(hole.content)]
    assert (seen - 100).abs().max() < 0.1


@pytest.mark.parametrize("side", [16, 40])
def test_a_mask_that_rounding_took_above_1_makes_no_other_colours(surface: Pixels, side: int):
    """As enlarging a small mask may: what is left of the picture there would be less than nothing."""
    mask = torch.zeros(1, 1, *surface.shape[:2])
    mask[..., 8:40, 8:40] = 1 + torch.finfo(torch.float32).eps
    content = Hole(mask, as_image(surface)).resized((side, side)).content
    assert ((content > -64) & (content < 319)).all()


def evaluation_of(session: Session, parameters: Tensor) -> Evaluation:
    """What a session is sent for the parameters, as it takes it."""
    asking = session._stage._evaluated(parameters)
    request = next(asking)
    with pytest.raises(StopIteration) as end:
        asking.send(request.objective.evaluate(request.image))
    return end.value.value.evaluation


def test_the_gradient_is_that_of_the_filled_picture(engine: Engine, surface: Pixels):
    """Central differences of the reported loss, at pixels inside, on the soft edge and outside."""
    run = engine.start(surface, [], quick(**RAW, init="noise"), hole=soft())
    image = run._stage.image.double().float()
    gradient = evaluation_of(run, image).gradient
    step = torch.zeros_like(image)
    step[..., 28:50, 30:60] = 1.0
    ahead, behind = (evaluation_of(run, image + sign * step).total for sign in (1, -1))
    assert float((gradient * step).sum()) == pytest.approx((ahead - behind) / 2, rel=0.02)
    assert not gradient[..., torch.from_numpy(soft() == 0)].any()


def test_the_start_is_smooth_between_what_surrounds_the_hole():
    """A slope goes on through the hole, within a few of its 285 levels."""
    slope = torch.arange(float(SIDE)).mul(3).view(1, 1, 1, SIDE).expand(1, 3, SIDE, SIDE)
    mask = torch.from_numpy(square()).float()[None, None]
    result = Hole(mask, torch.where(mask > 0, 255.0, slope)).smoothed()
    assert torch.equal(result[:, :, square() == 0], slope[:, :, square() == 0])
    assert (result - slope).abs().max() < 25
    assert result[..., 48, 34:70].diff().min() > -3


def test_patches_continue_a_pattern(checks: Pixels):
    """Where smooth colours cannot, and from sources that are outside the hole."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:44, 20:44] = 1
    smooth = Hole(mask, as_image(checks)).smoothed()
    filled, sources = fill_from_patches(smooth, mask)
    errors = [(picture - as_image(checks)).abs()[..., 20:44, 20:44].mean() for picture in (filled, smooth)]
    assert errors[0] < 0.4 * errors[1]
    assert sources[mask == 0].max() > 0
    assert not sources[mask > 0].any()
    assert torch.equal(filled[..., :20], as_image(checks)[..., :20])


def test_sources_are_what_resembles_the_surroundings():
    """A hole among stripes is filled from the stripes, and not from the noise beside them."""
    picture = 255 * torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    picture[..., :64] = (torch.arange(64) // 4 % 2) * 200.0
    mask = torch.zeros(1, 1, 64, 128)
    mask[..., 24:40, 16:32] = 1
    _, sources = fill_from_patches(Hole(mask, picture).smoothed(), mask)
    assert sources[..., :64].sum() > 20 * sources[..., 72:].sum()


def test_scratches_that_cover_every_patch_of_a_coarse_level_are_filled_at_a_finer_one():
    """Lines every 12 px leave no room for a patch at 64 px, and some at 128."""
    slope = torch.linspace(0, 255, 128).expand(1, 3, 128, 128).contiguous()
    slope += 20 * torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., ::12] = 1
    smooth = Hole(mask, slope).smoothed()
    filled, sources = fill_from_patches(smooth, mask)
    assert not torch.equal(filled, smooth)
    assert not torch.equal(sources, 1 - mask)
    assert (filled - slope).abs().max() < 40


def test_a_photograph_costs_hardly_more_than_its_thumbnail():
    """Everything is sought at 256 px: with windows at the picture's own size this would take minutes."""
    picture = 255 * torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    picture, mask = F.interpolate(picture, (1000, 1500)), torch.zeros(1, 1, 1000, 1500)
    mask[..., 450:500, 700:750] = 1
    filled, sources = fill_from_patches(Hole(mask, picture).smoothed(), mask)
    assert torch.equal(filled[mask.expand_as(filled) == 0], picture[mask.expand_as(picture) == 0])
    assert not sources[mask > 0].any()
    assert sources.max() > 0


@pytest.mark.parametrize("size", [(5, 40), (40, 40), (64, 20)])
def test_a_picture_without_room_for_patches_starts_smooth(size: tuple[int, int]):
    mask = torch.ones(1, 1, *size)
    mask[..., :3, :3] = 0
    smooth = Hole(mask, torch.rand(1, 3, *size)).smoothed()
    filled, sources = fill_from_patches(smooth, mask)
    assert torch.equal(filled, smooth)
    assert torch.equal(sources, 1 - mask)


def test_a_style_goes_where_its_region_meets_the_hole(engine: Engine, surface: Pixels, texture: Pixels):
    left = np.zeros((SIDE, SIDE))
    left[:, :48] = 1
    run = engine.start(surface, [Style(texture, region=left)], quick(size=SIDE, tv_weight=0.0), hole=square())
    start = run.image().astype(float)
    finish(engine, run)
    moved = np.abs(run.image() - start).mean(2)
    assert moved[30:66, 34:46].mean() > 5 * moved[30:66, 60:70].mean()


def test_a_hole_may_cover_everything_if_there_is_a_style(engine: Engine, surface: Pixels, texture: Pixels):
    run = engine.start(surface, [Style(texture)], quick(iterations=2), hole=np.ones((4, 4)))
    assert finish(engine, run)[-1].losses["style"] > 0
    with pytest.raises(OptionError, match="whole picture") as caught:
        engine.start(surface, [], quick(), hole=np.ones((4, 4)))
    assert caught.value.field == "hole"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((8, 8)), "is empty"),
        (np.full((8, 8), 2.0), "from 0 to 1"),
        (np.ones((8, 8, 3)), "shape"),
        (np.ones((8, 8), np.int32), "uint8"),
    ],
)
def test_masks_that_are_none_are_refused(engine: Engine, surface: Pixels, mask: NDArray[Any], message: str):
    with pytest.raises(OptionError, match=message) as caught:
        engine.start(surface, [], quick(), hole=mask)
    assert caught.value.field == "hole"


@pytest.mark.parametrize("other", [{"subject": square()}, {"faces": True}])
def test_a_hole_excludes_protection(engine: Engine, surface: Pixels, other: dict[str, Any]):
    faces = bool(other.pop("faces", False))
    with pytest.raises(OptionError, match="subject or faces") as caught:
        engine.start(surface, [], quick(faces=faces), hole=square(), **other)
    assert caught.value.field == "hole"


def test_a_region_off_the_hole_and_a_missing_style_are_refused(engine: Engine, surface: Pixels, texture: Pixels):
    with pytest.raises(OptionError, match="no part in the hole") as caught:
        engine.start(surface, [Style(texture, region=1 - square())], quick(), hole=square())
    assert caught.value.field == "styles[0].region"
    with pytest.raises(OptionError, match="or a hole") as caught:
        engine.start(surface, [], quick())
    assert caught.value.field == "styles"


@pytest.mark.parametrize("parametrization", ["fourier", "network"])
def test_a_hole_is_filled_in_every_parametrization(engine: Engine, damaged: Pixels, parametrization: str):
    run = engine.start(damaged, [], quick(size=SIDE, iterations=20, parametrization=parametrization), hole=square())
    reports = finish(engine, run)
    assert reports[-1].total_loss < 0.95 * reports[0].total_loss
    assert np.array_equal(run.image()[square() == 0], damaged[square() == 0])


@pytest.mark.parametrize("styled", [True, False])
def test_filling_resumes_bit_for_bit(engine: Engine, damaged: Pixels, texture: Pixels, styled: bool):
    styles = [Style(texture)] if styled else []
    options = quick(size=128, scales=2, iterations=6)
    whole = engine.start(damaged, styles, options, hole=soft())
    steps(engine, whole, 4)
    state = checkpoint.loads(checkpoint.dumps(whole.state_dict()))
    resumed = engine.resume(state, damaged, styles, hole=soft())
    assert finish(engine, whole) == finish(engine, resumed)
    assert np.array_equal(whole.image(), resumed.image())
