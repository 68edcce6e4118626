"""What every process keeps in memory."""

from jobs import Job
from report import Facts, Report
from service import service


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Reads the resident memory of a fresh server, and again after jobs of two sizes."""
    iterations = 8 if quick else 20
    with service() as served:
        idle = served.server.resident_bytes()
        for size in (256, 512):
            served.run(Job(size, iterations))
        after = served.server.resident_bytes()
    report = Report("memory", "Resident memory before the first job, and after one at 256 px and one at 512 px", facts)
    for process in idle:
        report.add(process, "MiB", "", {"idle": [idle[process] / 2**20], "after": [after[process] / 2**20]})
    return [report]
