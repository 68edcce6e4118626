"""Whose colours a result has, against published values of Oklab and numpy's moments."""

import numpy as np
import pytest
import torch
from engine_runs import Pixels, as_image, finish, quick, run
from torch import Tensor

from nst_engine import Engine, Style, checkpoint, oklab
from nst_engine.colors import moments, recolored, with_chroma_of
from nst_engine.pictures import resize

# From the CSS Color Module Level 4 and its sample code.
PUBLISHED = {
    (255, 255, 255): (1.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (0.62796, 0.22486, 0.12585),
    (0, 255, 0): (0.86644, -0.23389, 0.17950),
    (0, 0, 255): (0.45201, -0.03246, -0.31153),
    (128, 128, 128): (0.59987, 0.0, 0.0),
}


def pixel(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


def hue(lab: Tensor) -> Tensor:
    return torch.atan2(lab[:, 2], lab[:, 1])


@pytest.mark.parametrize("rgb", PUBLISHED)
def test_oklab_is_as_published(rgb: tuple[int, int, int]):
    assert oklab.from_rgb(pixel(*rgb)).flatten().tolist() == pytest.approx(PUBLISHED[rgb], abs=2e-4)
    assert oklab.to_rgb(pixel(*PUBLISHED[rgb])).flatten().tolist() == pytest.approx(rgb, abs=0.5)


def test_every_colour_comes_back():
    steps = torch.linspace(0, 255, 18)
    colours = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 18, -1)
    assert (oklab.to_rgb(oklab.from_rgb(colours)) - colours).abs().max() < 0.25


def test_lightness_is_the_images_and_chroma_the_contents(photo: Pixels, texture: Pixels):
    """Muted pictures, so that every such colour is in sRGB."""
    content, image = (128 + 0.3 * (as_image(picture)[:, :, :60, :80] - 128) for picture in (photo, texture))
    result = oklab.from_rgb(with_chroma_of(content, image))
    assert torch.allclose(result[:, :1], oklab.from_rgb(image)[:, :1], atol=1e-3)
    assert torch.allclose(result[:, 1:], oklab.from_rgb(content)[:, 1:], atol=1e-3)


def test_chroma_gives_way_to_lightness():
    """Under a ramp of greys, blue keeps its hue and the ramp its lightness."""
    ramp = torch.linspace(20, 235, 64).expand(1, 3, 1, 64)
    blue = pixel(0, 0, 255).expand(1, 3, 1, 64)
    result = with_chroma_of(blue, ramp)
    assert ((result >= 0) & (result <= 255)).all()
    lab, wanted = oklab.from_rgb(result), oklab.from_rgb(blue)
    assert torch.allclose(lab[:, 0], oklab.from_rgb(ramp)[:, 0], atol=5e-3)
    chroma, most = lab[:, 1:].norm(dim=1), wanted[:, 1:].norm(dim=1)
    assert (chroma <= most + 1e-3).all()
    assert chroma.max() > 0.9 * most.max()
    assert torch.allclose(hue(lab), hue(wanted), atol=0.05)


def test_strips_are_the_whole():
    """Some of 256 rows and what is left, each row by itself the same."""
    content, image = 255 * torch.rand(2, 1, 3, 600, 5, generator=torch.Generator().manual_seed(1))
    rows = [with_chroma_of(content[:, :, [row]], image[:, :, [row]]) for row in range(600)]
    assert torch.allclose(with_chroma_of(content, image), torch.cat(rows, 2), atol=0.01)


def test_keep_luminance_shows_the_same_run_in_the_contents_colours(engine: Engine, photo: Pixels, texture: Pixels):
    styled_reports, styled = run(engine, photo, texture, quick(iterations=3))
    reports, kept = run(engine, photo, texture, quick(iterations=3, color="keep_luminance"))
    assert [report.losses for report in reports] == [report.losses for report in styled_reports]
    assert torch.equal(kept.state_dict().tensors["image"], styled.state_dict().tensors["image"])
    content = resize(as_image(photo), (43, 64))
    expected = with_chroma_of(content, styled.state_dict().tensors["image"])
    assert (as_image(kept.image()) - expected).abs().max() <= 0.51
    assert np.abs(kept.image().astype(int) - styled.image()).mean() > 1
    resumed = engine.resume(checkpoint.loads(checkpoint.dumps(kept.state_dict())), photo, [Style(texture)])
    assert np.array_equal(resumed.image(), kept.image())


def test_a_grey_content_makes_a_grey_result(engine: Engine, photo: Pixels, texture: Pixels):
    grey = np.repeat(photo.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    _, session = run(engine, grey, texture, quick(iterations=2, color="keep_luminance"))
    assert np.ptp(session.image().astype(int), axis=2).max() <= 1


def test_match_is_a_run_with_recoloured_styles(engine: Engine, photo: Pixels, texture: Pixels):
    """At one scale, with a style already of its size there: what is left between the two is rounding to 8 bits."""
    texture = texture[:64, :64]
    recoloured = recolored(as_image(texture), moments(resize(as_image(photo), (43, 64))))
    style = (recoloured[0].permute(1, 2, 0) / 255).double().numpy()
    expected = engine.start(photo, [Style(style)], quick(iterations=3))
    wanted = finish(engine, expected)
    reports, session = run(engine, photo, texture, quick(iterations=3, color="match"))
    assert [report.total_loss for report in reports] == pytest.approx(
        [report.total_loss for report in wanted], rel=1e-3
    )
    assert np.abs(session.image().astype(int) - expected.image()).max() <= 2


def test_match_matches_a_region_to_a_region(engine: Engine, photo: Pixels, texture: Pixels):
    """Half of a style is recoloured as that half alone is, to the colours of its half of the content.

    The other half repeats the last row of the first, so that nothing else is seen across the border.
    """
    texture = texture[np.minimum(np.arange(64), 31), :64]
    region, source = np.zeros((43, 64), np.uint8), np.zeros((64, 64), np.uint8)
    region[:, :32] = source[:32] = 255
    half = recolored(as_image(texture[:32]), moments(resize(as_image(photo), (43, 64))[..., :32]))
    whole = torch.cat((half, half[:, :, -1:].expand(-1, -1, 32, -1)), 2)
    style = (whole[0].permute(1, 2, 0) / 255).double().numpy()
    shallow = {"style_layers": {"relu1_1": 1.0}, "iterations": 2}
    expected = engine.start(photo, [Style(style, 1.0, region, source)], quick(**shallow))
    session = engine.start(photo, [Style(texture, 1.0, region, source)], quick(**shallow, color="match"))
    wanted = [report.total_loss for report in finish(engine, expected)]
    assert [report.total_loss for report in finish(engine, session)] == pytest.approx(wanted, rel=1e-3)
