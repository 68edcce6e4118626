"""The Prometheus metrics that gateways and model servers have in common; their own are beside their code.

A process shows the metrics of what it has imported, so that none shows another's as zeros.
"""

import asyncio

from prometheus_client import Counter, Gauge

JOBS = Counter("nst_jobs", "Jobs by the state they reached.", ["state"])
TASKS = Gauge("nst_event_loop_tasks", "Tasks of the process's event loop.")


def count_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Has `TASKS` tell of this loop whenever somebody looks."""
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
