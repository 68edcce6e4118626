"""What it costs to be able to go on after a crash, and what a crash costs then."""

import time
from dataclasses import dataclass

import engine_side
from comparison import compare
from engine_side import CheckpointCost
from jobs import CONTENT, STYLE, Job, Timing
from report import Facts, Report
from service import Service, service

from nst_client.events import JobState, ProgressEvent, StateEvent

TARGET = "at most +2 %"
CRASH_TARGET = "at most 10 s"
NEVER_SECONDS = "100000"
STARTS = 3


@dataclass(frozen=True)
class Stored:
    """The checkpoints that one run stored: how many, and seconds of packing and storing each."""

    count: float
    seconds: float


@dataclass(frozen=True)
class Crash:
    """Seconds of work that was done twice, and seconds until the picture was where it had been."""

    repeated: float
    standstill: float


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Runs one job with checkpoints and without, by turns, and lets the last run of all crash.

    The servers are started anew several times; see `overhead`.
    """
    job, rounds = (Job(512, 12), 1) if quick else (Job(512, 40), 2)
    with engine_side.engine_process() as engine:
        cost = engine.submit(engine_side.checkpoint_cost, Job(job.size, 4)).result()
    without, kept, stored = [], [], []
    crash: Crash | None = None
    for _ in range(1 if quick else STARTS):
        with service(NST_CHECKPOINT_SECONDS=NEVER_SECONDS) as never, service() as usual:
            for served in (never, usual):
                served.run(Job(job.size, 4))
            for number in range(rounds):
                if not number % 2:
                    without.append(never.run(job))
                timing, checkpoints = _run_counting(usual, job)
                kept.append(timing)
                stored.append(checkpoints)
                if number % 2:
                    without.append(never.run(job))
            if not quick:
                crash = _crash(usual, job)
    report = Report("checkpoints", f"Checkpoints, {job.size} px, {job.iterations} iterations", facts)
    compare(report, job, ("none", without), ("usual", kept), TARGET)
    _add_costs(report, cost, kept, stored, crash)
    return [report]


def _run_counting(served: Service, job: Job) -> tuple[Timing, Stored]:
    counts, seconds = "nst_checkpoint_seconds_count", "nst_checkpoint_seconds_sum"
    before = served.server.metric(counts), served.server.metric(seconds)
    timing = served.run(job)
    count = served.server.metric(counts) - before[0]
    return timing, Stored(count, (served.server.metric(seconds) - before[1]) / max(count, 1))


def _crash(served: Service, job: Job) -> Crash:
    """Kills the model server when three quarters of a run are done, and follows the job until that is regained."""
    running = served.client.stylize(CONTENT, STYLE, size=job.size, iterations=job.iterations)
    reached: dict[int, float] = {}
    killed, from_iteration = 0.0, 0
    crash: Crash | None = None
    for event in running:
        now = time.perf_counter()
        if isinstance(event, StateEvent) and event.state is JobState.RUNNING:
            from_iteration = event.from_iteration
            reached.setdefault(event.from_iteration, now)
        elif isinstance(event, ProgressEvent) and event.attempt == 1:
            reached[event.iteration] = now
            if event.iteration >= job.iterations * 3 // 4 and not killed:
                killed = now
                served.server.kill_model_server()
        elif isinstance(event, ProgressEvent) and crash is None and event.iteration >= max(reached):
            crash = Crash(killed - reached[from_iteration], now - killed)
            running.cancel()
    assert crash is not None
    return crash


def _add_costs(
    report: Report, cost: CheckpointCost, kept: list[Timing], stored: list[Stored], crash: Crash | None
) -> None:
    def add(name: str, unit: str, samples: list[float], target: str = "") -> None:
        report.add(name, unit, target, {"usual": samples})

    add("size of one", "MiB", [cost.size / 2**20])
    add("copying the state, engine waits", "s", [cost.copying])
    add("packing it, engine alone", "s", [cost.packing])
    add("packing and storing it beside the job", "s", [checkpoints.seconds for checkpoints in stored])
    add("stored in one run", "", [checkpoints.count for checkpoints in stored])
    pairs = list(zip(kept, stored, strict=True))
    add("from one to the next", "s", [timing.iterating / max(checkpoints.count, 1) for timing, checkpoints in pairs])
    if crash is not None:
        add("work repeated after a crash", "s", [crash.repeated], CRASH_TARGET)
        add("from the crash until it was regained", "s", [crash.standstill])
