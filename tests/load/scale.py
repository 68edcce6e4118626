"""How many more jobs two model servers get done than one, and eight jobs together than one after another.

python tests/load/scale.py --rounds 3
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from time import monotonic

from clients import LoadClient
from cluster import running_cluster
from jobs import Work
from table import Table, finish

from nst_client import AnyEvent, AsyncJob, JobState

WORK = Work("china", ("tissue",), 512, 10, "lbfgs")
SMALL = Work("china", ("tissue",), 96, 20, "lbfgs")
JOBS = 8
WARM_UP = 4
TOGETHER = 8
TWICE = 1.9

numbers = count()


async def run(rounds: int, folder: Path) -> Table:
    """Measures with clusters that have their files in `folder`; what it found."""
    table = Table("scale", f"Scale, {rounds} rounds", details={"cores": os.cpu_count(), "load": os.getloadavg()})
    await _measure_servers(table, rounds, folder / "servers")
    await _measure_together(table, rounds, folder / "together")
    return table


async def _measure_servers(table: Table, rounds: int, folder: Path) -> None:
    async with running_cluster(folder, gateways=1) as cluster, LoadClient("client", cluster.gateway_ports) as client:
        for member, core in zip(cluster.model_servers, sorted(os.sched_getaffinity(0)), strict=False):
            await member.stop()
            member.pin(core)
            member.start()
            await member.ready()
        second = cluster.model_servers[1]
        rates: dict[str, list[float]] = {"1 server": [], "2 servers": []}
        for _ in range(rounds):
            await _together(client, WORK, WARM_UP)  # a server's first jobs are slower, and the second is new each time
            rates["2 servers"].append(60 * JOBS / await _together(client, WORK, JOBS))
            await second.stop()
            rates["1 server"].append(60 * JOBS / await _together(client, WORK, JOBS))
            second.start()
            await second.ready()
    for name, samples in rates.items():
        table.add(f"{name}: jobs a minute", _spread(samples))
    ratios = [two / one for two, one in zip(rates["2 servers"], rates["1 server"], strict=True)]
    table.add("2 servers to 1", _spread(ratios), f"at least {TWICE:g}", median(ratios) >= TWICE)
    table.details["rates"] = rates


async def _measure_together(table: Table, rounds: int, folder: Path) -> None:
    seconds: dict[str, list[float]] = {"together": [], "one after another": []}
    ways: dict[str, Callable[[LoadClient, Work, int], Awaitable[float]]] = {
        "together": _together,
        "one after another": _one_after_another,
    }
    settings = {"NST_MAX_RUNNING_JOBS": str(TOGETHER)}
    async with (
        running_cluster(folder, gateways=1, model_servers=1, environment=settings) as cluster,
        LoadClient("client", cluster.gateway_ports) as client,
    ):
        await _together(client, SMALL, TOGETHER)
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(await way(client, SMALL, TOGETHER))
    for name, samples in seconds.items():
        table.add(f"{TOGETHER} small jobs {name}: seconds", _spread(samples))
    ratios = [alone / both for both, alone in zip(seconds["together"], seconds["one after another"], strict=True)]
    table.add("speed together to one after another", _spread(ratios), "at least 1", median(ratios) >= 1)
    table.details["seconds"] = seconds


async def _together(client: LoadClient, work: Work, jobs: int) -> float:
    """Seconds from the first start to the last end of jobs that all wait from the beginning."""
    made = [await client.create(work, str(next(numbers))) for _ in range(jobs)]
    histories = await asyncio.gather(*(_followed(job) for job in made))
    starts = [event.time for history in histories for event in history if event.job_state is JobState.RUNNING]
    return (max(history[-1].time for history in histories) - min(starts)).total_seconds()


async def _one_after_another(client: LoadClient, work: Work, jobs: int) -> float:
    """Seconds for jobs of which each is asked for when the one before has ended."""
    start = monotonic()
    for _ in range(jobs):
        await _followed(await client.create(work, str(next(numbers))))
    return monotonic() - start


async def _followed(job: AsyncJob) -> list[AnyEvent]:
    return [event async for event in job.events(omit_pictures=True)]


def _spread(samples: Sequence[float]) -> str:
    return f"{median(samples):.3g} ({min(samples):.3g} to {max(samples):.3g})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="Of each way in turn.")
    arguments = parser.parse_args()
    return finish("scale", lambda folder: asyncio.run(run(arguments.rounds, folder)))


if __name__ == "__main__":
    sys.exit(main())
