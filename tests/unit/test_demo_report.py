"""The demo's report shows what happened."""

import importlib
import json
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from nst_client import ImageRef, JobState, Picture, PreviewEvent, ProgressEvent

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def report(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("demo_report")


def progress(iteration: int, scale: int, loss: float) -> ProgressEvent:
    return ProgressEvent(
        job_id="j",
        sequence=iteration,
        time=datetime(2026, 1, 2, tzinfo=UTC),
        attempt=1,
        job_state=JobState.RUNNING,
        iteration=iteration,
        iterations=4,
        scale=scale,
        scales=2,
        width=64 * scale,
        height=32 * scale,
        total_loss=loss,
        losses={"content": loss / 2, "style": loss / 2, "box": 0.0},
        iterations_per_second=1.0,
        seconds_left=0.0,
        undone=0,
        control_version=0,
    )


def test_the_contact_sheet_shows_every_picture_in_order(report):
    colours = [(10 * index, 250 - 10 * index, 7 * index) for index in range(12)]
    sheet = report.contact_sheet([(str(index), Image.new("RGB", (60, 40), c)) for index, c in enumerate(colours)])
    width, height = sheet.size[0] // report.COLUMNS, sheet.size[1] // 3
    for index, colour in enumerate(colours):
        row, column = divmod(index, report.COLUMNS)
        assert sheet.getpixel((column * width + width // 2, row * height + height // 3)) == colour


def test_every_picture_has_a_label(report):
    sheet = report.contact_sheet([("iteration 10", Image.new("RGB", (60, 40), "white"))])
    assert np.asarray(sheet).min() < 100


def test_the_plot_is_a_picture_with_a_line_for_every_loss(report, tmp_path):
    events = [progress(1, 1, 1000.0), progress(2, 1, 10.0), progress(3, 2, 500.0), progress(4, 2, 5.0)]
    report.loss_plot(events, tmp_path / "losses.png")
    pixels = np.asarray(Image.open(tmp_path / "losses.png").convert("RGB"))
    colours = {tuple(pixel) for pixel in pixels.reshape(-1, 3)}
    # Black for the total, then the first colours of matplotlib's cycle that are seen: content and style.
    assert {(0, 0, 0), (255, 127, 14), (44, 160, 44)} <= colours


def test_an_event_is_one_line_of_json_without_bytes(report):
    preview = PreviewEvent(
        job_id="j",
        sequence=7,
        time=datetime(2026, 1, 2, tzinfo=UTC),
        attempt=1,
        job_state=JobState.RUNNING,
        width=64,
        height=32,
        reference=ImageRef("ab" * 32),
        picture=Picture(b"bytes"),
        iteration=3,
    )
    line = report.event_line(preview)
    read = json.loads(line)
    assert "\n" not in line
    assert read["event"] == "PreviewEvent"
    assert (read["sequence"], read["iteration"], read["job_state"]) == (7, 3, "RUNNING")
    assert read["time"] == "2026-01-02T00:00:00+00:00"
    assert read["reference"]["sha256"] == "ab" * 32
    assert "picture" not in read
