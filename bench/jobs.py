"""The job that is measured, and what a run of it took."""

import io
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

CONTENT = Path(str(files("sklearn"))) / "datasets" / "images" / "china.jpg"  # 640 x 427
STYLE = Path(str(files("skimage"))) / "data" / "ihc.png"  # 512 x 512


@dataclass(frozen=True)
class Job:
    """A stylisation of `CONTENT` by `STYLE`, every other option at its default."""

    size: int
    iterations: int


@dataclass(frozen=True)
class Timing:
    """What one run took, in seconds.

    Attributes:
        iterating: from the end of the first iteration to the end of the last, as its caller sees them.
        call: from the call with two paths to the final picture in hand.
        computing: inside `Engine.step`, summed.
        cpu: processor time of every process that took part, by name.
        others: processors that everything else on the machine kept busy meanwhile.
    """

    iterating: float
    call: float
    computing: float
    cpu: dict[str, float]
    others: float


def fresh_jpeg(path: Path, seed: int) -> bytes:
    """The picture with one pixel changed, so that the server does not have it yet."""
    picture = Image.open(path).convert("RGB")
    rng = np.random.default_rng(seed)
    spot = int(rng.integers(picture.width)), int(rng.integers(picture.height))
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    picture.putpixel(spot, (red, green, blue))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()
