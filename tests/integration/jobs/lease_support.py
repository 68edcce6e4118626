"""What the tests of leases share: claiming, events, and the end of a queue."""

import asyncio

import pytest

from nst.v1 import job_pb2
from nst_server.jobs.backbone import Backbone
from nst_server.jobs.claims import Leases
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.lease import Lease
from nst_server.jobs.tickets import TicketSource

LONG_LEASE_SECONDS = 60.0
LEASE_SECONDS = 1.0
# For tests in which a lease runs out; in the others none may, however slow the machine is.
SHORT_LEASES = pytest.mark.parametrize("lease_seconds", [LEASE_SECONDS])


async def claimed(leases: Leases, tickets: TicketSource) -> Lease:
    lease = await leases.claim(await asyncio.wait_for(tickets.next(list), 10))
    assert lease is not None
    return lease


async def history(commands: JobCommands, job_id: str) -> list[job_pb2.JobEvent]:
    return [stored.event async for stored in commands.events.read(job_id)]


async def no_ticket_left(backbone) -> None:
    """Waits until the queue is empty: an acknowledgement is not answered."""
    for _ in range(500):
        if not (await backbone.jetstream.stream_info("NST_TICKETS")).state.messages:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a ticket is left")


def progress(iteration: int) -> job_pb2.JobEvent:
    return job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, progress=job_pb2.Progress(iteration=iteration))


def succeeded(iterations: int) -> job_pb2.JobEvent:
    return job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_SUCCEEDED, result=job_pb2.Result(iterations=iterations))


def of_server(backbone: Backbone, number: int, lease_seconds: float = LEASE_SECONDS) -> Leases:
    return Leases(backbone, f"server-{number}", lambda: lease_seconds, max_lost_attempts=2)
