"""Tickets, leases and fencing, on a real nats-server."""

import asyncio

import pytest
from google.rpc import code_pb2

from nst.internal.v1.job_record_pb2 import Checkpoint, Ticket
from nst.v1 import job_pb2
from nst_server.jobs import claims
from nst_server.jobs.backbone import Backbone
from nst_server.jobs.claims import Leases
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.lease import Lease, Superseded
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.suspicion import MustRunAlone
from nst_server.jobs.tickets import Flow, TicketSource

LEASE_SECONDS = 1.0


@pytest.fixture
def commands(backbone):
    return JobCommands(backbone, patience=5)


@pytest.fixture
def leases(backbone):
    return Leases(backbone, "server-a", LEASE_SECONDS, max_lost_attempts=2)


@pytest.fixture
def other_leases(backbone):
    return Leases(backbone, "server-b", LEASE_SECONDS, max_lost_attempts=2)


@pytest.fixture
async def tickets(backbone):
    source = TicketSource(backbone)
    await source.open()
    return source


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


async def test_a_kept_lease_is_not_given_away(commands, leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    keeping = asyncio.create_task(lease.keep_alive())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tickets.next(list), 2.5 * LEASE_SECONDS)
    keeping.cancel()


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


def of_server(backbone: Backbone, number: int) -> Leases:
    return Leases(backbone, f"server-{number}", LEASE_SECONDS, max_lost_attempts=2)


async def ended(backbone: Backbone, commands: JobCommands, tickets: TicketSource, job_id: str) -> job_pb2.JobError:
    """The error that the next claim ends the job with."""
    message = await asyncio.wait_for(tickets.next(list), 10)
    assert await of_server(backbone, 99).claim(message, alone=False) is None
    return (await commands.get(job_id)).error


async def test_a_job_that_kills_two_servers_is_quarantined(backbone, commands, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    for number in range(2):
        lease = await claimed(of_server(backbone, number), tickets)
        await lease.append(progress(7))
    error = await ended(backbone, commands, tickets, job.job_id)
    assert (error.code, error.reason) == (code_pb2.ABORTED, "QUARANTINED")
    assert "iteration 7" in error.message
    assert "max_lost_attempts = 2" in error.message


async def test_only_a_checkpoint_beyond_the_last_loss_clears_a_job(backbone, commands, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    first = await claimed(of_server(backbone, 0), tickets)
    await first.append(progress(50))
    second = await claimed(of_server(backbone, 1), tickets)
    assert second.record.lease.furthest == 50
    await second.save_checkpoint(b"state", Checkpoint(iteration=50))
    assert second.suspected
    await ended(backbone, commands, tickets, job.job_id)
    assert (await commands.get(job.job_id)).error.reason == "QUARANTINED"


async def test_a_job_that_gets_on_may_lose_any_number_of_servers(backbone, commands, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    for number in range(4):
        lease = await claimed(of_server(backbone, number), tickets)
        assert lease.suspected == (number > 0)
        await lease.append(progress(10 * number + 5))
        await lease.save_checkpoint(b"state", Checkpoint(iteration=10 * number + 6))
        assert not lease.suspected


async def test_a_suspect_is_claimed_only_by_a_server_that_has_no_other_job(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    await claimed(of_server(backbone, 0), tickets)
    message = await asyncio.wait_for(tickets.next(list), 10)
    before = await commands.records.get(job.job_id)
    with pytest.raises(MustRunAlone):
        await leases.claim(message, alone=False)
    assert await commands.records.get(job.job_id) == before, "a server that dies now has lost nothing"
    assert await leases.claim(message) is not None


async def test_a_suspect_that_is_not_to_run_needs_no_server_to_itself(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    await claimed(of_server(backbone, 0), tickets)
    await commands.cancel(job.job_id)
    assert await leases.claim(await asyncio.wait_for(tickets.next(list), 10), alone=False) is None
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_CANCELLED


async def test_what_ran_out_of_memory_is_alone_until_it_has_got_on(commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.append(progress(3))
    await lease.hand_back("ran out of memory", alone=True)
    message = await asyncio.wait_for(tickets.next(list), 10)
    with pytest.raises(MustRunAlone):
        await other_leases.claim(message, alone=False)
    heir = await other_leases.claim(message)
    assert heir.record.lease.alone
    assert heir.record.lease.lost_attempts == 0
    await heir.save_checkpoint(b"state", Checkpoint(iteration=3))
    assert heir.suspected
    await heir.save_checkpoint(b"state", Checkpoint(iteration=4))
    assert not heir.suspected


async def test_an_abandoned_job_comes_again_at_once_and_counts_as_lost(commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    await (await claimed(leases, tickets)).abandon()
    heir = await other_leases.claim(await asyncio.wait_for(tickets.next(list), LEASE_SECONDS / 2))
    assert heir.record.lease.lost_attempts == 1


async def test_handing_back_does_not_count_as_a_loss_and_is_quick(commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.hand_back("shutting down")
    heir = await claimed(other_leases, tickets)
    assert heir.record.lease.lost_attempts == 0
    assert heir.last.event.state.state == job_pb2.JOB_STATE_RUNNING


async def test_a_ticket_without_a_record_waits_and_is_then_dropped(backbone, leases, tickets, monkeypatch):
    queue = JobCommands(backbone, patience=5)._tickets
    await queue.put("nobody", "tenant", job_pb2.PRIORITY_BATCH)
    assert await leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None
    assert (await backbone.jetstream.stream_info("NST_TICKETS")).state.messages == 1
    monkeypatch.setattr(claims, "RECORD_WAIT_SECONDS", 0.0)
    assert await leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None
    await no_ticket_left(backbone)


async def test_a_pause_that_was_taken_back_loses_nothing(commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=False))
    await lease.pause_or_hand_back()
    heir = await claimed(leases, tickets)
    assert heir.attempt == 2
    states = [event.job_state for event in await history(commands, job.job_id)]
    assert job_pb2.JOB_STATE_PAUSED not in states


async def test_a_pause_whose_server_died_can_be_resumed(commands, leases, other_leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    await claimed(leases, tickets)  # and never heard of again
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    assert await other_leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_PAUSED
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=False))
    assert (await claimed(other_leases, tickets)).last.event.job_state == job_pb2.JOB_STATE_RUNNING


async def test_pausing_again_and_again_loses_no_ticket(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    for _ in range(3):
        await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
        await commands.update(job.job_id, job_pb2.JobUpdate(paused=False))
        lease = await claimed(leases, tickets)
        await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
        await lease.pause_or_hand_back()
        await backbone.nats.flush()
        await commands.update(job.job_id, job_pb2.JobUpdate(paused=False))
    await claimed(leases, tickets)


async def test_a_ticket_pulled_before_its_record_was_written_is_not_lost(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    await lease.pause_or_hand_back()
    early = await commands._tickets.put(job.job_id, "tenant", job_pb2.PRIORITY_INTERACTIVE)
    assert await leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None

    def write(record):
        record.control.paused = False
        record.ticket.CopyFrom(early)

    await commands.records.update(job.job_id, write)
    await claimed(leases, tickets)


async def test_a_stalled_claim_leaves_its_heir_the_ticket(backbone, commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    message = await asyncio.wait_for(tickets.next(list), 10)
    again = await asyncio.wait_for(tickets.next(list), 10)  # the first delivery has run out
    heir = await other_leases.claim(again)
    assert await leases.claim(message) is None
    await backbone.nats.flush()
    assert (await backbone.jetstream.stream_info("NST_TICKETS")).state.messages == 1
    await heir.append(progress(1))


async def test_a_cancelled_pause_leaves_no_checkpoint(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.save_checkpoint(b"state", Checkpoint(iteration=4))
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    await lease.pause_or_hand_back()
    assert (await asyncio.wait_for(commands.cancel(job.job_id), 3)).state == job_pb2.JOB_STATE_CANCELLED
    assert (await backbone.jetstream.stream_info("NST_CHECKPOINTS")).state.messages == 0


async def test_a_paused_job_holds_no_ticket_and_resumes_elsewhere(
    backbone, commands, leases, other_leases, tickets, spec
):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.save_checkpoint(b"state", Checkpoint(iteration=4))
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    await lease.pause_or_hand_back()
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_PAUSED
    await no_ticket_left(backbone)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=False))
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_QUEUED
    heir = await claimed(other_leases, tickets)
    assert await heir.load_checkpoint() == b"state"
    states = [event.job_state for event in await history(commands, job.job_id)]
    assert states == [
        job_pb2.JOB_STATE_QUEUED,
        job_pb2.JOB_STATE_RUNNING,
        job_pb2.JOB_STATE_PAUSED,
        job_pb2.JOB_STATE_QUEUED,
        job_pb2.JOB_STATE_RUNNING,
    ]


async def vanish(backbone) -> None:
    """Loses the consumer, and with it who holds what and how often it was delivered."""
    await backbone.jetstream.delete_consumer("NST_TICKETS", Flow("interactive", "tenant").consumer)


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


async def test_a_vanished_consumer_does_not_keep_a_job_with_a_dead_holder(
    backbone, commands, leases, other_leases, tickets, spec
):
    await commands.create("request", "tenant", spec, "")
    dead = await claimed(leases, tickets)
    await vanish(backbone)
    assert await other_leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None
    heir = await claimed(other_leases, tickets)  # once the holder has been silent for long enough
    assert (heir.attempt, heir.record.lease.lost_attempts) == (2, 1)
    with pytest.raises(Superseded):
        await dead.append(progress(1))


async def test_another_ticket_of_the_job_is_not_taken_for_the_attempts_own(commands, leases, tickets, backbone):
    job = await commands.create("request", "tenant", job_pb2.JobSpec(priority=job_pb2.PRIORITY_INTERACTIVE), "")
    lease = await claimed(leases, tickets)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    await lease.refresh()
    own = lease._message
    queue = TicketQueue(backbone, patience=5)
    await queue.put(job.job_id, "tenant", job_pb2.PRIORITY_INTERACTIVE)
    other = await asyncio.wait_for(tickets.next(list), 10)
    assert not lease.redelivered(other)
    assert lease.redelivered(own)
    await lease.pause_or_hand_back()
    assert not lease.redelivered(own)


async def test_a_pause_that_a_resume_has_overtaken_writes_nothing(commands, monkeypatch):
    job = await commands.create("request", "tenant", job_pb2.JobSpec(priority=job_pb2.PRIORITY_INTERACTIVE), "")
    write = commands._updates._unheld.write

    async def late(job_id, make_event):
        monkeypatch.undo()
        await commands.update(job_id, job_pb2.JobUpdate(paused=False))
        await write(job_id, make_event)

    monkeypatch.setattr(commands._updates._unheld, "write", late)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    record = await commands.records.get(job.job_id)
    assert not record.control.paused
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_QUEUED
    info = await commands._backbone.jetstream.get_msg("NST_TICKETS", record.ticket.stream_sequence)
    assert Ticket.FromString(info.data).job_id == job.job_id


async def test_a_job_that_is_cancelled_while_it_is_handed_back_ends(commands, leases, tickets):
    job = await commands.create("request", "tenant", job_pb2.JobSpec(priority=job_pb2.PRIORITY_INTERACTIVE), "")
    lease = await claimed(leases, tickets)
    await commands.cancel(job.job_id)
    await lease.hand_back("the model server is shutting down")
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_CANCELLED
