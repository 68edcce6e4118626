"""Run as a program: what sessions say that they take, and the most that they do.

    python peak_memory.py FOLDER

FOLDER holds content.npy and style.npy. Prints JSON: by case, the estimate and the peak of the resident memory over
that of the idle engine, in bytes. Without a folder, the peak while a large picture is taken in for a small job, by
what is given, in bytes for each of its pixels.
"""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_runs import MODEL, Pixels, finish

from nst_engine import Engine, Style, StylizeOptions
from nst_engine.inputs import to_material

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "large style": {"precision": "bfloat16"},
    "sliced, large style in regions": {"style_statistic": "sliced", "precision": "bfloat16"},
    "long history": {"history_size": 90},
    "network": {"parametrization": "network", "optimizer": "adam"},
}


def styles_of(case: str, style: Pixels) -> list[Style]:
    """What a case goes with."""
    scale = 2.0 if "large style" in case else 1.0
    if "regions" not in case:
        return [Style(style, scale=scale)]
    return [Style(style, scale=scale, region=np.eye(2, dtype=np.uint8)[[side]] * 255) for side in range(2)]


def resident(field: str) -> int:
    """Resident memory in bytes, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forgotten() -> int:
    """Resident memory now, from which on the peak is measured."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peaks(folder: Path) -> dict[str, tuple[int, int]]:
    """The estimates and the peaks of sessions."""
    content, style = (np.load(folder / f"{name}.npy") for name in ("content", "style"))
    engine = Engine("cpu", threads=1, style_cache_bytes=0)
    plain = StylizeOptions(model=MODEL, size=128, scales=2, iterations=2, precision="float32")
    for precision in ("float32", "bfloat16"):  # what stays of a first run, the network above all, is the process's own
        finish(engine, engine.start(content, [Style(style)], replace(plain, precision=precision)))
    found = {}
    for case, given in CASES.items():
        gc.collect()
        engine.release_memory()
        idle = forgotten()
        options = replace(plain, **given)
        session = engine.start(content, styles_of(case, style), options)
        estimate = sum(session.working_memory)
        finish(engine, session)
        found[case] = estimate, resident("VmHWM") - idle
        del session
    return found


def taking_in() -> dict[str, float]:
    """The peak for each pixel of a large picture."""
    options, cpu = StylizeOptions(size=64), torch.device("cpu")
    style, content = (np.full((side, side, 3), 128, np.uint8) for side in (64, 2000))
    hole = np.zeros((64, 64), np.uint8)
    hole[20:30, 20:30] = 255
    to_material(style, [], None, hole, options, cpu)
    found = {}
    for case, styles, mask in (("plain", [Style(style)], None), ("hole", [], hole)):
        idle = forgotten()
        to_material(content, styles, None, mask, options, cpu)
        found[case] = (resident("VmHWM") - idle) / content[..., 0].size
        gc.collect()
    return found


if __name__ == "__main__":
    print(json.dumps(peaks(Path(sys.argv[1])) if sys.argv[1:] else taking_in()))
