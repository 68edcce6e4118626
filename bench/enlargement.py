"""Painting larger than the content: how much fine detail comes, against a content that really has the size."""

import engine_side
import numpy as np
from neural_style import Picture
from pairs import SKIMAGE
from PIL import Image
from processes import RESULTS
from report import Facts, Report
from scipy.ndimage import gaussian_filter

from nst_engine import Style
from nst_engine.options import StylizeOptions

SIZE, SMALL = 256, 80  # long sides, in pixels
STYLES = ("coffee.png", "ihc.png")
DETAIL = 1.5  # pixels: the deviation of the Gaussian that fine detail does not pass


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Paints a cat from a small and a full picture; writes a sheet: enlarged, painted from it, from the full one."""
    cat = Image.open(SKIMAGE / "chelsea.png").convert("RGB").crop((100, 0, 400, 300))
    full = _sized(cat, SIZE)
    small = _sized(cat, SMALL)
    enlarged = np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    options = StylizeOptions(size=SIZE, **({"iterations": 6} if quick else {}))
    report = Report("enlargement", f"Fine detail at {SIZE} px: mean square in grey levels", facts)
    rows = []
    for name in STYLES[: 1 if quick else None]:
        style = np.asarray(Image.open(SKIMAGE / name).convert("RGB"))
        pictures = {
            f"content of {SMALL} px enlarged": enlarged,
            "painted from it": engine_side.stylized(small, [Style(style)], options),
            f"painted from one of {SIZE} px": engine_side.stylized(full, [Style(style)], options),
        }
        report.add(name, "", "the last two alike", {way: [_detail(one)] for way, one in pictures.items()})
        rows.append(np.hstack(tuple(pictures.values())))
    Image.fromarray(np.vstack(rows)).save(RESULTS / "enlargement.png")
    return [report]


def _sized(picture: Image.Image, side: int) -> Picture:
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))


def _detail(picture: Picture) -> float:
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float64)
    return float(np.mean((grey - gaussian_filter(grey, DETAIL)) ** 2))
