"""Run as a program: what sessions say that they take, and the most that they do.

    python peak_memory.py FOLDER

FOLDER holds content.npy and style.npy. Prints JSON: by case, the estimate and the peak of the resident memory over
that of the idle engine, in bytes.
"""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from engine_runs import MODEL

from nst_engine import Engine, Style, StylizeOptions

CASES = {
    "defaults": {},
    "sliced": {"style_statistic": "sliced"},
    "long history": {"history_size": 90},
    "network": {"parametrization": "network", "optimizer": "adam"},
    "bfloat16": {"precision": "bfloat16"},
}


def resident(field: str) -> int:
    """Resident memory in bytes, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(folder: Path) -> None:
    content, style = (np.load(folder / f"{name}.npy") for name in ("content", "style"))
    engine = Engine("cpu", threads=1, style_cache_bytes=0)
    plain = StylizeOptions(model=MODEL, size=160, scales=1, iterations=1, precision="float32")
    for precision in ("float32", "bfloat16"):  # what stays of a first run, the network above all, is the process's own
        engine.start(content, [Style(style)], replace(plain, precision=precision)).advance()
    found = {}
    for case, given in CASES.items():
        gc.collect()
        engine.release_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
        idle = resident("VmRSS")
        options = replace(plain, scales=2, iterations=2, **given)
        session = engine.start(content, [Style(style)], options)
        estimate = sum(session.working_memory)
        while not session.finished:
            session.advance()
        found[case] = estimate, resident("VmHWM") - idle
        del session
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
