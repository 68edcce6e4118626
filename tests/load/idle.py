"""Nothing happens for long: jobs wait or are paused, and are watched; who is forgotten, and what it costs.

python tests/load/idle.py --minutes 10
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import grpc
import psutil
from clients import running_clients
from cluster import MODEL_SERVER, Cluster, running_cluster
from jobs import Work
from table import Table, finish

from nst.v1 import job_pb2
from nst.v1.job_service_pb2 import WatchJobRequest
from nst.v1.job_service_pb2_grpc import JobServiceStub
from nst_client import AsyncJob, NstError

MIB = 2**20
WORK = Work("china", ("tissue",), size=64, iterations=5, optimizer="lbfgs")
JOBS = 20
WATCHERS = 10  # of each job, at each gateway
HEARTBEAT_SECONDS = 15.0  # the default of the setting of this name
LATE_SECONDS = 2.0
SETTLE_SECONDS = 30.0
END_SECONDS = 120.0
MOST_PROCESSORS = 0.1
SUCCEEDED = job_pb2.JobState.Name(job_pb2.JOB_STATE_SUCCEEDED)


@dataclass
class Watcher:
    """One who follows a job.

    Attributes:
        sequences: numbers of the events that came.
        heartbeats: how many came.
        longest: the longest silence, in seconds.
        ending: the job's state by the last event, or the error that came instead of its end.
    """

    sequences: list[int] = field(default_factory=list)
    heartbeats: int = 0
    longest: float = 0.0
    ending: str = ""

    @property
    def content(self) -> bool:
        """Whether it has seen all of a job that succeeded."""
        return self.ending == SUCCEEDED and self.sequences == [*range(1, len(self.sequences) + 1)]

    async def follow_stream(self, stub: JobServiceStub, job_id: str, tenant: str) -> None:
        """By the bare call, in which heartbeats and breaks can be seen."""
        metadata = grpc.aio.Metadata(("x-nst-tenant", tenant))
        last = monotonic()
        try:
            async for response in stub.WatchJob(WatchJobRequest(job_id=job_id), metadata=metadata):
                now = monotonic()
                self.longest, last = max(self.longest, now - last), now
                self.heartbeats += response.HasField("heartbeat")
                if response.HasField("event"):
                    self.sequences.append(response.event.sequence)
                    self.ending = job_pb2.JobState.Name(response.event.job_state)
        except grpc.aio.AioRpcError as error:
            self.ending = f"{error.code().name}: {error.details()}"

    async def follow_job(self, job: AsyncJob) -> None:
        """As a user of the SDK does."""
        try:
            async for event in job.events(omit_pictures=True):
                self.sequences.append(event.sequence)
                self.ending = job_pb2.JobState.Name(event.job_state)
        except NstError as error:
            self.ending = f"{type(error).__name__}: {error}"


async def run(minutes: float, folder: Path) -> Table:
    """Lets the jobs wait for so long, then has them done; what was found."""
    table = Table("idle", f"{JOBS} jobs, half of them paused, of which nothing is heard for {minutes:g} minutes")
    async with (
        running_cluster(folder, model_servers=1, without=MODEL_SERVER) as cluster,
        running_clients(1, cluster.gateway_ports) as (client,),
    ):
        (model_server,) = cluster.model_servers
        jobs = [await client.create(WORK, f"idle-{number}") for number in range(JOBS)]
        for job in jobs[::2]:
            await job.pause()
        async with _watched(cluster, jobs, client.name) as (streams, users, following):
            await asyncio.sleep(SETTLE_SECONDS)
            before = _usage(cluster)
            await asyncio.sleep(60 * minutes)
            _add_cost(table, before, _usage(cluster), 60 * minutes)
            _add_silence(table, streams, 60 * minutes)
            model_server.start()
            await model_server.ready()
            for job in jobs[::2]:
                await job.resume()
            await asyncio.wait(following, timeout=END_SECONDS)
    for name, watchers in (("streams", streams), ("users of the SDK", users)):
        unlucky = [vars(watcher) for watcher in watchers if not watcher.content]
        table.add(f"{name} that did not see their job through, of {len(watchers)}", len(unlucky), "0", not unlucky)
        table.details[name] = unlucky
    return table


@asynccontextmanager
async def _watched(
    cluster: Cluster, jobs: Sequence[AsyncJob], tenant: str
) -> AsyncIterator[tuple[list[Watcher], list[Watcher], list[asyncio.Task[None]]]]:
    """Streams of every job at every gateway, one user of the SDK for each job, and what follows for them."""
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}") for port in cluster.gateway_ports]
    stubs = [JobServiceStub(channel) for channel in channels for _ in range(WATCHERS)]
    streams = [(Watcher(), stub, job) for stub in stubs for job in jobs]
    users = [(Watcher(), job) for job in jobs]
    following = [asyncio.create_task(watcher.follow_stream(stub, job.id, tenant)) for watcher, stub, job in streams]
    following += [asyncio.create_task(watcher.follow_job(job)) for watcher, job in users]
    try:
        yield [watcher for watcher, *_ in streams], [watcher for watcher, _ in users], following
    finally:
        for task in following:
            task.cancel()
        for channel in channels:
            await channel.close()


def _usage(cluster: Cluster) -> dict[str, tuple[float, float]]:
    """Processor seconds and resident MiB of each process, by its name."""
    processes = {member.name: psutil.Process(member.pid) for member in (*cluster.nats, *cluster.gateways)}
    return {
        name: (sum(process.cpu_times()[:2]), process.memory_info().rss / MIB) for name, process in processes.items()
    }


def _add_cost(
    table: Table, before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], seconds: float
) -> None:
    for name, (used, resident) in after.items():
        processors = (used - before[name][0]) / seconds
        target = f"under {MOST_PROCESSORS:g}"
        table.add(f"{name}: processors", processors, target, processors < MOST_PROCESSORS)
        table.add(f"{name}: memory before and after (MiB)", f"{before[name][1]:.1f}, {resident:.1f}")


def _add_silence(table: Table, streams: Sequence[Watcher], seconds: float) -> None:
    longest, limit = max(watcher.longest for watcher in streams), HEARTBEAT_SECONDS + LATE_SECONDS
    table.add("longest silence of a stream (s)", longest, f"under {limit:g}", longest < limit)
    fewest, due = min(watcher.heartbeats for watcher in streams), int(seconds / limit)
    table.add("fewest heartbeats of a stream", fewest, f"at least {due}", fewest >= due)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="How long nothing happens.")
    arguments = parser.parse_args()
    return finish("idle", lambda folder: asyncio.run(run(arguments.minutes, folder)))


if __name__ == "__main__":
    sys.exit(main())
