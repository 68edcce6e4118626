"""What gateways do to jobs, on a real nats-server."""

import asyncio
import contextlib
import signal
from functools import partial

import pytest

from nst.internal.v1.job_record_pb2 import JobRecord, Ticket
from nst.v1 import job_pb2
from nst_processes import running_nats
from nst_server.config import StoreSettings
from nst_server.jobs.backbone import StoreFull, connect
from nst_server.jobs.blobs import BlobNotFound, PictureStore, PreviewStore
from nst_server.jobs.commands import JobCommands, RequestReused, derive_job_id
from nst_server.jobs.events import HistoryMoved
from nst_server.jobs.queue import QueueFull
from nst_server.jobs.records import JobNotFound, Records
from nst_server.jobs.removal import JobNotEnded
from nst_server.jobs.tickets import TicketSource
from nst_server.jobs.updates import JobEnded
from nst_server.model_server.scheduler import Accounts


async def waiting(backbone) -> int:
    return int((await backbone.jetstream.stream_info("NST_TICKETS")).state.messages)


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=20)])
async def test_the_same_request_ten_times_at_once_is_one_job(backbone, commands, spec):
    jobs = await asyncio.gather(*(commands.create("request", "tenant", spec, "") for _ in range(10)))
    assert len({job.job_id for job in jobs}) == 1
    assert await waiting(backbone) == 1
    assert [stored.event.sequence async for stored in commands.events.read(jobs[0].job_id)] == [1]


async def test_who_leaves_while_a_job_is_made_leaves_no_ticket_without_one(backbone, commands, spec, monkeypatch):
    left = asyncio.Event()

    async def note(record: JobRecord) -> None:
        creating.cancel()
        await left.wait()

    monkeypatch.setattr(commands._deadlines, "note", note)
    creating = asyncio.create_task(commands.create("request", "tenant", spec, ""))
    await asyncio.wait({creating})
    assert creating.cancelled()
    assert await waiting(backbone) == 1
    left.set()
    assert (await commands.create("request", "tenant", spec, "")).last_sequence == 1
    await asyncio.gather(*commands._creating)
    assert await waiting(backbone) == len(await commands.records.all()) == 1


async def test_requests_of_two_tenants_are_two_jobs(commands, spec):
    first, second = [await commands.create("request", tenant, spec, "") for tenant in ("a", "b")]
    assert first.job_id != second.job_id


async def test_a_request_id_cannot_be_used_for_something_else(commands, spec):
    await commands.create("request", "tenant", spec, "")
    spec.options.size = 64
    with pytest.raises(RequestReused):
        await commands.create("request", "tenant", spec, "")


async def test_the_same_request_is_the_same_job_when_the_defaults_are_others(commands, spec):
    """What a client asked for is what it has set; a gateway with other settings fills in the rest otherwise."""
    asked = job_pb2.JobSpec(content=spec.content, styles=spec.styles)
    job = await commands.create("request", "tenant", spec, "", asked)
    spec.preview.interval += 10
    assert (await commands.create("request", "tenant", spec, "", asked)).job_id == job.job_id
    asked.preview.interval = 20
    with pytest.raises(RequestReused):
        await commands.create("request", "tenant", spec, "", asked)


async def test_a_full_queue_refuses_and_leaves_nothing_behind(commands, spec):
    for number in range(3):
        await commands.create(f"request {number}", "tenant", spec, "")
    with pytest.raises(QueueFull):
        await commands.create("one too many", "tenant", spec, "")
    job_id = derive_job_id("tenant", "one too many")
    assert await commands.events.last(job_id) is None
    with pytest.raises(JobNotFound):
        await commands.get(job_id)
    await commands.cancel(derive_job_id("tenant", "request 1"))
    await commands.create("one too many", "tenant", spec, "")


async def test_a_full_queue_knows_its_own_jobs(commands, spec):
    for number in range(3):
        await commands.check_room(f"request {number}", "tenant")
        await commands.create(f"request {number}", "tenant", spec, "")
    with pytest.raises(QueueFull):
        await commands.check_room("one too many", "tenant")
    await commands.check_room("request 1", "tenant")
    with pytest.raises(QueueFull):
        await commands.check_room("request 1", "another")


async def test_a_new_job_is_described_as_it_is_stored(commands, spec):
    assert await commands.create("request", "tenant", spec, "") == await commands.get(
        derive_job_id("tenant", "request")
    )


async def _allowed(record: JobRecord) -> None:
    return


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=200)])
async def test_all_records_are_found_once_however_many(backbone, commands):
    ids = [f"job{number}" for number in range(150)]
    for job_id in ids:
        await commands.records.create(JobRecord(job_id=job_id))
    await commands.records.update("job3", lambda record: setattr(record.lease, "attempt", 1))
    await commands.records.remove("job4", _allowed)
    ids.remove("job4")
    before = backbone.nats.stats["out_msgs"]
    found = {job_id: record for job_id, record in (await commands.records.all()).items() if record}
    assert sorted(found) == sorted(ids)
    assert found["job3"].lease.attempt == 1
    assert backbone.nats.stats["out_msgs"] - before < 15


async def test_a_removed_record_stays_removed_when_nats_is_killed(tmp_path, store_settings):
    """What is purged comes back then."""
    record = JobRecord(job_id="job")
    with running_nats(tmp_path, end=signal.SIGKILL) as url:
        async with connect(url, "test", store_settings) as backbone:
            records = Records(backbone, patience=5)
            await records.create(record)
            await records.update("job", lambda record: setattr(record.lease, "attempt", 1))
            await records.remove("job", _allowed)
    with running_nats(tmp_path) as url:
        async with connect(url, "test", store_settings) as backbone:
            records = Records(backbone, patience=5)
            assert await records.all() == {"job": None}
            with pytest.raises(JobNotFound):
                await records.get("job")
            await records.create(record)
            assert await records.get("job") == record


async def test_of_two_writers_one_appends(commands, spec):
    job = await commands.create("request", "tenant", spec, "")
    last = await commands.events.last(job.job_id)

    def event() -> job_pb2.JobEvent:
        return job_pb2.JobEvent(job_id=job.job_id, progress=job_pb2.Progress(iteration=1))

    outcomes = await asyncio.gather(*(commands.events.append(event(), last) for _ in range(5)), return_exceptions=True)
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    moved = [outcome for outcome in outcomes if isinstance(outcome, HistoryMoved)]
    assert len(moved) == 4
    assert all(outcome.last.event.sequence == 2 for outcome in moved)


async def test_cancelling_a_waiting_job_ends_it_and_frees_its_place(backbone, commands, spec):
    job = await commands.create("request", "tenant", spec, "")
    cancelled = await commands.cancel(job.job_id)
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    assert await waiting(backbone) == 0
    assert (await commands.cancel(job.job_id)).last_sequence == cancelled.last_sequence
    with pytest.raises(JobEnded):
        await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))


async def test_a_waiting_job_can_be_paused_and_resumed(backbone, commands, spec):
    job = await commands.create("request", "tenant", spec, "")
    paused = await commands.update(job.job_id, job_pb2.JobUpdate(paused=True))
    assert paused.state == job_pb2.JOB_STATE_PAUSED
    assert await waiting(backbone) == 0
    resumed = await commands.update(job.job_id, job_pb2.JobUpdate(paused=False))
    assert resumed.state == job_pb2.JOB_STATE_QUEUED
    assert await waiting(backbone) == 1


async def test_wishes_add_up_and_those_of_one_kind_replace_each_other(commands, spec):
    """Maps and lists as a whole: their parts are not merged."""
    job = await commands.create("request", "tenant", spec, "")
    asked = [
        job_pb2.JobUpdate(strength=0.2, style_shares=[1.0, 2.0], content_layers={"relu3_1": 1.0, "relu4_2": 2.0}),
        job_pb2.JobUpdate(style_shares=[3.0], style_layers={"relu1_1": 1.0}, iterations=7),
        job_pb2.JobUpdate(strength=0.9, content_layers={"relu4_2": 5.0}),
        job_pb2.JobUpdate(style_layers={"relu2_1": 4.0}, paused=True),
    ]
    versions = [(await commands.update(job.job_id, update)).control_version for update in asked]
    assert versions == [1, 2, 3, 5]  # a pause has a number of its own
    assert not job.HasField("changes")
    assert (await commands.get(job.job_id)).changes == job_pb2.JobUpdate(
        strength=0.9,
        style_shares=[3.0],
        content_layers={"relu4_2": 5.0},
        style_layers={"relu2_1": 4.0},
        iterations=7,
    )


async def test_no_wish_is_lost_when_many_come_at_once(commands, spec):
    job = await commands.create("request", "tenant", spec, "")
    wishes = [{"strength": 0.3}, {"tv_weight": 2.0}, {"iterations": 9}, {"style_shares": [2.0]}]
    wishes += [{"content_layers": {"relu4_2": 3.0}}, {"style_layers": {"relu1_1": 6.0}}]
    answers = await asyncio.gather(*(commands.update(job.job_id, job_pb2.JobUpdate(**wish)) for wish in wishes))
    assert sorted(answer.control_version for answer in answers) == list(range(1, len(wishes) + 1))
    wanted = job_pb2.JobUpdate()
    for wish in wishes:
        wanted.MergeFrom(job_pb2.JobUpdate(**wish))
    assert (await commands.records.get(job.job_id)).control.weights == wanted


async def test_a_wish_that_holds_already_has_no_number_of_its_own(commands, spec):
    job = await commands.create("request", "tenant", spec, "")
    assert job.control_version == 0
    for _ in range(2):
        job = await commands.update(job.job_id, job_pb2.JobUpdate(strength=0.3, style_layers={"a": 1.0, "b": 2.0}))
        assert job.control_version == 1
    assert (await commands.cancel(job.job_id)).control_version == 2


async def in_order(backbone) -> list[str]:
    """The ids of all waiting jobs as a model server gets them."""
    accounts = Accounts({})
    rank = partial(sorted, key=lambda flow: accounts.position(flow.account))
    tickets = TicketSource(backbone)
    await tickets.open()
    order = []
    while await waiting(backbone):
        message = await asyncio.wait_for(tickets.next(rank), 10)
        order.append(str(Ticket.FromString(message.data).job_id))
        await message.ack_sync()
    return order


async def test_interactive_jobs_go_first(backbone, commands, spec):
    spec.priority = job_pb2.PRIORITY_BATCH
    batch = await commands.create("first", "tenant", spec, "")
    spec.priority = job_pb2.PRIORITY_INTERACTIVE
    interactive = await commands.create("second", "tenant", spec, "")
    assert await in_order(backbone) == [interactive.job_id, batch.job_id]


async def test_a_waiting_job_can_be_moved_up(backbone, commands, spec):
    spec.priority = job_pb2.PRIORITY_BATCH
    first, second = [await commands.create(name, "tenant", spec, "") for name in ("first", "second")]
    moved = await commands.update(second.job_id, job_pb2.JobUpdate(priority=job_pb2.PRIORITY_INTERACTIVE))
    assert moved.spec.priority == job_pb2.PRIORITY_INTERACTIVE
    assert await in_order(backbone) == [second.job_id, first.job_id]


async def test_deleting_removes_everything_and_only_what_has_ended(backbone, commands, spec):
    job = await commands.create("request", "tenant", spec, "")
    with pytest.raises(JobNotEnded):
        await commands.delete(job.job_id)
    await commands.cancel(job.job_id)
    await commands.delete(job.job_id)
    with pytest.raises(JobNotFound):
        await commands.get(job.job_id)
    assert await commands.events.last(job.job_id) is None
    assert await commands.records.all() == {job.job_id: None}
    again = await commands.create("request", "tenant", spec, "")
    assert again.state == job_pb2.JOB_STATE_QUEUED


async def test_the_same_bytes_are_stored_once(backbone):
    pictures = PictureStore(backbone, "tenant", patience=5)
    data = bytes(range(256)) * 4096
    first = await pictures.put(data)
    stored = (await backbone.jetstream.stream_info("NST_PICTURES")).state
    assert await pictures.put(data) == first
    assert (await backbone.jetstream.stream_info("NST_PICTURES")).state == stored
    assert await pictures.get(first) == data


async def test_a_missing_picture_is_said_to_be_missing(backbone):
    with pytest.raises(BlobNotFound):
        await PictureStore(backbone, "tenant", patience=5).get("0" * 64)


async def test_a_full_picture_store_refuses(backbone):
    with pytest.raises(StoreFull, match="max_picture_bytes"):
        await PictureStore(backbone, "tenant", patience=5).put(b"x" * 5 * 2**20)


async def test_a_picture_that_lost_a_chunk_is_missing_and_can_be_stored_again(backbone):
    pictures = PictureStore(backbone, "tenant", patience=5)
    data = bytes(range(256)) * 8192
    digest = await pictures.put(data)
    await backbone.jetstream.purge_stream("NST_PICTURES", subject=f"nst.picture.tenant.{digest}.1")
    with pytest.raises(BlobNotFound):
        await pictures.get(digest)


async def test_old_previews_make_room_for_new_ones(backbone):
    previews = PreviewStore(backbone, patience=5)
    digests = [await previews.put("job", bytes([number]) * 2**20) for number in range(4)]
    assert await previews.get("job", digests[-1]) == bytes([3]) * 2**20
    with pytest.raises(BlobNotFound):
        await previews.get("job", digests[0])


async def test_a_cancelled_upload_leaves_nothing_behind_once_it_is_repeated(backbone):
    pictures = PictureStore(backbone, "tenant", patience=5)
    data = bytes(range(256)) * 8192
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pictures.put(data), 0.003)
    digest = await pictures.put(data)
    assert await pictures.get(digest) == data
    assert (await backbone.jetstream.stream_info("NST_PICTURES")).state.messages == 5


async def test_nearly_full_histories_refuse_new_jobs_and_let_the_others_end(nats_url, spec):
    async with connect(nats_url, "test", StoreSettings(max_event_bytes=4000)) as backbone:
        commands = JobCommands(backbone, patience=5)
        outcomes = [await outcome(commands.create(f"request {number}", "tenant", spec, "")) for number in range(30)]
        assert isinstance(outcomes[-1], StoreFull)
        assert outcomes[-1].limit == "max_event_bytes"
        assert (await commands.cancel(outcomes[0].job_id)).state == job_pb2.JOB_STATE_CANCELLED


async def outcome(work):
    try:
        return await work
    except StoreFull as error:
        return error


async def test_a_deleted_job_can_be_made_again_at_once(backbone, commands, spec):
    job = await commands.create("request", "tenant", spec, "")
    await commands.cancel(job.job_id)
    await commands.delete(job.job_id)
    await commands.create("request", "tenant", spec, "")
    assert await in_order(backbone) == [job.job_id]
