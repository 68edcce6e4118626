"""How long a job at 512 px takes with every other option at its default."""

import engine_side
from jobs import Job
from report import Facts, Report
from service import service

from nst_engine.options import StylizeOptions

TARGET = "at most 90 on two cores"


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Runs it in the bare engine and through the service, both warmed up."""
    job = Job(512, 4 if quick else StylizeOptions().iterations)
    report = Report("default-job", f"A job at 512 px, {job.iterations} iterations", facts)
    with engine_side.engine_process() as engine, service() as served:
        ways = {"engine": [engine.submit(engine_side.run, job).result().call], "service": [served.run(job).call]}
    report.add("whole call", "s", TARGET, ways)
    return [report]
