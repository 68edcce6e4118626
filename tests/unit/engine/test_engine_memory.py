"""How much memory is taken, and what would take too much."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import Pixels, bytes_for, quick

from nst_engine import Engine, OptionError, Style

SHALLOWEST = {"content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}}
PROGRAM = Path(__file__).with_name("peak_memory.py")


def measured(*arguments: str | Path) -> dict[str, Any]:
    """What the program prints, in a process of its own, where nothing else takes memory."""
    command = [sys.executable, PROGRAM, *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


def test_what_a_session_takes_is_about_what_it_says(photo: Pixels, texture: Pixels, tmp_path: Path):
    """From the start on, for all that is to come."""
    np.save(tmp_path / "content.npy", photo)
    np.save(tmp_path / "style.npy", texture)
    for case, (estimate, peak) in measured(tmp_path).items():
        assert 0.5 < peak / estimate < 2, (case, peak, estimate)


def test_a_picture_far_larger_than_the_job_is_taken_in_without_many_copies(monkeypatch: pytest.MonkeyPatch):
    """A float32 copy takes 12 bytes a pixel, and a hole what marks it."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))  # freed at once: what else is kept differs by the run
    found = measured()
    assert found["plain"] < 14
    assert found["hole"] < 26


def test_what_a_picture_as_a_whole_takes_to_be_sorted_counts(engine: Engine, photo: Pixels, texture: Pixels):
    """There is room for its maps in one tile, but for their projections only where each is compared once."""
    options = quick(style_statistic="sliced", **SHALLOWEST)
    tight, roomy = (bytes_for(options, factor * 64 * 43) for factor in (1, 4))
    engine.start(photo, [Style(texture[:40])], quick(**SHALLOWEST), memory_budget=tight)
    faint = np.full((43, 64), 0.1, np.float32)
    everywhere = [Style(texture[:40], region=faint + 0.1 * index) for index in range(4)]
    for styles, budget in (([Style(texture[:40])], tight), (everywhere, roomy)):
        with pytest.raises(OptionError, match=r"maps of a picture as a whole, and those of 64x43") as caught:
            engine.start(photo, styles, options, memory_budget=budget)
        assert caught.value.field == "style_statistic"
    engine.start(photo, [Style(texture[:40])], options, memory_budget=roomy)
    parts = [Style(texture[:40], region=(np.arange(64) // 16 == index)[None].astype(np.float32)) for index in range(4)]
    engine.start(photo, parts, options, memory_budget=roomy)
