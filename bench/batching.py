"""Small jobs advanced together, against the same jobs one after another."""

import torch
from clock import timed
from machine import OtherLoad
from pairs import PAIRS
from report import Facts, Report

from nst_engine import Engine, Session, Style
from nst_engine.options import StylizeOptions

SIZES = (64, 128, 256)
# Room for the maps of all.
MEMORY_BUDGET = 2**33
JOBS = {"cpu": (2, 4, 8), "cuda": (4, 8, 16)}
TARGETS = {("cpu", 8): "ratio at least 1", ("cuda", 16): "ratio at least 4 at 128 px"}


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """A few iterations of default jobs at one scale, both ways by turns; each job has a picture of its own."""
    report = Report("batching", "Jobs of one size together and one after another, seconds for all", facts)
    rounds = 2 if quick else 10
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        engine = Engine(device, memory_budget=MEMORY_BUDGET)
        for size in SIZES[:1] if quick else SIZES:
            for count in JOBS[device][:1] if quick else JOBS[device]:
                _compare(report, engine, size, count, rounds)
    return [report]


def _compare(report: Report, engine: Engine, size: int, count: int, rounds: int) -> None:
    lanes = {"together": _jobs(engine, size, count), "one after another": _jobs(engine, size, count)}
    seconds: dict[str, list[float]] = {way: [] for way in lanes}
    with OtherLoad() as others:
        for _ in range(rounds):
            for way, sessions in lanes.items():
                batches = [sessions] if way == "together" else [[session] for session in sessions]
                seconds[way].append(_seconds(engine, batches))
    # The first iteration evaluates twice.
    seconds = {way: samples[1:] for way, samples in seconds.items()}
    ratios = [alone / together for together, alone in zip(*seconds.values(), strict=True)]
    name = f"{engine.device.type}, {size} px, {count} jobs"
    report.add(f"{name}: an iteration of all", "s", "", seconds)
    report.add(f"{name}: ratio", "", TARGETS.get((engine.device.type, count), ""), {"together": ratios})
    report.add(f"{name}: processors busy for others", "", "0", {"together": [others.processors]})


def _jobs(engine: Engine, size: int, count: int) -> list[Session]:
    sessions = []
    for number in range(count):
        content, style = PAIRS[number % len(PAIRS)].load(size)
        # Square, so that all have one shape.
        side = min(content.shape[:2])
        square = content[:side, :side]
        sessions.append(engine.start(square, [Style(style)], StylizeOptions(size=size, scales=1)))
    return sessions


def _seconds(engine: Engine, batches: list[list[Session]]) -> float:
    def step_all() -> None:
        for batch in batches:
            for outcome in engine.step(batch):
                if isinstance(outcome, Exception):
                    raise outcome

    return timed(step_all)[1]
