"""Memory and time of big pictures: at once, in tiles, and a hole filled."""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jobs import CONTENT, STYLE
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps
from processes import RESULTS
from report import Facts, Report

import nst_engine
from nst_engine.options import StylizeOptions

BUDGET = 2**28
UNBOUNDED = 2**60
# Larger pictures would take more than 10 GB at once.
LARGEST_AT_ONCE = 2048


@dataclass(frozen=True)
class Cost:
    """Peak resident memory over the idle engine in bytes, and seconds an iteration."""

    memory: int
    seconds: float


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Runs one scale of two iterations on squares of growing size, each in a process of its own."""
    sizes = (256, 512) if quick else (512, 1024, 2048, 4096)
    costs: dict[str, dict[int, Cost]] = {"at once": {}, "in tiles": {}, "a hole": {}}
    for size in sizes:
        if size <= LARGEST_AT_ONCE:
            costs["at once"][size] = _in_a_fresh_process(size, UNBOUNDED)
        costs["in tiles"][size] = _in_a_fresh_process(size, BUDGET)
        costs["a hole"][size] = _in_a_fresh_process(size, BUDGET, hole=True)
    title = f"Square pictures, peak over the idle engine; tiles with a memory budget of {BUDGET / 2**20:.0f} MiB"
    report = Report("big-pictures", title, facts)
    targets = {2048: "< 2", 4096: "< 4"}
    for size in sizes:
        by_way = {way: found[size] for way, found in costs.items() if size in found}
        memory = {way: [cost.memory / 1e9] for way, cost in by_way.items()}
        report.add(f"{size} px, peak memory", "GB", targets.get(size, ""), memory)
        report.add(f"{size} px, iteration", "s", "", {way: [cost.seconds] for way, cost in by_way.items()})
    _plot(costs, RESULTS / "big-pictures.png")
    return [report]


def _in_a_fresh_process(size: int, memory_budget: int, *, hole: bool = False) -> Cost:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_cost, size, memory_budget, hole=hole).result()


def _cost(size: int, memory_budget: int, iterations: int = 2, *, hole: bool = False) -> Cost:
    """Of a picture in a style or, if there is a `hole` of a quarter of its side, of filling that from around it."""
    engine = nst_engine.Engine(memory_budget=memory_budget)
    engine.warm_up(StylizeOptions().model)
    idle = _status_bytes("VmRSS")
    styles = [] if hole else [nst_engine.Style(_square(STYLE, 512))]
    mask = np.zeros((size, size), np.float32)
    mask[size // 4 : size // 2, size // 4 : size // 2] = 1.0
    # Raw weights, so that there is no balance to strike: the time is that of the iterations.
    options = StylizeOptions(size=size, iterations=iterations, scales=1, strength=None)
    session = engine.start(_square(CONTENT, size), styles, options, hole=mask if hole else None)
    start = time.perf_counter()
    while not session.finished:
        session.advance()
    seconds = (time.perf_counter() - start) / iterations
    session.image()
    return Cost(_status_bytes("VmHWM") - idle, seconds)


def _square(path: Path, size: int) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.fit(Image.open(path).convert("RGB"), (size, size)))


def _status_bytes(field: str) -> int:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _plot(costs: dict[str, dict[int, Cost]], path: Path) -> None:
    """Peak memory against pixels, both logarithmic."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for way, found in costs.items():
        pixels = [size**2 / 1e6 for size in found]
        axes.loglog(pixels, [cost.memory / 1e9 for cost in found.values()], marker="o", label=way)
    axes.set(xlabel="megapixels", ylabel="peak resident memory over the idle engine, GB")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
