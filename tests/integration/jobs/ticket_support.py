"""What the tests of tickets share: putting them into the queue, and taking them out."""

import asyncio

import pytest

from nst.internal.v1.job_record_pb2 import Ticket
from nst_server.config import StoreSettings
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.tickets import Flow, TicketSource
from nst_server.jobs.topology import ticket_consumers


def settings(lease_seconds: float) -> StoreSettings:
    return StoreSettings(
        max_queued_jobs=60, max_tenant_jobs=40, max_tenant_running_jobs=30, lease_seconds=lease_seconds
    )


async def opened(backbone) -> TicketSource:
    source = TicketSource(backbone)
    await source.open()
    return source


async def put(queue: TicketQueue, tenant: str, *job_ids: str, lane="interactive", large=False) -> None:
    flow = Flow(lane, tenant, large)
    for job_id in job_ids:
        await queue.put(job_id, flow)
        await queue.wake(flow)


async def taken(source: TicketSource, rank=list):
    return await asyncio.wait_for(source.next(rank), 10)


def job_of(message) -> str:
    return str(Ticket.FromString(message.data).job_id)


async def nothing(source: TicketSource, seconds: float, rank=list) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source.next(rank), seconds)


async def waited_on(backbone, requests: int = 1) -> None:
    """Waits until so many requests are open with a consumer."""
    for _ in range(500):
        if any(consumer.num_waiting == requests for consumer in await ticket_consumers(backbone.jetstream)):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")
