"""Faces in a picture, and a mask of them. OpenCV, from the extra `faces`, is imported when first needed."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nst_engine.options import DetectorError

# Detection works at this long side in pixels at most: a face worth protecting is not smaller than
# `SMALLEST` of it.
DETECTION_SIDE = 800
SMALLEST = 1 / 25
# How many overlapping windows of the cascade must agree.
NEIGHBOURS = 6
# The detector's square reaches from brow to chin; these semi-axes, in its sides, take in hair and jaw.
SEMI_AXES = (0.55, 0.72)
# The square's centre is the nose; the head's is this much higher, in its sides.
RISE = 0.06
# Where the mask begins to fall from 1 and where it reaches 0, in semi-axes.
FALLOFF = (0.8, 1.3)


class Face(NamedTuple):
    """The square that a detector finds: its upper left corner and its side, in pixels."""

    left: float
    top: float
    side: float


def can_find_faces() -> bool:
    """Whether OpenCV is installed."""
    return find_spec("cv2") is not None


def find_faces(picture: NDArray[np.uint8]) -> list[Face]:
    """Upright faces seen from the front, in an (H, W, 3) RGB picture.

    The detector is the boosted cascade of Viola and Jones ("Rapid object detection using a boosted
    cascade of simple features", CVPR 2001) that OpenCV ships.

    Raises:
        DetectorError: OpenCV is not installed.
    """
    cv2 = _opencv()
    shrinkage = _shrinkage(picture)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    if shrinkage < 1:
        grey = cv2.resize(grey, None, fx=shrinkage, fy=shrinkage, interpolation=cv2.INTER_AREA)
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_alt2.xml")
    smallest = max(20, round(SMALLEST * max(grey.shape)))
    found = cascade.detectMultiScale(
        cv2.equalizeHist(grey), scaleFactor=1.05, minNeighbors=NEIGHBOURS, minSize=(smallest, smallest)
    )
    return [Face(*(float(value) / shrinkage for value in (left, top, side))) for left, top, side, _ in found]


def head_mask(picture: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Where the faces of an (H, W, 3) picture are, (h, w), 0-1; None where there are none.

    It is as large as the picture, but no larger than what they are sought in.
    """
    found = find_faces(picture)
    if not found:
        return None
    shrinkage = _shrinkage(picture)
    height, width = (max(1, round(shrinkage * side)) for side in picture.shape[:2])
    return face_mask(height, width, [Face(*(shrinkage * value for value in face)) for face in found])


def face_mask(height: int, width: int, faces: list[Face]) -> NDArray[np.float32]:
    """(height, width): 1 on the faces, falling softly to 0 around their outlines, which are ellipses."""
    rows, columns = (np.arange(side, dtype=np.float32) + np.float32(0.5) for side in (height, width))
    mask = np.zeros((height, width), np.float32)
    inner, outer = FALLOFF
    for left, top, side in faces:
        across = (columns - (left + side / 2)) / (SEMI_AXES[0] * side)
        down = (rows - (top + side * (0.5 - RISE))) / (SEMI_AXES[1] * side)
        ramp = np.clip((outer - np.hypot(across, down[:, None])) / (outer - inner), 0, 1)
        np.maximum(mask, ramp**2 * (3 - 2 * ramp), out=mask)
    return mask


def _shrinkage(picture: NDArray[np.uint8]) -> float:
    side: int = max(picture.shape[:2])
    return min(1.0, DETECTION_SIDE / side)


def _opencv() -> Any:
    try:
        return import_module("cv2")
    except ImportError as error:
        raise DetectorError(
            "faces",
            "finding faces needs OpenCV: pip install '.[faces]' in the source folder, or give a mask as `subject`",
        ) from error
