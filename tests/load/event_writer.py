"""Jobs that run without computing: a process that claims them and writes their events as a model server would."""

import asyncio
import contextlib
import random
from multiprocessing.connection import Connection

from nst.v1 import image_pb2, job_pb2
from nst_calls import stored_spec
from nst_server.gateway.calls import DEFAULT_TENANT
from nst_server.jobs.backbone import Backbone, connect
from nst_server.jobs.belongings import incarnation
from nst_server.jobs.blobs import PreviewStore
from nst_server.jobs.claims import Leases
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.lease import Lease
from nst_server.jobs.tickets import TicketSource

PROGRESS_SECONDS = 0.1
PROGRESS_PER_PREVIEW = 10
PREVIEW_BYTES = 100_000  # as a PNG of 256 pixels has


def write_events(nats_url: str, jobs: int, parent: Connection) -> None:
    """Creates and claims jobs, sends their ids, and writes events until it is told to stop."""
    asyncio.run(_write_events(nats_url, jobs, parent))


async def _write_events(nats_url: str, jobs: int, parent: Connection) -> None:
    async with connect(nats_url, "writer", None) as backbone:
        commands = JobCommands(backbone, patience=10)
        made = [await commands.create(f"load {job}", DEFAULT_TENANT, stored_spec(), "") for job in range(jobs)]
        leases = await _claim(backbone, jobs)
        parent.send([job.job_id for job in made])
        stop = asyncio.create_task(asyncio.to_thread(parent.recv))
        async with asyncio.TaskGroup() as group:
            for number, lease in enumerate(leases):
                group.create_task(_run(lease, PreviewStore(backbone, patience=None), random.Random(number), stop))


async def _claim(backbone: Backbone, jobs: int) -> list[Lease]:
    tickets = TicketSource(backbone)
    await tickets.open()
    leases = Leases(backbone, "writer", lambda: tickets.lease_seconds, max_lost_attempts=5)
    claimed: list[Lease] = []
    while len(claimed) < jobs:
        if (lease := await leases.claim(await tickets.next(lambda flows: flows))) is not None:
            claimed.append(lease)
    return claimed


async def _run(lease: Lease, previews: PreviewStore, rng: random.Random, stop: asyncio.Task[object]) -> None:
    """Writes one job's events at its pace until `stop` is done, then ends it."""
    keeping = asyncio.create_task(lease.keep_alive())
    loop = asyncio.get_running_loop()
    due, iteration = loop.time() + rng.random(), 0
    first_preview = rng.randrange(PROGRESS_PER_PREVIEW)
    while not stop.done():
        await asyncio.sleep(max(0.0, due - loop.time()))
        due += PROGRESS_SECONDS
        iteration += 1
        await lease.append(_progress(iteration))
        if iteration % PROGRESS_PER_PREVIEW == first_preview:
            digest = await previews.put(incarnation(lease.record), rng.randbytes(PREVIEW_BYTES))
            preview = job_pb2.Preview(iteration=iteration, reference=image_pb2.ImageReference(sha256=digest))
            await lease.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, preview=preview))
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    await lease.cancel()


def _progress(iteration: int) -> job_pb2.JobEvent:
    losses = {"content": 1.5 / iteration, "style": 7.25 / iteration, "tv": 0.125, "box": 0.0}
    progress = job_pb2.Progress(
        iteration=iteration,
        iterations=5000,
        scale=1,
        scales=3,
        width=256,
        height=192,
        total_loss=sum(losses.values()),
        losses=losses,
        iterations_per_second=10,
        seconds_left=60,
    )
    return job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, progress=progress)
