"""The machine, and how much of it everybody else takes."""

import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil


def facts() -> dict[str, str | int | float]:
    """What a figure depends on and its reader cannot know."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


class OtherLoad:
    """Measures, while its block runs, how many processors work for others than this benchmark."""

    processors = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter(), _busy() - _own()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        start, before = self._start
        self.processors = max(0.0, (_busy() - _own() - before) / (time.perf_counter() - start))


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, all its threads together."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def _busy() -> float:
    """Processor seconds not idle since the machine started; what a hypervisor took away counts."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _own() -> float:
    this = psutil.Process()
    return sum(cpu_seconds(process.pid) for process in (this, *this.children(recursive=True)))
