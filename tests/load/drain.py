"""Everything is restarted under load, one process after the other: nothing is lost, and no client notices.

python tests/load/drain.py --seed 1
"""

import argparse
import asyncio
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from time import monotonic

from clients import running_clients
from cluster import GRACE_SECONDS, NATS, Cluster, Member, running_cluster
from findings import add_findings, let_end, start_jobs, uncut_results
from jobs import mixed_jobs, mixed_works
from table import Table, finish

CLIENTS = 4
WORKS = 3


@dataclass(frozen=True)
class Drain:
    """A rolling restart.

    Attributes:
        seed: of the jobs.
        jobs: asked for in all.
        pause: seconds between a process that is ready again and the next to go.
        largest, longest: size in pixels and iterations of the biggest job.
        model_servers: that take over from each other; one takes over from itself.
    """

    seed: int
    jobs: int
    pause: float
    largest: int = 160
    longest: int = 60
    model_servers: int = 2


async def run(drain: Drain, folder: Path) -> Table:
    """Restarts a cluster with its files in `folder` under load; what it found."""
    rng = Random(drain.seed)
    works = mixed_works(rng, WORKS, largest=drain.largest, longest=drain.longest)
    table = Table("drain", f"Rolling restart, seed {drain.seed}", details={"drain": asdict(drain)})
    async with (
        running_cluster(folder, model_servers=drain.model_servers) as cluster,
        running_clients(CLIENTS, cluster.gateway_ports) as clients,
    ):
        uncut = await uncut_results(clients, works)
        plans = mixed_jobs(rng, drain.jobs, works, drain.pause * len(cluster.members))
        pairs, tasks = start_jobs(clients, plans)
        await _restart_all(table, cluster, drain.pause)
        await let_end(pairs, tasks)
        await add_findings(table, pairs, uncut, cluster)
    again = sum(resume["iterations"] for resume in table.details["resumes"])
    table.add("iterations that a drain did again", again, "0", again == 0)
    return table


async def _restart_all(table: Table, cluster: Cluster, pause: float) -> None:
    for member in [*cluster.gateways, *cluster.model_servers, *cluster.nats]:
        await asyncio.sleep(pause)
        await _restart(table, member)
    for member in cluster.members:
        await member.ready()


async def _restart(table: Table, member: Member) -> None:
    start = monotonic()
    code = await member.stop()
    seconds = monotonic() - start
    print(f"{member.name} left with {code} after {seconds:.1f} s", flush=True)
    table.add(f"{member.name}: exit status", code, "0", code == 0)
    grace = GRACE_SECONDS[member.kind]
    table.add(f"{member.name}: seconds to leave", seconds, f"under {grace:g}", seconds < grace)
    member.start()
    if member.kind != NATS:
        await member.ready()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="Of the jobs.")
    parser.add_argument("--jobs", type=int, default=24, help="Jobs in all.")
    parser.add_argument("--pause", type=float, default=8.0, help="Seconds between two restarts.")
    drain = Drain(**vars(parser.parse_args()))
    return finish("drain", lambda folder: asyncio.run(run(drain, folder)))


if __name__ == "__main__":
    sys.exit(main())
