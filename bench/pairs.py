"""Picture pairs of different kinds, from packages: what speed and looks are measured on."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SKLEARN = Path(str(files("sklearn"))) / "datasets" / "images"
SKIMAGE = Path(str(files("skimage"))) / "data"


@dataclass(frozen=True)
class Pair:
    """A content and a style."""

    content: Path
    style: Path

    @property
    def name(self) -> str:
        """Such as "china x ihc"."""
        return f"{self.content.stem} x {self.style.stem.partition('_')[0]}"

    def load(self, long_side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Both, (H, W, 3) RGB, with this long side, so that no engine needs to resize them."""
        return _load(self.content, long_side), _load(self.style, long_side)


PAIRS = (
    Pair(SKLEARN / "china.jpg", SKIMAGE / "ihc.png"),
    Pair(SKIMAGE / "astronaut.png", SKLEARN / "flower.jpg"),
    Pair(SKIMAGE / "chelsea.png", SKIMAGE / "hubble_deep_field.jpg"),
    Pair(SKIMAGE / "coffee.png", SKIMAGE / "retina.jpg"),
    Pair(SKIMAGE / "rocket.jpg", SKIMAGE / "brick.png"),
    Pair(SKLEARN / "flower.jpg", SKLEARN / "china.jpg"),
)


def _load(path: Path, long_side: int) -> NDArray[np.uint8]:
    picture = Image.open(path).convert("RGB")
    ratio = long_side / max(picture.size)
    size = round(picture.width * ratio), round(picture.height * ratio)
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
