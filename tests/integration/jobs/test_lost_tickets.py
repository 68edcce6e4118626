"""No job is left without a ticket, whatever comes between two writes, on a real nats-server."""

import asyncio

import pytest
from lease_support import SHORT_LEASES, claimed, history, no_ticket_left, progress
from nats.js.errors import KeyWrongLastSequenceError

from nst.internal.v1.job_record_pb2 import Announcement
from nst.v1 import job_pb2, style_transfer_service_pb2
from nst_processes import running_nats
from nst_server.jobs.announcements import announcements
from nst_server.jobs.backbone import connect
from nst_server.jobs.keeper import Keeper
from nst_server.jobs.lease import Superseded
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.records import JobNotFound
from nst_server.jobs.tickets import Flow

PAUSE, GO_ON = job_pb2.JobUpdate(paused=True), job_pb2.JobUpdate(paused=False)


async def lose_ticket(bench, job_id: str) -> None:
    record = await bench.commands.records.get(job_id)
    await bench.backbone.jetstream.delete_msg("NST_TICKETS", record.ticket.stream_sequence)


async def announce(bench, server: str) -> None:
    """As a model server that is alive does."""
    announcement = Announcement(server=style_transfer_service_pb2.ModelServer(name=server))
    await bench.backbone.servers.put(server, announcement.SerializeToString())


async def test_a_job_whose_ticket_is_lost_gets_another(bench):
    waiting = await bench.create("waiting")
    await lose_ticket(bench, waiting)
    await bench.sweep()
    assert (await bench.claim()).job_id == waiting


async def test_only_who_needs_a_ticket_gets_one(bench):
    paused, ended = [await bench.create(name) for name in ("paused", "ended")]
    await bench.commands.update(paused, PAUSE)
    await bench.commands.cancel(ended)
    held = await bench.create("held")
    await bench.claim()
    before = (await bench.commands.records.get(held)).ticket
    await bench.sweep()
    assert (await bench.backbone.jetstream.stream_info("NST_TICKETS")).state.messages == 1
    assert (await bench.commands.records.get(held)).ticket == before


@SHORT_LEASES
async def test_a_job_that_has_lost_its_ticket_and_its_server_is_taken_after_a_lease(
    bench, leases, other_leases, store_settings
):
    """However often the lost ticket had been given out before."""
    job_id = await bench.create("request")
    for _ in range(5):
        lease = await claimed(leases, bench.tickets)
        await lease.abandon()
    await claimed(leases, bench.tickets)
    await bench.backbone.jetstream.delete_stream("NST_TICKETS")
    await Keeper(bench.backbone, store_settings)._watch_store()
    await bench.sweep()
    # Its server may live, and end the job meanwhile.
    assert await other_leases.claim(await asyncio.wait_for(bench.tickets.next(list), 10)) is None
    assert (await claimed(other_leases, bench.tickets)).job_id == job_id


async def test_a_change_of_priority_whose_answer_is_lost_keeps_its_ticket(bench, monkeypatch):
    """The write is tried again, and conflicts with itself."""
    job_id = await bench.create("request")
    records = bench.commands._updates._records
    write, lost = records._write, []

    async def losing(record, revision):
        await write(record, revision)
        if not lost:
            lost.append(record.ticket.stream_sequence)
            raise KeyWrongLastSequenceError

    monkeypatch.setattr(records, "_write", losing)
    await bench.commands.update(job_id, job_pb2.JobUpdate(priority=job_pb2.PRIORITY_BATCH))
    assert lost
    lease = await bench.claim()
    assert (lease.job_id, lease.record.spec.priority) == (job_id, job_pb2.PRIORITY_BATCH)


@SHORT_LEASES
@pytest.mark.parametrize("survives", [True, False])
async def test_a_job_claimed_while_it_is_being_paused_can_be_resumed(
    bench, leases, other_leases, monkeypatch, survives
):
    """The claim comes after the pause has looked whether somebody has the job; its server may die in it."""
    job_id = await bench.create("request")
    message = await asyncio.wait_for(bench.tickets.next(list), 10)
    claims, resumed = asyncio.Event(), asyncio.Event()
    starts, events = leases._starts, bench.commands._updates._unheld._events
    append, claiming = events.append, []

    async def start_later(lease):
        claims.set()
        await resumed.wait()
        return await starts(lease)

    async def append_later(event, last):
        monkeypatch.setattr(events, "append", append)
        claiming.append(asyncio.create_task(leases.claim(message)))
        await claims.wait()
        return await append(event, last)

    monkeypatch.setattr(leases, "_starts", start_later)
    monkeypatch.setattr(events, "append", append_later)
    await bench.commands.update(job_id, PAUSE)
    (claim,) = claiming
    if not survives:
        claim.cancel()
    await bench.commands.update(job_id, GO_ON)
    resumed.set()
    lease = await claim if survives else None
    if lease is None:
        lease = await claimed(other_leases, bench.tickets)
    await lease.append(progress(1))
    assert (await history(bench.commands, job_id))[-1].job_state == job_pb2.JOB_STATE_RUNNING


async def test_a_job_paused_just_as_it_is_handed_back_stays_paused(bench, backbone, monkeypatch):
    job_id = await bench.create("request")
    lease = await bench.claim()
    let_go = lease._let_go

    async def then_paused(change):
        gone = await let_go(change)
        await bench.commands.update(job_id, PAUSE)
        return gone

    monkeypatch.setattr(lease, "_let_go", then_paused)
    await lease.hand_back("shutting down")
    assert (await bench.commands.get(job_id)).state == job_pb2.JOB_STATE_PAUSED
    await no_ticket_left(backbone)
    await bench.commands.update(job_id, GO_ON)
    assert (await bench.claim()).job_id == job_id


async def test_progress_stays_known_when_nobody_works_on_the_job(bench):
    job_id = await bench.create("request")
    lease = await bench.claim()
    await lease.append(progress(7))
    await lease.hand_back("shutting down")
    for change, state in ((PAUSE, job_pb2.JOB_STATE_PAUSED), (GO_ON, job_pb2.JOB_STATE_QUEUED)):
        job = await bench.commands.update(job_id, change)
        assert (job.state, job.progress.iteration) == (state, 7)
    job = await bench.commands.cancel(job_id)
    assert (job.state, job.progress.iteration) == (job_pb2.JOB_STATE_CANCELLED, 7)


async def test_a_store_that_has_lost_its_streams_gets_new_ones(bench, backbone, store_settings):
    job_id = await bench.create("request")
    for stream in ("NST_EVENTS", "KV_nst_jobs", "NST_TICKETS"):
        await backbone.jetstream.delete_stream(stream)
    keeper = Keeper(backbone, store_settings)
    await keeper._watch_store()
    with pytest.raises(JobNotFound):
        await bench.commands.get(job_id)
    again = await bench.create("request")
    assert (await bench.claim()).job_id == again


async def test_all_gateways_may_notice_a_lost_stream_at_once(bench, backbone, store_settings, monkeypatch):
    """And before the next sweep, for until then no job can be made."""
    monkeypatch.setattr("nst_server.jobs.keeper.STORE_SECONDS", 0.05)
    keeping = [asyncio.create_task(Keeper(backbone, store_settings).run()) for _ in range(5)]
    try:
        await asyncio.sleep(0.5)
        await backbone.jetstream.delete_stream("NST_TICKETS")
        await bench.create("request")
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.wait(keeping)


@pytest.mark.parametrize("stream", ["NST_NOTES", "KV_nst_model_servers", "KV_nst_keeper"])
async def test_a_stream_that_holds_no_job_is_made_again_too(bench, backbone, store_settings, stream):
    """Without it no job can be made, none that has a time limit can end, or nobody keeps the store."""
    await backbone.jetstream.delete_stream(stream)
    keeper = Keeper(backbone, store_settings)
    await keeper._watch_store()
    assert await announcements(backbone, patience=1) == []
    await bench.create("request", time_limit={"seconds": 60})
    await keeper.take_lock()
    assert keeper._holds


async def test_a_lost_ticket_is_never_taken_for_that_of_another_job(bench, backbone, store_settings):
    cancelled, waiting = [await bench.create(name) for name in ("cancelled", "waiting")]
    await backbone.jetstream.delete_stream("NST_TICKETS")
    await Keeper(backbone, store_settings)._watch_store()
    new = [await bench.create(name) for name in ("new", "newer")]
    await bench.commands.cancel(cancelled)
    await bench.sweep()
    assert [(await bench.claim()).job_id for _ in range(3)] == [*new, waiting]


async def test_a_queue_that_was_set_up_again_keeps_its_tickets_when_nats_starts_again(tmp_path, store_settings):
    for tickets in range(3):
        with running_nats(tmp_path) as url:
            async with connect(url, "gateway", store_settings) as backbone:
                assert (await backbone.jetstream.stream_info("NST_TICKETS")).state.messages == tickets
                await TicketQueue(backbone, patience=5).put(f"job-{tickets}", Flow("batch", "tenant"))


async def test_gateways_that_make_a_lost_stream_at_once_do_not_fail(bench, backbone, store_settings):
    await backbone.jetstream.delete_stream("NST_TICKETS")
    await asyncio.gather(*(Keeper(backbone, store_settings)._watch_store() for _ in range(5)))
    await bench.create("request")


async def test_a_running_job_whose_history_is_lost_is_not_lost_with_it(bench, backbone):
    job_id = await bench.create("request")
    lease = await bench.claim()
    await lease.append(progress(7))
    await backbone.jetstream.purge_stream("NST_EVENTS")
    await lease.append(progress(8))
    events = await history(bench.commands, job_id)
    assert [(event.sequence, event.progress.iteration) for event in events] == [(1, 8)]


@pytest.mark.parametrize("state", ["waiting", "paused", "running"])
async def test_a_cancellation_that_was_cut_off_is_finished(bench, monkeypatch, state):
    """Its gateway dies between the record and the history."""
    job_id = await bench.create("request")
    lease = await bench.claim() if state == "running" else None
    if lease is not None:
        await announce(bench, lease.record.lease.server)
    if state == "paused":
        await bench.commands.update(job_id, PAUSE)

    async def die(*arguments):
        raise SystemExit

    monkeypatch.setattr(bench.commands._unheld, "write", die)
    with pytest.raises(SystemExit):
        await bench.commands.cancel(job_id)
    await bench.sweep()
    if lease is not None:
        assert (await bench.commands.get(job_id)).state == job_pb2.JOB_STATE_RUNNING
        await lease.hand_back("shutting down")
    assert (await bench.commands.get(job_id)).state == job_pb2.JOB_STATE_CANCELLED
    await no_ticket_left(bench.backbone)


async def test_a_cancelled_job_whose_server_is_dead_ends_though_no_other_has_room(bench):
    job_id = await bench.create("request")
    lease = await bench.claim()
    await announce(bench, "server-b")
    await bench.commands.cancel(job_id)
    assert (await bench.commands.get(job_id)).state == job_pb2.JOB_STATE_RUNNING
    await bench.sweep()
    assert (await bench.commands.get(job_id)).state == job_pb2.JOB_STATE_CANCELLED
    await no_ticket_left(bench.backbone)
    with pytest.raises(Superseded):
        await lease.append(progress(1))


async def test_a_job_that_is_deleted_at_its_last_event_leaves_no_ticket(bench):
    job_id = await bench.create("request")
    lease = await bench.claim()
    await lease.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_FAILED, error=job_pb2.JobError(code=13)))
    await bench.commands.delete(job_id)
    with pytest.raises(Superseded):
        await lease.close()
    await no_ticket_left(bench.backbone)


@pytest.mark.parametrize("paused", [False, True])
async def test_a_deadline_whose_note_is_lost_ends_its_job_all_the_same(bench, backbone, paused):
    job_id = await bench.create("request", time_limit={"seconds": 5})
    if paused:
        await bench.commands.update(job_id, PAUSE)
    await backbone.jetstream.purge_stream("NST_NOTES")
    await bench.sweep(ahead=6)
    await bench.keeper.end_overdue()
    assert (await bench.commands.get(job_id)).error.reason == "DEADLINE_EXCEEDED"
    await bench.keeper.end_overdue()
    assert not (await bench.stored())["NST_NOTES"][0]


async def test_jobs_whose_histories_are_lost_go_on(bench, backbone, store_settings):
    held = await bench.create("held")
    await bench.claim()
    waiting, paused = [await bench.create(name) for name in ("waiting", "paused")]
    await bench.commands.update(paused, PAUSE)
    for stream in ("NST_EVENTS", "NST_TICKETS"):
        await backbone.jetstream.delete_stream(stream)
    await Keeper(backbone, store_settings)._watch_store()
    await bench.sweep()
    assert (await history(bench.commands, waiting))[0].job_state == job_pb2.JOB_STATE_QUEUED
    assert (await bench.commands.get(paused)).state == job_pb2.JOB_STATE_PAUSED
    assert {(await bench.claim()).job_id for _ in range(2)} == {waiting, held}
    assert (await bench.commands.cancel(paused)).state == job_pb2.JOB_STATE_CANCELLED


async def test_an_ended_job_whose_history_is_lost_is_made_anew(bench, backbone):
    job_id = await bench.run("request")
    await backbone.jetstream.purge_stream("NST_EVENTS")
    await bench.sweep()
    with pytest.raises(JobNotFound):
        await bench.commands.get(job_id)
    assert await bench.run("request") == job_id
