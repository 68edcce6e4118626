"""A protected subject: its losses against plain float64, and the picture outside it as without."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import SHALLOW, Pixels, as_image, finish, noisy, quick, steps
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from nst_engine import Engine, OptionError, Style, StylizeOptions, checkpoint
from nst_engine.backbone import Backbone
from nst_engine.losses import laplacian
from nst_engine.masks import StyleMasks
from nst_engine.objective import Objective
from nst_engine.protection import CELLS, CONTENT_GAIN, DETAIL_LEVEL

Backbones = Callable[[torch.dtype], Backbone]
CROSS = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
RAW = {"strength": None, "content_weight": 3.0, "style_weight": 0.0, "tv_weight": 0.0, "box_weight": 0.0}
SIZE = (64, 96)


def middle() -> NDArray[np.float32]:
    """A mask of the middle, with a soft border, (64, 96)."""
    mask = np.zeros(SIZE, np.float32)
    mask[24:48, 32:64] = 1
    return ndimage.uniform_filter(mask, 5)


def as_mask(mask: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(mask)[None, None]


def objective(
    make: Backbones,
    content: Pixels,
    style: Pixels,
    subject: Tensor | None,
    *,
    region: Tensor | None = None,
    **options: Any,
) -> Objective:
    given = StylizeOptions(**{**SHALLOW, **options})
    masks = [StyleMasks(region)]
    return Objective(make(torch.float32), as_image(content), [as_image(style)], given, [1.0], masks, subject)


def cells_of(picture: NDArray[np.float64], cell: int) -> NDArray[np.float64]:
    """Means over whole cells, (h, w)."""
    height, width = picture.shape
    return picture.reshape(height // cell, cell, width // cell, cell).mean((1, 3))


def detail_by_scipy(image: Tensor, content: Tensor, mask: NDArray[np.float32]) -> float:
    """The detail loss of pictures whose sides the cells divide."""
    total = 0.0
    for cell in CELLS:
        weights = cells_of(mask.astype(np.float64), cell)
        squares = [
            (ndimage.convolve(cells_of(one, cell), CROSS, mode="nearest")) ** 2
            for one in (image - content)[0].double().numpy()
        ]
        total += float((weights * squares).mean())
    return total


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (17, 9)])
def test_pictures_of_any_size_have_a_laplacian(shape: tuple[int, int]):
    flat = torch.full((1, 3, *shape), 77.0)
    for cell in CELLS:
        assert laplacian(flat, cell).abs().max() < 1e-4


def test_the_detail_loss_is_that_of_the_laplacians(backbone: Backbones, photo: Pixels, texture: Pixels):
    """Up to the weight that balances it, which is the same at every image."""
    weighed = objective(backbone, photo, texture, as_mask(middle()), **RAW)
    shares = []
    for image in (noisy(photo), noisy(photo, 60.0, seed=6), as_image(photo).flip(3)):
        value = weighed.evaluate(image).losses["detail"]
        shares.append(value / detail_by_scipy(image, as_image(photo), middle()))
    assert shares[0] > 0
    assert shares == pytest.approx([shares[0]] * 3, rel=1e-4)


def test_content_counts_by_position(backbone: Backbones, photo: Pixels, texture: Pixels):
    image = noisy(photo, 30.0)
    maps = [backbone(torch.float32).features(one, ["relu2_1"])["relu2_1"].double() for one in (image, as_image(photo))]
    for protection in (0.0, 0.4, 1.0):
        weights = 1 + protection * (CONTENT_GAIN - 1) * cells_of(middle().astype(np.float64), 2)
        wanted = 3.0 * float((torch.from_numpy(weights) * (maps[0] - maps[1]) ** 2).mean())
        protected = objective(backbone, photo, texture, as_mask(middle()), **RAW, protection=protection)
        assert protected.evaluate(image).losses["content"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("weights", [{"strength": 0.3}, {"strength": None, "content_weight": 7.0}])
def test_detail_pulls_in_proportion_to_content(
    backbone: Backbones, photo: Pixels, texture: Pixels, weights: dict[str, float | None]
):
    """With the whole picture for a subject, where the balance is struck, and whatever the weights are."""
    others = {"style_layers": {}, "tv_weight": 0.0, "box_weight": 0.0, "protection": 0.5}
    image = noisy(photo, 100.0, seed=3)
    plain = objective(backbone, photo, texture, None, **weights, **others).evaluate(image).gradient
    whole = objective(backbone, photo, texture, torch.ones(1, 1, *SIZE), **weights, **others).evaluate(image).gradient
    detail = whole - (1 + 0.5 * (CONTENT_GAIN - 1)) * plain
    assert float(detail.norm() / plain.norm()) == pytest.approx(0.5 * DETAIL_LEVEL, rel=0.1)


@pytest.mark.parametrize("region", [None, as_mask(middle())])
@pytest.mark.parametrize("strength", [0.5, None])
def test_off_the_subject_the_objective_is_as_without(
    backbone: Backbones, photo: Pixels, texture: Pixels, strength: float | None, region: Tensor | None
):
    """Wherever the style goes: its region is not the subject."""
    subject = torch.zeros(1, 1, *SIZE)
    subject[..., :24] = 1
    image = noisy(photo, 30.0)
    given = {"strength": strength, "region": region}
    plain = objective(backbone, photo, texture, None, **given).evaluate(image)
    protected = objective(backbone, photo, texture, subject, **given).evaluate(image)
    difference = (protected.gradient - plain.gradient).abs()
    assert difference[..., 48:].max() < 1e-5 * plain.gradient.abs().max()  # beyond every receptive field
    assert difference[..., :24].max() > 1e-3 * plain.gradient.abs().max()
    assert protected.losses["style"] == pytest.approx(plain.losses["style"])
    assert "detail" not in plain.losses


def test_a_subject_stays_more_like_itself(engine: Engine, photo: Pixels, texture: Pixels):
    """The more so the more it is protected, and the rest as much as ever."""
    inside = middle() == 1
    edges = []
    away = []
    for protection in (None, 0.3, 1.0):
        given = {"protection": protection} if protection else {}
        options = quick(size=96, iterations=8, strength=0.1, style_statistic="gram", **given)
        run = engine.start(photo, [Style(texture)], options, subject=middle() if protection else None)
        finish(engine, run)
        moved = (run.image().astype(np.float64) - photo).mean(2)
        edges.append(np.abs(ndimage.laplace(ndimage.uniform_filter(moved, 2)))[inside].mean())
        away.append(np.abs(moved)[:, 76:].mean())
    assert edges[0] > 1.1 * edges[1] > 1.1**2 * edges[2]
    assert away[1:] == pytest.approx([away[0]] * 2, rel=0.1)


def test_masks_are_taken_in_every_form(engine: Engine, photo: Pixels, texture: Pixels):
    """8-bit and floating masks that say the same give the same run."""
    eight = np.round(255 * middle()).astype(np.uint8)
    forms = [eight, eight / 255, (eight / 255).astype(np.float32)]
    reports = [
        finish(engine, engine.start(photo, [Style(texture)], quick(iterations=2), subject=mask)) for mask in forms
    ]
    for other in reports[1:]:
        assert other[-1].losses == pytest.approx(reports[0][-1].losses, rel=1e-5)


def test_a_mask_is_stretched_to_the_content(engine: Engine, photo: Pixels, texture: Pixels):
    small = middle()[::2, ::2]
    runs = [engine.start(photo, [Style(texture)], quick(), subject=mask) for mask in (middle(), small, 1 - small)]
    for run in runs:
        finish(engine, run)
    near, far = (np.abs(runs[0].image().astype(float) - run.image()).mean() for run in runs[1:])
    assert near < 0.3 * far


@pytest.mark.parametrize(
    "mask", [np.ones((4, 4, 3)), np.full((4, 4), 1.5), np.full((4, 4), np.nan), np.ones(9), np.zeros((4, 4)), "m"]
)
def test_masks_that_are_none_are_refused(engine: Engine, photo: Pixels, texture: Pixels, mask: Any):
    with pytest.raises(OptionError) as caught:
        engine.start(photo, [Style(texture)], quick(), subject=mask)
    assert caught.value.field == "subject"


def test_a_protected_run_resumes_bit_for_bit(engine: Engine, photo: Pixels, texture: Pixels):
    """With a style that has a region, too."""
    options = quick(size=128, scales=2, iterations=6)
    styles = [Style(texture, region=middle()[:, ::-1])]
    whole = engine.start(photo, styles, options, subject=middle())
    steps(engine, whole, 4)
    state = checkpoint.loads(checkpoint.dumps(whole.state_dict()))
    resumed = engine.resume(state, photo, styles, subject=middle())
    assert finish(engine, whole) == finish(engine, resumed)
    assert np.array_equal(whole.image(), resumed.image())
