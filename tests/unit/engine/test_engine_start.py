"""What a run starts from: recoloured content against numpy's moments, and pictures that are given."""

import numpy as np
import pytest
import torch
from engine_runs import Pixels, as_image, finish, quick, shares_of, steps
from numpy.typing import NDArray
from torch import Tensor

from nst_engine import Engine, OptionError, Style, checkpoint
from nst_engine.colors import moments, pooled_moments, recolored
from nst_engine.pictures import resize

Columns = NDArray[np.float64]


def columns(image: Tensor) -> Columns:
    """The pixels as (3, N)."""
    return image[0].reshape(3, -1).double().numpy()


def moments_by_numpy(pixels: Columns, weights: Columns | None = None) -> tuple[Columns, Columns]:
    return np.average(pixels, axis=1, weights=weights), np.cov(pixels, aweights=weights, bias=True)


def narrowed(picture: Pixels) -> Tensor:
    """The picture with less contrast, so that nothing that is made of it leaves 0-255."""
    return 110 + 0.25 * (as_image(picture) - 110)


def test_recolouring_takes_on_mean_and_covariance(photo: Pixels, texture: Pixels):
    content, style = as_image(photo), narrowed(texture)
    mean, covariance = moments_by_numpy(columns(recolored(content, moments(style))))
    wanted_mean, wanted_covariance = moments_by_numpy(columns(style))
    assert mean == pytest.approx(wanted_mean, abs=1e-3)
    assert covariance == pytest.approx(wanted_covariance, abs=1e-2)


def test_recolouring_is_the_optimal_transport(photo: Pixels, texture: Pixels):
    """Of the affine maps between two sets of moments it is the one whose matrix is symmetric and positive definite."""
    content = as_image(photo)
    source, result = columns(content), columns(recolored(content, moments(narrowed(texture))))
    affine = np.linalg.lstsq(np.vstack((source, np.ones(source.shape[1]))).T, result.T, rcond=None)[0].T
    matrix, shift = affine[:, :3], affine[:, 3:]
    assert np.abs(matrix @ source + shift - result).max() < 1e-3
    assert matrix == pytest.approx(matrix.T, abs=1e-5)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_several_styles_count_by_their_shares_not_their_sizes(photo: Pixels, texture: Pixels):
    styles, shares = [as_image(photo), as_image(texture)], [3.0, 1.0]
    pooled = pooled_moments([moments(style) for style in styles], shares)
    pixels = [columns(style) for style in styles]
    weights = np.concatenate([np.full(one.shape[1], share / one.shape[1]) for one, share in zip(pixels, shares)])  # noqa: B905
    mean, covariance = moments_by_numpy(np.hstack(pixels), weights)
    assert pooled.mean.numpy() == pytest.approx(mean)
    assert pooled.covariance.numpy() == pytest.approx(covariance)


@pytest.mark.parametrize("spread", [0.0, 1e-3])
def test_flat_pictures_are_recoloured_without_noise(texture: Pixels, spread: float):
    flat = 90 + spread * (as_image(texture) - 128)
    style = moments(as_image(texture))
    result = recolored(flat, style)
    assert (result - style.mean.view(1, 3, 1, 1)).abs().max() < 15
    assert recolored(as_image(texture), moments(flat)).std() < 1


def test_a_recoloured_start_has_the_styles_colours(engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels):
    content, styles = resize(as_image(photo), (43, 64)), [resize(as_image(texture), (58, 64)), as_image(checks)]
    session = engine.start(photo, shares_of([texture, checks], [1.0, 3.0]), quick(init="recolored"))
    image = session.state_dict().tensors["image"]
    assert torch.equal(image, recolored(content, pooled_moments([moments(style) for style in styles], [1.0, 3.0])))
    assert (image - content).abs().mean() > 20
    assert np.corrcoef(content.mean(1).flatten(), image.mean(1).flatten())[0, 1] > 0.8  # still the content's shapes


def test_a_recoloured_start_recolours_regions(engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels):
    """By the pixels that the masks pick; the rest stays the content."""
    region, source = np.zeros((43, 64), np.uint8), np.zeros((64, 64), np.uint8)
    region[:, :32] = source[:32] = 255
    masked = Style(checks, region=region, source_region=source)
    image = engine.start(photo, [masked], quick(init="recolored")).state_dict().tensors["image"]
    content = resize(as_image(photo), (43, 64))
    assert torch.equal(image[..., 32:], content[..., 32:])
    part = recolored(content[..., :32], moments(as_image(checks)[:, :, :32]))
    assert torch.allclose(image[..., :32], part, atol=1e-2)


def test_a_picture_to_start_from_is_fitted_to_the_first_scale(engine: Engine, photo: Pixels, texture: Pixels):
    options = quick(size=128, scales=2, init="image")
    image = engine.start(photo, [Style(photo)], options, initial=texture).state_dict().tensors["image"]
    assert torch.equal(image, resize(as_image(texture), (43, 64)))
    floats = engine.start(photo, [Style(photo)], options, initial=texture / 255).state_dict().tensors["image"]
    assert torch.allclose(floats, image, atol=1e-2)


def test_a_resumed_run_needs_its_start_no_more(engine: Engine, photo: Pixels, texture: Pixels):
    whole = engine.start(photo, [Style(texture)], quick(init="image", iterations=3), texture)
    steps(engine, whole, 1)
    resumed = engine.resume(checkpoint.loads(checkpoint.dumps(whole.state_dict())), photo, [Style(texture)])
    assert finish(engine, whole) == finish(engine, resumed)
    assert np.array_equal(whole.image(), resumed.image())


def test_a_picture_and_the_wish_for_it_go_together(engine: Engine, photo: Pixels, texture: Pixels):
    for init, initial in (("image", None), ("content", texture), ("noise", texture), ("textured", texture)):
        with pytest.raises(OptionError, match="init=image") as caught:
            engine.start(photo, [Style(texture)], quick(init=init), initial)
        assert caught.value.field == "initial"
    with pytest.raises(OptionError) as caught:
        engine.start(photo, [Style(texture)], quick(init="image"), texture[..., 0])
    assert caught.value.field == "initial"
