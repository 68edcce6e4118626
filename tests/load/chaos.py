"""Jobs from several clients while processes are killed and frozen and connections cut: what is lost, doubled, redone.

python tests/load/chaos.py --seed 1
"""

import argparse
import asyncio
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from time import monotonic

from clients import running_clients
from cluster import Cluster, running_cluster
from faults import Faults
from findings import add_findings, let_end, start_jobs, uncut_results
from jobs import mixed_jobs, mixed_works
from table import Table, finish

CLIENTS = 4
WORKS = 8  # at most, and each for two jobs at least
ARRIVALS = 0.85  # the share of the faults' time over which jobs are asked for
MOST_REDONE_SECONDS = 10.0
# Short, so that a frozen holder loses its jobs; and the harness's own kills must not count as the job's fault.
ENVIRONMENT = {"NST_LEASE_SECONDS": "3", "NST_MAX_LOST_ATTEMPTS": "1000"}


@dataclass(frozen=True)
class Chaos:
    """A run of chaos.

    Attributes:
        seed: of jobs and faults.
        jobs: asked for in all.
        faults: in all.
        pause: seconds between faults, on average.
        freeze_seconds: for how long a process is stopped.
        largest, longest: size in pixels and iterations of the biggest job.
        nats: nats-servers, which keep everything as often.
    """

    seed: int
    jobs: int
    faults: int
    pause: float
    freeze_seconds: float = 10.0
    largest: int = 192
    longest: int = 60
    nats: int = 1


async def run(chaos: Chaos, folder: Path) -> Table:
    """Runs the chaos on a cluster with its files in `folder`; what it found."""
    rng = Random(chaos.seed)
    works = mixed_works(rng, min(WORKS, chaos.jobs // 2), largest=chaos.largest, longest=chaos.longest)
    plans = mixed_jobs(rng, chaos.jobs, works, ARRIVALS * chaos.faults * chaos.pause)
    table = Table(f"chaos-{chaos.seed}", f"Chaos, seed {chaos.seed}", details={"chaos": asdict(chaos)})
    async with (
        running_cluster(folder, nats=chaos.nats, environment=ENVIRONMENT) as cluster,
        running_clients(CLIENTS, cluster.gateway_ports) as clients,
    ):
        uncut = await uncut_results(clients, works)
        start = monotonic()
        faults = Faults(cluster, clients, rng, chaos.freeze_seconds)
        pairs, tasks = start_jobs(clients, plans)
        await faults.run(chaos.faults, chaos.pause)
        await let_end(pairs, tasks)
        table.add("seconds from the first job to the last end", round(monotonic() - start))
        for member in cluster.members:
            await member.ready()
        _add_faults(table, faults, cluster)
        await add_findings(table, pairs, uncut, cluster)
    most = max((resume["seconds"] for resume in table.details["resumes"]), default=0.0)
    table.add("seconds done again, most", most, f"at most {MOST_REDONE_SECONDS:g}", most <= MOST_REDONE_SECONDS)
    return table


def _add_faults(table: Table, faults: Faults, cluster: Cluster) -> None:
    counts = Counter(f"{fault.action} {fault.target.rstrip('-0123456789')}" for fault in faults.done)
    for kind, count in sorted(counts.items()):
        table.add(f"faults: {kind}", count)
    table.add("faults in all", len(faults.done))
    table.details["faults"] = [asdict(fault) for fault in faults.done]
    died = {member.name: member.deaths for member in cluster.members if member.deaths}
    table.add("processes that died by themselves", sum(map(len, died.values())), "0", not died)
    table.details["deaths"] = died


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="Of jobs and faults.")
    parser.add_argument("--jobs", type=int, default=40, help="Jobs in all.")
    parser.add_argument("--faults", type=int, default=28, help="Faults in all.")
    parser.add_argument("--pause", type=float, default=8.0, help="Seconds between faults, on average.")
    parser.add_argument("--nats", type=int, default=1, help="nats-servers that keep everything, 1 or 3.")
    chaos = Chaos(**vars(parser.parse_args()))
    return finish(f"chaos-{chaos.seed}", lambda folder: asyncio.run(run(chaos, folder)))


if __name__ == "__main__":
    sys.exit(main())
