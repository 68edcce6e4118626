"""Two ways of running one job, side by side."""

from collections.abc import Callable, Sequence
from operator import attrgetter

from jobs import Job, Timing
from report import Report

Lane = tuple[str, Sequence[Timing]]


def compare(report: Report, job: Job, first: Lane, second: Lane, target: str) -> None:
    """Adds how two lanes did, whose runs alternated, and by how much the second took longer.

    `target` is for the time from first to last progress.
    """
    (name, base), (other_name, other) = first, second

    def add(figure: str, unit: str, value: Callable[[Timing], float], target: str = "") -> None:
        samples, other_samples = [value(timing) for timing in base], [value(timing) for timing in other]
        # Of each pair of runs, one right after the other, so that the machine's drift cancels.
        more = [100 * (b / a - 1) for a, b in zip(samples, other_samples, strict=True)]
        report.add(figure, unit, target, {name: samples, other_name: other_samples, "more, %": more})

    def rates(timings: Sequence[Timing]) -> list[float]:
        return [(job.iterations - 1) / timing.iterating for timing in timings]

    def others(timings: Sequence[Timing]) -> list[float]:
        return [timing.others for timing in timings]

    report.add("iteration rate", "1/s", "", {name: rates(base), other_name: rates(other)})
    add("first to last progress", "s", attrgetter("iterating"), target)
    add("whole call", "s", attrgetter("call"))
    add("in the engine's steps", "s", attrgetter("computing"))
    add("processor time, all processes", "s", lambda timing: sum(timing.cpu.values()))
    for process in dict.fromkeys(process for timing in (*base, *other) for process in timing.cpu):
        lanes = {lane: [t.cpu[process] for t in timings if process in t.cpu] for lane, timings in (first, second)}
        report.add(f"processor time, {process}", "s", "", {lane: used for lane, used in lanes.items() if used})
    report.add("processors busy for others", "", "0", {name: others(base), other_name: others(other)})
