"""Run as a program: what sessions say that they take, and the most that they do.

    python peak_memory.py FOLDER

FOLDER holds content.npy and style.npy. Prints JSON: by case, the estimate and the peak of the resident memory over
that of the idle engine, in bytes.
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np
from engine_runs import MODEL

from nst_engine import Engine, Style, StylizeOptions

CASES = {
    "defaults": {"precision": "float32"},
    "bfloat16, adam": {"precision": "bfloat16", "optimizer": "adam"},
    "sliced": {"style_statistic": "sliced", "precision": "float32"},
    "long history": {"history_size": 60, "precision": "bfloat16"},
    "network": {"parametrization": "network", "precision": "bfloat16"},
    "shallow": {"content_layers": {"relu1_2": 1.0}, "style_layers": {"relu1_1": 1.0}, "precision": "float32"},
}


def resident(field: str) -> int:
    """Resident memory in bytes, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(folder: Path) -> None:
    content, style = (np.load(folder / f"{name}.npy") for name in ("content", "style"))
    engine = Engine("cpu", threads=1, style_cache_bytes=0)
    for precision in ("float32", "bfloat16"):
        options = StylizeOptions(model=MODEL, size=64, scales=1, iterations=1, precision=precision)
        engine.start(content, [Style(style)], options).advance()
    found = {}
    for case, given in CASES.items():
        gc.collect()
        engine.release_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
        idle = resident("VmRSS")
        session = engine.start(content, [Style(style)], StylizeOptions(size=288, scales=2, iterations=3, **given))
        estimate = session.working_bytes
        while not session.finished:
            session.advance()
        found[case] = estimate, resident("VmHWM") - idle
        del session
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
