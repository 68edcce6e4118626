"""What the service costs beside the bare engine."""

import engine_side
from comparison import compare
from jobs import Job, Timing
from report import Facts, Report
from service import service

STARTS = 3
TARGET = "at most +5 %"


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Runs jobs of two sizes in the engine and through the service, by turns, each first in every other round.

    The processes are started anew several times: where a process's memory happens to lie makes it
    some per cent faster or slower for as long as it lives.
    """
    plan = [(Job(256, 20), 2), (Job(512, 8), 1)] if quick else [(Job(256, 40), 4), (Job(512, 24), 3)]
    alone: dict[Job, list[Timing]] = {job: [] for job, _ in plan}
    through: dict[Job, list[Timing]] = {job: [] for job, _ in plan}
    for _ in range(1 if quick else STARTS):
        with engine_side.engine_process() as engine, service() as served:
            for job, rounds in plan:
                warm_up = Job(job.size, 4)
                engine.submit(engine_side.run, warm_up).result()
                served.run(warm_up)
                for number in range(rounds):
                    if number % 2:
                        through[job].append(served.run(job))
                    alone[job].append(engine.submit(engine_side.run, job).result())
                    if not number % 2:
                        through[job].append(served.run(job))
    return [_report(job, alone[job], through[job], facts) for job, _ in plan]


def _report(job: Job, alone: list[Timing], through: list[Timing], facts: Facts) -> Report:
    title = f"Service against bare engine, {job.size} px, {job.iterations} iterations"
    report = Report(f"overhead-{job.size}", title, facts)
    compare(report, job, ("engine", alone), ("service", through), TARGET)
    return report
