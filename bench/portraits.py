"""What protecting faces does: how like itself a face stays, and what it looks like."""

import engine_side
import numpy as np
from jobs import STYLE
from numpy.typing import NDArray
from PIL import Image
from processes import RESULTS
from report import Facts, Report
from skimage.metrics import structural_similarity

from nst_engine import Style
from nst_engine.faces import Face, face_mask, find_faces
from nst_engine.options import StylizeOptions

FOLDER = STYLE.parent
CONTENT = FOLDER / "astronaut.png"  # 512 x 512, one face
STYLES = (STYLE, FOLDER / "coffee.png")

# Without protection; with it; and with the style at half its scale on the face, by regions.
WAYS = ("plain", "faces", "finer")

Pixels = NDArray[np.uint8]


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Stylises a portrait in the `WAYS`; writes one sheet a size: content, style, and each of them."""
    sizes, iterations = ((256,), 20) if quick else ((256, 384), 100)
    reports = []
    with engine_side.engine_process() as engine:
        for size in sizes:
            content = np.asarray(Image.open(CONTENT).convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
            (face,) = find_faces(content)
            report = Report(
                f"portraits-{size}", f"Structural similarity to the content, {size} px, {iterations} iterations", facts
            )
            rows = []
            for file in STYLES:
                style = np.asarray(Image.open(file).convert("RGB"))
                ways = {}
                for way in WAYS:
                    options = StylizeOptions(size=size, iterations=iterations, faces=way != "plain")
                    styles = finer_on(face, style, size) if way == "finer" else [Style(style)]
                    ways[way] = engine.submit(engine_side.stylized, content, styles, options).result()
                add_figures(report, file.stem, content, face, ways)
                rows.append(np.hstack((content, thumbnail(style, size), *ways.values())))
            Image.fromarray(np.vstack(rows)).save(RESULTS / f"portraits-{size}.png")
            reports.append(report)
    return reports


def finer_on(face: Face, style: Pixels, size: int) -> list[Style]:
    """The style at half its scale on the face of a square picture, and as it is around it."""
    mask = face_mask(size, size, [face])
    return [Style(style, region=1 - mask), Style(style, region=mask, scale=0.5)]


def add_figures(report: Report, style: str, content: Pixels, face: Face, ways: dict[str, Pixels]) -> None:
    """Adds the similarity on the face, and the one away from it, which protection should leave alone."""
    box = tuple(slice(round(start), round(start + face.side)) for start in (face.top, face.left))
    away = np.ones(content.shape[:2], bool)
    head = tuple(slice(max(0, round(start - face.side / 2)), round(start + 1.5 * face.side)) for start in face[1::-1])
    away[head] = False
    maps = {way: similarity(content, picture) for way, picture in ways.items()}
    report.add(f"{style}, on the face", "", "faces above plain", {way: [m[box].mean()] for way, m in maps.items()})
    report.add(f"{style}, away from it", "", "alike", {way: [m[away].mean()] for way, m in maps.items()})


def similarity(first: Pixels, second: Pixels) -> NDArray[np.float64]:
    """Structural similarity of the luminances at every pixel."""
    greys = [np.asarray(Image.fromarray(picture).convert("L")) for picture in (first, second)]
    _, local = structural_similarity(*greys, data_range=255, full=True)
    return np.asarray(local)


def thumbnail(picture: Pixels, size: int) -> Pixels:
    """The picture, stretched to a square."""
    return np.asarray(Image.fromarray(picture).resize((size, size)))
