"""Leases and fencing, on a real nats-server."""

import asyncio
import dataclasses

import pytest
from lease_support import LEASE_SECONDS, SHORT_LEASES, claimed, history, no_ticket_left, progress, succeeded

from nst.internal.v1.job_record_pb2 import Checkpoint
from nst.v1 import job_pb2
from nst_server.config import StoreSettings
from nst_server.jobs import claims
from nst_server.jobs.backbone import StoreFull, connect
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.lease import Superseded
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.tickets import Flow


@SHORT_LEASES
async def test_what_a_superseded_attempt_writes_is_refused(commands, leases, other_leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    zombie = await claimed(leases, tickets)
    await zombie.append(progress(1))
    heir = await claimed(other_leases, tickets)  # the ticket comes again once the lease has run out
    assert (zombie.attempt, heir.attempt) == (1, 2)

    for write in (
        zombie.append(progress(2)),
        zombie.append(succeeded(2)),
        zombie.save_checkpoint(b"old", Checkpoint(iteration=2)),
        zombie.refresh(),
        zombie.close(),
        zombie.hand_back("late"),
        zombie.pause_or_hand_back(),
        zombie.cancel(),
    ):
        with pytest.raises(Superseded):
            await write

    await heir.append(succeeded(5))
    await heir.close()
    events = await history(commands, job.job_id)
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert [event.attempt for event in events] == [0, 1, 1, 2, 2]
    assert events[-1].result.iterations == 5


@SHORT_LEASES
async def test_a_zombie_that_wakes_after_the_end_cannot_end_the_job_again(
    commands, leases, other_leases, tickets, spec
):
    job = await commands.create("request", "tenant", spec, "")
    zombie = await claimed(leases, tickets)
    heir = await claimed(other_leases, tickets)
    await heir.append(succeeded(5))
    await heir.close()
    with pytest.raises(Superseded):
        await zombie.append(succeeded(3))
    assert sum(event.HasField("result") for event in await history(commands, job.job_id)) == 1
    assert (await commands.get(job.job_id)).result.iterations == 5


@SHORT_LEASES
async def test_a_kept_lease_is_not_given_away(commands, leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    keeping = asyncio.create_task(lease.keep_alive())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tickets.next(list), 2.5 * LEASE_SECONDS)
    keeping.cancel()


async def test_a_kept_lease_outlives_a_gateway_that_makes_leases_shorter(
    nats_url, store_settings, commands, leases, tickets, spec
):
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    keeping = asyncio.create_task(lease.keep_alive())
    async with connect(nats_url, "gateway", dataclasses.replace(store_settings, lease_seconds=2.0)):
        pass
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tickets.next(list), 4.0)
    assert tickets.lease_seconds == 2.0
    keeping.cancel()


@SHORT_LEASES
async def test_the_next_attempt_finds_the_last_whole_checkpoint(commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    first = await claimed(leases, tickets)
    for iteration in (3, 6, 9):
        await first.save_checkpoint(f"state {iteration}".encode(), Checkpoint(iteration=iteration))
    second = await claimed(other_leases, tickets)
    assert second.record.checkpoint.iteration == 9
    assert await second.load_checkpoint() == b"state 9"
    assert second.last.event.state.from_iteration == 9


async def test_nothing_is_left_of_a_job_that_ended_but_its_history(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.save_checkpoint(b"x" * 2_000_000, Checkpoint(iteration=1))
    await lease.save_checkpoint(b"y" * 2_000_000, Checkpoint(iteration=2))
    await lease.append(succeeded(3))
    await lease.close()
    assert (await backbone.jetstream.stream_info("NST_CHECKPOINTS")).state.messages == 0
    await no_ticket_left(backbone)
    assert not (await commands.records.get(job.job_id)).checkpoint.object


async def test_handing_back_does_not_count_as_a_loss_and_is_quick(commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.hand_back("shutting down")
    heir = await claimed(other_leases, tickets)
    assert not heir.record.lease.lost_attempts
    assert heir.last.event.state.state == job_pb2.JOB_STATE_RUNNING


async def test_a_job_that_ended_is_not_handed_back(backbone, commands, leases, tickets, spec):
    """As when its model server has to leave between the end and the tidying up."""
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.append(succeeded(5))
    await lease.hand_back("shutting down")
    assert (await history(commands, job.job_id))[-1].result.iterations == 5
    assert (await commands.records.get(job.job_id)).HasField("ending")
    await no_ticket_left(backbone)


async def test_a_ticket_without_a_record_waits_and_is_then_dropped(backbone, leases, tickets, monkeypatch):
    queue = JobCommands(backbone, patience=5)._tickets
    await queue.put("nobody", Flow("batch", "tenant"))
    assert await leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None
    assert (await backbone.jetstream.stream_info("NST_TICKETS")).state.messages == 1
    monkeypatch.setattr(claims, "RECORD_POLLS", 0)
    assert await leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None
    await no_ticket_left(backbone)


@SHORT_LEASES
async def test_a_stalled_claim_leaves_its_heir_the_ticket(backbone, commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    message = await asyncio.wait_for(tickets.next(list), 10)
    again = await asyncio.wait_for(tickets.next(list), 10)  # the first delivery has run out
    heir = await other_leases.claim(again)
    assert await leases.claim(message) is None
    await backbone.nats.flush()
    assert (await backbone.jetstream.stream_info("NST_TICKETS")).state.messages == 1
    await heir.append(progress(1))


async def vanish(backbone) -> None:
    """Loses the consumer, and with it who holds what and how often it was delivered."""
    await backbone.jetstream.delete_consumer("NST_TICKETS", Flow("interactive", "tenant").consumer)


@SHORT_LEASES
async def test_a_vanished_consumer_takes_no_job_from_its_holder(
    backbone, commands, leases, other_leases, tickets, spec
):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    keeping = asyncio.create_task(lease.keep_alive())
    await vanish(backbone)
    again = await asyncio.wait_for(tickets.next(list), 10)
    assert again.metadata.num_delivered == 1  # the count begins again
    assert await other_leases.claim(again) is None
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tickets.next(list), 2 * LEASE_SECONDS)
    await lease.append(succeeded(1))
    await lease.close()
    keeping.cancel()
    await no_ticket_left(backbone)
    assert (await commands.get(job.job_id)).attempt == 1


@SHORT_LEASES
async def test_a_vanished_consumer_does_not_keep_a_job_with_a_dead_holder(
    backbone, commands, leases, other_leases, tickets, spec
):
    await commands.create("request", "tenant", spec, "")
    dead = await claimed(leases, tickets)
    await vanish(backbone)
    assert await other_leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None
    heir = await claimed(other_leases, tickets)  # once the holder has been silent for long enough
    assert (heir.attempt, heir.record.lease.lost_attempts) == (2, [1])
    with pytest.raises(Superseded):
        await dead.append(progress(1))


async def test_another_ticket_of_the_job_is_not_taken_for_the_attempts_own(commands, leases, tickets, backbone):
    job = await commands.create("request", "tenant", job_pb2.JobSpec(priority=job_pb2.PRIORITY_INTERACTIVE), "")
    lease = await claimed(leases, tickets)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    await lease.refresh()
    own = lease._message
    queue = TicketQueue(backbone, patience=5)
    await queue.put(job.job_id, Flow("interactive", "tenant"))
    other = await asyncio.wait_for(tickets.next(list), 10)
    assert not lease.redelivered(other)
    assert lease.redelivered(own)
    await lease.pause_or_hand_back()
    assert not lease.redelivered(own)


async def test_a_job_that_is_cancelled_while_it_is_handed_back_ends(commands, leases, tickets):
    job = await commands.create("request", "tenant", job_pb2.JobSpec(priority=job_pb2.PRIORITY_INTERACTIVE), "")
    lease = await claimed(leases, tickets)
    await commands.cancel(job.job_id)
    await lease.hand_back("the model server is shutting down")
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_CANCELLED


@pytest.mark.parametrize("store_settings", [StoreSettings(max_checkpoint_bytes=2 * 2**20)])
async def test_a_checkpoint_that_finds_no_room_leaves_the_last_good_one(commands, leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.save_checkpoint(b"good" * 2**18, Checkpoint(iteration=1))
    for iteration in (2, 3):  # in which its first part is written
        with pytest.raises(StoreFull, match="max_checkpoint_bytes"):
            await lease.save_checkpoint(b"more" * 2**19, Checkpoint(iteration=iteration))
        assert await lease.load_checkpoint() == b"good" * 2**18
