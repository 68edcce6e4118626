"""The consumers that hand tickets out come and go with their flows, on a real nats-server."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from lease_support import LONG_LEASE_SECONDS
from ticket_support import job_of, nothing, put, settings, taken, waited_on

from nst.internal.v1.job_record_pb2 import Announcement
from nst_server.config import StoreSettings
from nst_server.jobs import queue as queue_module
from nst_server.jobs.keeper import Keeper
from nst_server.jobs.tickets import Flow, make_consumer
from nst_server.jobs.topology import QueueRules, ticket_consumers


@pytest.fixture
def store_settings(lease_seconds: float) -> StoreSettings:
    return settings(lease_seconds)


async def test_a_consumer_that_vanished_is_made_again(backbone, queue, source):
    await put(queue, "a", "first", "second")
    await backbone.jetstream.delete_consumer("NST_TICKETS", Flow("interactive", "a").consumer)
    assert [job_of(await taken(source)) for _ in range(2)] == ["first", "second"]
    (made,) = await ticket_consumers(backbone.jetstream)
    assert made.config.ack_wait == LONG_LEASE_SECONDS
    assert made.config.max_ack_pending == 30


async def test_a_consumer_that_vanishes_while_it_is_waited_on_is_made_again(backbone, queue, source, other):
    await put(queue, "a", "leased")
    held = await taken(other)
    waiting = asyncio.create_task(source.next(list))
    await waited_on(backbone)
    await held.ack_sync(timeout=10)
    await backbone.jetstream.delete_consumer("NST_TICKETS", Flow("interactive", "a").consumer)
    await put(queue, "a", "new")  # the gateway believes that the consumer is there
    assert job_of(await asyncio.wait_for(waiting, 5)) == "new"


async def test_the_keeper_removes_consumers_without_tickets(backbone, store_settings, queue, source, monkeypatch):
    keepers = Keeper(backbone, store_settings), Keeper(backbone, store_settings)
    for tenant in ("gone", "leased", "waiting", "kept"):
        await put(queue, tenant, tenant)
    messages = {tenant: await taken(source, only(tenant)) for tenant in ("gone", "leased", "kept")}
    for tenant in ("gone", "kept"):
        await messages[tenant].ack_sync(timeout=10)
    monkeypatch.setattr(queue_module, "IDLE_CONSUMERS", 1)
    assert await queue.depths() == {"interactive": 2, "batch": 0}, "nobody works on what is leased"
    await backbone.servers.put("server", Announcement(running={"interactive": 1}).SerializeToString())
    assert await queue.depths() == {"interactive": 1, "batch": 0}
    await tended(keepers)
    assert await tenants_with_consumers(backbone) == {"gone", "leased", "waiting", "kept"}, "nobody has the lock"
    for keeper in keepers:
        await keeper.take_lock()
    await tended(keepers[1:])
    assert "gone" in await tenants_with_consumers(backbone), "the other one has it"
    await tended(keepers)
    assert await tenants_with_consumers(backbone) == {"leased", "waiting", "kept"}
    monkeypatch.setattr(queue_module, "IDLE_CONSUMER_SECONDS", -1.0)
    await tended(keepers)
    assert await tenants_with_consumers(backbone) == {"leased", "waiting"}
    await put(queue, "gone", "again")
    assert job_of(await taken(source, only("gone"))) == "again"


async def tended(keepers: Iterable[Keeper]) -> None:
    for keeper in keepers:
        await keeper.tend_queue()


def only(tenant: str):
    return lambda flows: [flow for flow in flows if flow.tenant == tenant]


async def tenants_with_consumers(backbone) -> set[str]:
    return {Flow.of(one.config.filter_subject).tenant for one in await ticket_consumers(backbone.jetstream)}


async def test_a_consumer_that_gets_a_lease_while_it_is_looked_at_is_not_removed(backbone, queue, source, monkeypatch):
    """The list says that it is idle; by the time it would be removed it no longer is."""
    await put(queue, "a", "first")
    await (await taken(source)).ack_sync(timeout=10)
    (idle,) = await ticket_consumers(backbone.jetstream)
    await put(queue, "a", "second")
    held = await taken(source)
    await queue.remove_consumer(idle)
    (kept,) = await ticket_consumers(backbone.jetstream)
    assert (kept.num_ack_pending, bool(kept.paused)) == (1, False)
    await held.ack_sync(timeout=10)
    await put(queue, "a", "third")
    assert job_of(await taken(source)) == "third"


async def test_a_paused_consumer_gives_nothing_out_even_when_it_is_made_again(backbone, queue, source):
    """What the removal of a consumer stands on."""
    await put(queue, "a", "job")
    flow = Flow("interactive", "a")
    until = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    await backbone.jetstream.pause_consumer("NST_TICKETS", flow.consumer, until)
    await make_consumer(backbone, flow, QueueRules(LONG_LEASE_SECONDS, 40, 30, 20))
    await nothing(source, 0.3)
    await backbone.jetstream.resume_consumer("NST_TICKETS", flow.consumer)
    assert job_of(await taken(source)) == "job"
