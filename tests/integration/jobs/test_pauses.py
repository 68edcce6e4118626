"""Pausing and resuming, whoever is in between, on a real nats-server."""

import asyncio

import pytest
from lease_support import SHORT_LEASES, claimed, history, no_ticket_left

from nst.internal.v1.job_record_pb2 import Checkpoint, Ticket
from nst.v1 import job_pb2
from nst_server.config import StoreSettings
from nst_server.jobs.backbone import StoreFull
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.pauses import PausedJobs, TooManyPaused
from nst_server.jobs.tickets import Flow
from nst_server.jobs.updates import NotWaiting, TooManyChanges


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


@SHORT_LEASES
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
    early = await commands._tickets.put(job.job_id, Flow("interactive", "tenant"))
    assert await leases.claim(await asyncio.wait_for(tickets.next(list), 10)) is None

    def write(record):
        record.control.paused = False
        record.ticket.CopyFrom(early)

    await commands.records.update(job.job_id, write)
    await claimed(leases, tickets)


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


async def test_a_job_that_is_cancelled_while_it_is_paused_ends(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    await commands.cancel(job.job_id)  # as its checkpoint is being stored
    await lease.pause_or_hand_back()
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_CANCELLED
    await no_ticket_left(backbone)


@pytest.mark.parametrize("store_settings", [StoreSettings(max_tenant_jobs=1)])
async def test_a_full_queue_keeps_nobody_from_taking_a_pause_back(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    with pytest.raises(NotWaiting):
        await commands.update(job.job_id, job_pb2.JobUpdate(priority=job_pb2.PRIORITY_BATCH))
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=False))
    assert await PausedJobs(backbone, patience=5).noted() == set()
    assert not (await lease.refresh()).control.paused


async def test_a_resume_amid_a_pause_is_what_the_history_tells(commands, spec, monkeypatch):
    """The pause is in the record, and about to be appended."""
    job_id = (await commands.create("request", "tenant", spec, "")).job_id
    events = commands._updates._unheld._events
    append = events.append

    async def append_later(event, last):
        monkeypatch.setattr(events, "append", append)
        await commands.update(job_id, job_pb2.JobUpdate(paused=False))
        return await append(event, last)

    monkeypatch.setattr(events, "append", append_later)
    await commands.update(job_id, job_pb2.JobUpdate(paused=True))
    assert (await commands.get(job_id)).state == job_pb2.JOB_STATE_QUEUED


@pytest.mark.parametrize("store_settings", [StoreSettings(max_checkpoint_bytes=2**20)])
async def test_a_running_job_is_not_paused_where_its_checkpoint_may_find_no_room(commands, leases, tickets, spec):
    running = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.save_checkpoint(b"x" * 900_000, Checkpoint(iteration=1))
    with pytest.raises(StoreFull, match="max_checkpoint_bytes"):
        await commands.update(running.job_id, job_pb2.JobUpdate(paused=True))
    assert not (await lease.refresh()).control.paused
    waiting = await commands.create("another", "tenant", spec, "")
    assert (await commands.update(waiting.job_id, job_pb2.JobUpdate(paused=True))).state == job_pb2.JOB_STATE_PAUSED


async def test_a_pause_noticed_just_as_it_is_taken_back_is_resumed(commands, leases, tickets, spec, monkeypatch):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    take_back = commands._updates._take_pause_back

    async def late(record):
        await lease.pause_or_hand_back()
        return await take_back(record)

    monkeypatch.setattr(commands._updates, "_take_pause_back", late)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=False))
    assert (await claimed(leases, tickets)).job_id == job.job_id


async def test_a_job_is_not_paused_and_changed_for_ever(backbone, spec):
    commands = JobCommands(backbone, patience=5, max_job_changes=3)
    spec.options.strength = 0.5
    job_id = (await commands.create("request", "tenant", spec, "")).job_id
    for update in ({"strength": 0.1}, {"paused": True}, {"paused": False, "strength": 0.2}):
        await commands.update(job_id, job_pb2.JobUpdate(**update))
    for update in ({"strength": 0.3}, {"paused": True}, {"paused": False, "strength": 0.3}):
        with pytest.raises(TooManyChanges, match="max_job_changes = 3"):
            await commands.update(job_id, job_pb2.JobUpdate(**update))


async def test_a_change_that_is_refused_is_not_made_in_part(backbone, spec):
    commands = JobCommands(backbone, patience=5, max_job_changes=1)
    spec.options.strength = 0.5
    job_id = (await commands.create("request", "tenant", spec, "")).job_id
    with pytest.raises(TooManyChanges):
        await commands.update(job_id, job_pb2.JobUpdate(strength=0.1, paused=True, priority=job_pb2.PRIORITY_BATCH))
    job = await commands.get(job_id)
    assert (job.control_version, job.spec.priority) == (0, spec.priority)
    assert not await PausedJobs(backbone, patience=5).noted()


async def test_a_paused_job_can_be_resumed_however_often_it_was_changed(backbone, spec, leases, tickets):
    commands = JobCommands(backbone, patience=5, max_job_changes=1)
    job_id = (await commands.create("request", "tenant", spec, "")).job_id
    await commands.update(job_id, job_pb2.JobUpdate(paused=True))
    await commands.update(job_id, job_pb2.JobUpdate(paused=False))
    assert (await claimed(leases, tickets)).job_id == job_id


@pytest.mark.parametrize("store_settings", [StoreSettings(max_tenant_paused_jobs=2)])
async def test_a_tenant_may_have_so_many_jobs_paused(commands, spec):
    jobs = [(await commands.create(str(number), "tenant", spec, "")).job_id for number in range(4)]
    other = (await commands.create("request", "tenant.2", spec, "")).job_id

    async def pause(job_id: str, paused: bool = True) -> job_pb2.Job:
        return await commands.update(job_id, job_pb2.JobUpdate(paused=paused))

    for job_id in (*jobs[:2], jobs[0], other):
        assert (await pause(job_id)).state == job_pb2.JOB_STATE_PAUSED
    with pytest.raises(TooManyPaused, match="max_tenant_paused_jobs = 2"):
        await pause(jobs[2])
    assert (await commands.get(jobs[2])).state == job_pb2.JOB_STATE_QUEUED
    await pause(jobs[0], paused=False)
    await pause(jobs[2])
    await commands.cancel(jobs[1])
    await pause(jobs[3])


@pytest.mark.parametrize("store_settings", [StoreSettings(max_tenant_paused_jobs=2)])
async def test_of_many_pauses_at_once_no_more_than_allowed_are_taken(commands, spec, store_settings):
    spec.options.strength = 0.5
    jobs = [(await commands.create(str(number), "tenant", spec, "")).job_id for number in range(3)]
    pauses = (commands.update(job_id, job_pb2.JobUpdate(paused=True, strength=0.1)) for job_id in jobs)
    outcomes = await asyncio.gather(*pauses, return_exceptions=True)
    refused = [job_id for job_id, outcome in zip(jobs, outcomes, strict=True) if isinstance(outcome, TooManyPaused)]
    assert refused
    for job_id in refused:
        record = await commands.records.get(job_id)
        assert not record.control.paused
        assert record.control.version == 0, "nothing of the change was made"


async def test_the_note_of_a_pause_goes_with_a_job_that_ends_instead(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    await commands.cancel(job.job_id)
    await lease.pause_or_hand_back()
    assert await PausedJobs(backbone, patience=5).noted() == set()
