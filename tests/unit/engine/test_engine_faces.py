"""Faces are found, masked softly, and protected."""

import sys

import numpy as np
import pytest
from engine_runs import Pixels, finish, quick
from PIL import Image

from nst_engine import DetectorError, Engine, Style
from nst_engine.faces import DETECTION_SIDE, Face, face_mask, find_faces, head_mask


@pytest.mark.parametrize("size", [128, 512, 2000])
def test_a_face_is_found_at_any_size(portrait: Pixels, size: int):
    picture = np.array(Image.fromarray(portrait).resize((size, size)))
    (face,) = find_faces(picture)
    measured = np.array(face) * 512 / size
    assert measured == pytest.approx([175, 65, 98], abs=12)


def test_pictures_without_faces_have_none(photo: Pixels, texture: Pixels, checks: Pixels):
    for picture in (photo, texture, checks, np.zeros((16, 900, 3), np.uint8)):
        assert find_faces(picture) == []


def test_the_mask_covers_the_head_and_ends_softly(portrait: Pixels):
    mask = face_mask(512, 512, find_faces(portrait))
    assert mask.dtype == np.float32
    assert mask[80:165, 222].min() > 0.95  # brows to chin
    assert mask[115, 185:262].min() > 0.9  # cheek to cheek
    assert mask[50, 222] > 0.8  # hair
    assert mask[250:].max() == 0
    assert mask[:, 330:].max() == 0
    assert max(np.abs(np.diff(mask, axis=axis)).max() for axis in (0, 1)) < 0.08


def test_every_face_is_in_the_mask():
    faces = [Face(10.0, 20.0, 30.0), Face(70.0, 40.0, 20.0)]
    both = face_mask(90, 120, faces)
    assert np.array_equal(both, np.maximum(*(face_mask(90, 120, [face]) for face in faces)))
    assert both[35, 25] == both[50, 80] == 1
    assert not face_mask(90, 120, []).any()


def test_the_mask_of_a_large_picture_is_that_of_a_smaller_one(portrait: Pixels):
    small, large = (
        head_mask(np.array(Image.fromarray(portrait).resize((side, side)))) for side in (DETECTION_SIDE, 2000)
    )
    assert small is not None
    assert large is not None
    assert small.shape == large.shape == (DETECTION_SIDE, DETECTION_SIDE)
    assert np.abs(small - large).mean() < 0.01
    assert head_mask(np.zeros((40, 60, 3), np.uint8)) is None


def test_faces_are_the_subject_beside_what_is_marked(engine: Engine, portrait: Pixels, texture: Pixels):
    """A run that finds them is the run that is given their mask."""
    corner = np.zeros((512, 512), np.float32)
    corner[400:, :100] = 1
    heads = face_mask(512, 512, find_faces(portrait))
    for given, wanted in ((None, heads), (corner, np.maximum(corner, heads))):
        options = quick(iterations=2, faces=True)
        found = finish(engine, engine.start(portrait, [Style(texture)], options, subject=given))
        told = finish(engine, engine.start(portrait, [Style(texture)], quick(iterations=2), subject=wanted))
        assert found[-1].losses == pytest.approx(told[-1].losses, rel=1e-4)
        assert found[-1].losses["detail"] > 0


def test_without_a_face_nothing_is_protected(engine: Engine, photo: Pixels, texture: Pixels):
    runs = [finish(engine, engine.start(photo, [Style(texture)], quick(faces=faces))) for faces in (True, False)]
    assert runs[0] == runs[1]


def test_without_opencv_the_error_says_what_to_install(
    engine: Engine, photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DetectorError, match=r"pip install '\.\[faces\]'") as caught:
        engine.start(photo, [Style(texture)], quick(faces=True))
    assert caught.value.field == "faces"
    assert engine.start(photo, [Style(texture)], quick()) is not None
