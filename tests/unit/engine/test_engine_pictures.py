"""Pictures in and out, and the generator that library users call."""

from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Pixels, as_image, quick, run

from nst_engine import Engine, OptionError, Style, stylize
from nst_engine.pictures import resize, to_picture, to_tensor

CPU = torch.device("cpu")


def test_stylize_yields_every_iteration_and_ends_with_the_result(engine: Engine, photo: Pixels, texture: Pixels):
    options = quick(size=48, iterations=4)
    yielded = list(stylize(photo, [Style(texture)], options, engine=engine))
    reports, session = run(engine, photo, texture, options)
    assert [report for report, _ in yielded] == reports
    assert [report.finished for report, _ in yielded] == [False, False, False, True]
    assert np.array_equal(yielded[-1][1], session.image())
    assert not np.array_equal(yielded[0][1], yielded[-1][1])
    assert {(picture.shape, picture.dtype) for _, picture in yielded} == {((32, 48, 3), np.dtype(np.uint8))}


def test_pictures_that_were_yielded_stay_as_they_were(engine: Engine, photo: Pixels, texture: Pixels):
    generator = stylize(photo, [Style(texture)], quick(size=48, iterations=3), engine=engine)
    _, first = next(generator)
    kept = first.copy()
    for _ in generator:
        assert np.array_equal(first, kept)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_and_bytes_make_the_same_picture(
    engine: Engine, photo: Pixels, texture: Pixels, dtype: type[np.floating[Any]]
):
    """Up to a rounding: k/255 is no exact number."""
    options = quick(size=48, iterations=3)
    _, whole = run(engine, photo, texture, options)
    _, fractions = run(engine, photo.astype(dtype) / 255, texture.astype(dtype) / 255, options)
    difference = np.abs(whole.image().astype(int) - fractions.image().astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-2


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_every_level_survives_the_way_in_and_out(dtype: type):
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    given = levels if dtype is np.uint8 else (levels / 255).astype(dtype)
    assert np.array_equal(to_picture(to_tensor(given, "content", CPU)), levels)


def test_the_layout_of_an_array_does_not_matter(photo: Pixels):
    expected = as_image(photo)
    twisted = {
        "reversed": (photo[::-1, ::-1], expected.flip(2, 3)),
        "transposed": (photo.transpose(1, 0, 2), expected.transpose(2, 3)),
        "channels reversed": (photo[:, :, ::-1], expected.flip(1)),
        "Fortran": (np.asfortranarray(photo), expected),
    }
    for name, (array, image) in twisted.items():
        for given in (array, (array / 255).astype(np.float32)):
            assert torch.allclose(to_tensor(given, "content", CPU), image, atol=1e-4), name


def test_a_picture_given_is_not_written_to(engine: Engine, photo: Pixels, texture: Pixels):
    floats = photo.astype(np.float32) / 255
    kept = floats.copy()
    run(engine, floats, texture, quick(size=96, iterations=2))
    assert np.array_equal(floats, kept)


@pytest.mark.parametrize(
    ("bad", "cure"),
    [
        (np.zeros((8, 8), np.uint8), "convert it to RGB"),
        (np.zeros((8, 8, 4), np.uint8), "convert it to RGB"),
        (np.zeros((3, 8, 8), np.uint8), "convert it to RGB"),
        (np.zeros((0, 8, 3), np.uint8), "convert it to RGB"),
        ([[[0, 0, 0]]], "convert it to RGB"),
        (torch.zeros(8, 8, 3), "convert it to RGB"),
        (np.zeros((8, 8, 3), np.int32), "uint8 or floating"),
        (np.zeros((8, 8, 3), bool), "uint8 or floating"),
        (np.full((8, 8, 3), 128.0), "divide 0-255 values by 255"),
        (np.full((8, 8, 3), -0.1), "from 0 to 1"),
        (np.full((8, 8, 3), np.nan), "finite"),
        (np.full((8, 8, 3), np.inf), "finite"),
    ],
)
def test_bad_pictures_are_refused_by_name(engine: Engine, photo: Pixels, bad: Any, cure: str):
    with pytest.raises(OptionError, match=cure) as caught:
        engine.start(bad, [Style(photo)], quick())
    assert caught.value.field == "content"
    with pytest.raises(OptionError, match=cure) as caught:
        next(stylize(photo, [Style(photo), Style(bad)], quick(), engine=engine))
    assert caught.value.field == "styles[1].image"


def test_the_way_out_rounds_and_clips():
    values = torch.tensor([-3.0, 0.4, 0.6, 254.6, 255.4, 400.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_picture(values)[0, :, 0].tolist() == [0, 0, 1, 255, 255, 255]


def test_shrinking_averages_rather_than_picks():
    stripes = torch.tensor([0.0, 255.0]).repeat(32).expand(1, 3, 64, 64)
    shrunk = resize(stripes, (16, 16))
    assert shrunk[..., 2:-2, 2:-2].sub(127.5).abs().max() < 8
