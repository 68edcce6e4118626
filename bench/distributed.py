"""One picture shared by processes, against one process, each with one thread."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from machine import OtherLoad
from pairs import PAIRS
from report import Facts, Report

import nst_engine
from nst_engine.options import StylizeOptions

TIMEOUT = timedelta(minutes=10)
PRECISIONS = ("auto", "float32")


@dataclass(frozen=True)
class Run:
    """Median seconds and processor seconds of an iteration, bytes held between two, and the last loss."""

    seconds: float
    cpu: float
    held: int
    loss: float


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Runs a few iterations at one scale in one process and in two, by turns."""
    sizes, iterations, rounds = ((128,), 3, 1) if quick else ((512, 1024), 4, 2)
    report = Report("distributed", "One picture in one process and shared by two, each with one thread", facts)
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for _ in range(2)]
        for size in sizes:
            for precision in PRECISIONS:
                _compare(report, pools, size, precision, iterations, rounds)
    return [report]


def _compare(
    report: Report, pools: list[ProcessPoolExecutor], size: int, precision: str, iterations: int, rounds: int
) -> None:
    ways = {"1 process": pools[:1], "2 processes": pools}
    runs: dict[str, list[list[Run]]] = {way: [] for way in ways}
    with OtherLoad() as others:
        for _ in range(rounds):
            for way, chosen in ways.items():
                runs[way].append(_together(chosen, size, precision, iterations))

    def add(figure: str, unit: str, target: str, value: Callable[[Run], float], *, ratio: bool = False) -> None:
        # The slowest process is the one that counts.
        samples = {way: [max(map(value, processes)) for processes in found] for way, found in runs.items()}
        if ratio:
            samples["ratio"] = [one / shared for one, shared in zip(*samples.values(), strict=True)]
        report.add(f"{size} px, {precision}, {figure}", unit, target, samples)

    add("iteration", "s", "ratio < 2", attrgetter("seconds"), ratio=True)
    add("processor time of a process", "s", "ratio < 2", attrgetter("cpu"), ratio=True)
    add("held between iterations", "MiB", "", lambda run: run.held / 2**20)
    add(f"loss after {iterations}", "", "the same", attrgetter("loss"))
    report.add(f"{size} px, {precision}, processors busy for others", "", "0", {"1 process": [others.processors]})


def _together(pools: list[ProcessPoolExecutor], size: int, precision: str, iterations: int) -> list[Run]:
    with TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        running = [
            pool.submit(_run, rank, len(pools), meeting, size, precision, iterations) for rank, pool in enumerate(pools)
        ]
        return [run.result() for run in running]


def _run(rank: int, processes: int, meeting: str, size: int, precision: str, iterations: int) -> Run:
    """What one of the processes does; alone it has no group."""
    import torch.distributed as dist

    if processes > 1:
        store = dist.FileStore(meeting, processes)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=TIMEOUT)
    try:
        return _timed(dist.group.WORLD if processes > 1 else None, size, precision, iterations)
    finally:
        if processes > 1:
            dist.destroy_process_group()


def _timed(group: object, size: int, precision: str, iterations: int) -> Run:
    engine = nst_engine.Engine("cpu", threads=1, process_group=group)
    content, style = PAIRS[0].load(size)
    # Raw weights, so that there is no balance to strike.
    options = StylizeOptions(size=size, iterations=iterations, scales=1, strength=None, precision=precision)
    session = engine.start(content, [nst_engine.Style(style)], options)
    ends = []
    while not session.finished:
        report = session.advance()
        ends.append((time.perf_counter(), time.process_time()))
    # The first iteration evaluates twice.
    seconds, cpu = (median(after - before for before, after in pairwise(clock)) for clock in zip(*ends, strict=True))
    return Run(seconds, cpu, session.nbytes, report.total_loss)
