"""What the demo leaves behind: a contact sheet, a plot of the losses, and the events as text."""

import dataclasses
import enum
import itertools
import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from nst_client import AnyEvent, ProgressEvent

COLUMNS = 5
TILE = (240, 160)
LABEL = 24
GAP = 8


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Labelled pictures side by side, in order, each fitted into a tile."""
    rows = math.ceil(len(pictures) / COLUMNS)
    width, height = TILE[0] + GAP, TILE[1] + LABEL + GAP
    sheet = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for index, (label, picture) in enumerate(pictures):
        left, top = GAP + index % COLUMNS * width, GAP + index // COLUMNS * height
        tile = ImageOps.pad(picture.convert("RGB"), TILE, Image.Resampling.LANCZOS, color="white")
        sheet.paste(tile, (left, top))
        draw.text((left + TILE[0] / 2, top + TILE[1] + LABEL / 2), label, "black", font, anchor="mm")
    return sheet


def loss_plot(events: Sequence[AnyEvent], path: Path) -> None:
    """Every loss against the iteration, logarithmic, with a line where a larger scale begins."""
    steps = [event for event in events if isinstance(event, ProgressEvent)]
    iterations = [step.iteration for step in steps]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(iterations, [step.total_loss for step in steps], "black", label="total", linewidth=2)
    for name in sorted({name for step in steps for name in step.losses}):
        # A part that is exactly zero, such as a penalty nothing incurs, has no place on this scale.
        axes.semilogy(iterations, [step.losses.get(name, 0.0) or math.nan for step in steps], label=name)
    foot = axes.get_xaxis_transform()
    begins = steps[:1] + [after for before, after in itertools.pairwise(steps) if after.scale != before.scale]
    for step in begins:
        axes.axvline(step.iteration, color="grey", linestyle=":")
        axes.text(step.iteration, 0.03, f" {step.width} x {step.height}", transform=foot)
    axes.set(xlabel="iteration", ylabel="weighted loss")
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)


def event_line(event: AnyEvent) -> str:
    """An event as one line of JSON, without its picture's bytes."""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event) if field.name != "picture"}
    named = {name: value.name if isinstance(value, enum.Enum) else value for name, value in fields.items()}
    return json.dumps({"event": type(event).__name__, **named}, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} has no form in JSON")
