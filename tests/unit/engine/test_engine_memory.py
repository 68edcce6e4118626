"""How much memory is taken, measured in a process of its own, where nothing else takes any."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from engine_runs import Pixels

PROGRAM = Path(__file__).with_name("peak_memory.py")


def measured(*arguments: str | Path) -> dict[str, Any]:
    """What the program prints."""
    completed = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


def test_what_a_session_takes_is_about_what_it_says(photo: Pixels, texture: Pixels, tmp_path: Path):
    """From the start on, for all that is to come."""
    np.save(tmp_path / "content.npy", photo)
    np.save(tmp_path / "style.npy", texture)
    for case, (estimate, peak) in measured(tmp_path).items():
        assert 0.5 < peak / estimate < 2, (case, peak, estimate)


def test_a_picture_far_larger_than_the_job_is_taken_in_without_many_copies():
    """A float32 copy takes 12 bytes a pixel, and a hole what marks it."""
    found = measured()
    assert found["plain"] < 20
    assert found["hole"] < 32
