"""Small jobs without end: whether memory, open files, threads, tasks and the job store stay as they are.

python tests/load/soak.py --minutes 20
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic

import psutil
from clients import LoadClient, running_clients
from cluster import NO_PROXY, Cluster, running_cluster
from jobs import Work
from prometheus_client.parser import text_string_to_metric_families
from table import Table, finish
from trend import Trend, by_minute, thirds, trend

MIB = 2**20
SAMPLE_SECONDS = 5.0
WARM_UP_MINUTES = 10.0  # not judged: until then a gateway's heap still takes its shape, though nothing in it grows
CLIENTS = 2
JOBS_AT_ONCE = 2
FLAT_PERCENT = 5.0  # of the resident size, in an hour
FEW = 3  # files, threads or tasks more, which a connection that comes back may cost
STORE_GROWTH = 1.1
SHORTEST_MINUTES = 5.0
# What fills up by design is full by the end of the warm-up.
SOON_FULL = {"NST_RETENTION_HOURS": "0.03", "NST_PICTURE_CACHE_BYTES": str(2 * MIB)}


@dataclass(frozen=True)
class Sample:
    """Everything at one moment, by process and by stream."""

    seconds: float
    resident: dict[str, int]
    live: dict[str, int]
    files: dict[str, int]
    threads: dict[str, int]
    tasks: dict[str, int]
    store: dict[str, int]


async def run(minutes: float, seed: int, folder: Path) -> Table:
    """Soaks a cluster with its files in `folder` for so long after its warm-up; what it found."""
    rng = Random(seed)
    table = Table("soak", f"Soak, {minutes:g} minutes", details={"minutes": minutes, "seed": seed})
    async with (
        running_cluster(folder, environment=SOON_FULL) as cluster,
        running_clients(CLIENTS, cluster.gateway_ports) as clients,
    ):
        counts = [0] * (CLIENTS * JOBS_AT_ONCE)
        tasks = [asyncio.create_task(_work(clients[slot % CLIENTS], rng, slot, counts)) for slot in range(len(counts))]
        samples = await _sampled(cluster, 60 * (WARM_UP_MINUTES + minutes), tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    table.add("jobs", sum(counts))
    table.add("jobs a minute", sum(counts) / (WARM_UP_MINUTES + minutes))
    judged = [sample for sample in samples if sample.seconds >= 60 * WARM_UP_MINUTES]
    _add_memory(table, judged)
    _add_counts(table, judged)
    _add_store(table, judged)
    table.details["samples"] = [vars(sample) for sample in samples]
    return table


async def _work(client: LoadClient, rng: Random, slot: int, counts: list[int]) -> None:
    """One job after the other, each deleted once its result is there."""
    while True:
        work = Work("china", ("tissue",), 64, rng.randrange(3, 9), "lbfgs", strength=round(rng.random(), 6))
        job = await client.create(work, f"{slot}-{counts[slot]}")
        async for _ in job.events():
            pass
        await job.result()
        await client.sdk.delete_job(job.id)
        counts[slot] += 1


async def _sampled(cluster: Cluster, seconds: float, tasks: Sequence[asyncio.Task[None]]) -> list[Sample]:
    start = monotonic()
    samples = []
    ports = {member.name: member.ready_port for member in cluster.members if member.ready_port is not None}
    while (now := monotonic() - start) < seconds:
        processes = {member.name: psutil.Process(member.pid) for member in cluster.members}
        samples.append(
            Sample(
                seconds=now,
                resident={name: process.memory_info().rss for name, process in processes.items()},
                live=await cluster.live_bytes(),
                files={name: process.num_fds() for name, process in processes.items()},
                threads={name: process.num_threads() for name, process in processes.items()},
                tasks={name: await asyncio.to_thread(_loop_tasks, port) for name, port in ports.items()},
                store={name: stream.bytes for name, stream in (await cluster.store()).items()},
            )
        )
        done, _ = await asyncio.wait(tasks, timeout=SAMPLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # a client gives up: so does the soak
    return samples


def _loop_tasks(port: int) -> int:
    with NO_PROXY.open(f"http://127.0.0.1:{port}/metrics") as response:
        metrics = {family.name: family for family in text_string_to_metric_families(response.read().decode())}
    return int(metrics["nst_event_loop_tasks"].samples[0].value)


def _add_memory(table: Table, samples: Sequence[Sample]) -> None:
    for name in samples[0].resident:
        _add_growth(table, f"{name}: memory", [(sample.seconds, sample.resident[name]) for sample in samples])
    for name in samples[0].live:
        _add_growth(table, f"{name}: in use", [(sample.seconds, sample.live[name]) for sample in samples])


def _add_growth(table: Table, what: str, sizes: Sequence[tuple[float, int]]) -> None:
    by_minutes = by_minute([(seconds, size / MIB) for seconds, size in sizes])
    found = trend([(seconds / 3600, size) for seconds, size in by_minutes])
    table.add(f"{what} (MiB)", found.mean)
    flat = found.at_most(FLAT_PERCENT / 100 * found.mean)
    table.add(f"{what}, growth (MiB/h, % of it)", _growth(found), f"at most {FLAT_PERCENT:g} %", flat)


def _growth(found: Trend) -> str:
    percent = 100 * found.slope / found.mean
    return f"{found.slope:+.2f} ± {found.error:.2f}, {percent:+.2f} %"


def _add_counts(table: Table, samples: Sequence[Sample]) -> None:
    for kind, of in (("open files", "files"), ("threads", "threads"), ("tasks", "tasks")):
        by_process: list[dict[str, int]] = [getattr(sample, of) for sample in samples]
        for name in by_process[0]:
            first, last = thirds([counts[name] for counts in by_process])
            kept = max(last) <= max(first) + FEW
            table.add(f"{name}: most {kind}, first and last third", f"{max(first)}, {max(last)}", "alike", kept)


def _add_store(table: Table, samples: Sequence[Sample]) -> None:
    for name in samples[0].store:
        first, last = thirds([sample.store[name] / MIB for sample in samples])
        kept = max(last) <= max(STORE_GROWTH * max(first), 1.0)
        table.add(f"{name}: most MiB, first and last third", f"{max(first):.2f}, {max(last):.2f}", "alike", kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="How long, after ten of warm-up.")
    parser.add_argument("--seed", type=int, default=1, help="Of the jobs.")
    arguments = parser.parse_args()
    if arguments.minutes < SHORTEST_MINUTES:
        parser.error(f"--minutes: at least {SHORTEST_MINUTES:g}, or nothing can be told")
    return finish("soak", lambda folder: asyncio.run(run(arguments.minutes, arguments.seed, folder)))


if __name__ == "__main__":
    sys.exit(main())
