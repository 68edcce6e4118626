"""What the service costs beside the bare engine."""

import engine_side
from comparison import compare
from jobs import Job
from report import Facts, Report
from service import service

TARGET = "at most +5 %"


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Runs jobs of two sizes in the engine and through the service, by turns, each first in every other round."""
    plan = [(Job(256, 20), 2), (Job(512, 8), 1)] if quick else [(Job(256, 40), 10), (Job(512, 24), 8)]
    reports = []
    with engine_side.engine_process() as engine, service() as served:
        for job, rounds in plan:
            warm_up = Job(job.size, 4)
            engine.submit(engine_side.run, warm_up).result()
            served.run(warm_up)
            alone, through = [], []
            for number in range(rounds):
                if number % 2:
                    through.append(served.run(job))
                alone.append(engine.submit(engine_side.run, job).result())
                if not number % 2:
                    through.append(served.run(job))
            title = f"Service against bare engine, {job.size} px, {job.iterations} iterations"
            report = Report(f"overhead-{job.size}", title, facts)
            compare(report, job, ("engine", alone), ("service", through), TARGET)
            reports.append(report)
    return reports
