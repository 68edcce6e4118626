"""The keeper on a real nats-server: it removes all that is to go, and nothing else. Clocks are the tests' own."""

import asyncio
import time

import pytest
from lease_support import SHORT_LEASES
from store_bench import FAILED, HOUR, Bench, digest

from nst.internal.v1.job_record_pb2 import Checkpoint
from nst.v1 import image_pb2, job_pb2
from nst_server.config import StoreSettings
from nst_server.jobs import blobs as blobs_module
from nst_server.jobs import records, store_metrics, topology
from nst_server.jobs.belongings import pictures_of
from nst_server.jobs.blobs import UNKEPT_SECONDS, BlobStore
from nst_server.jobs.keeper import Lock
from nst_server.jobs.lease import Superseded
from nst_server.jobs.pauses import PausedJobs
from nst_server.jobs.records import JobNotFound
from nst_server.jobs.topology import PICTURES, picture_name


@pytest.fixture
def store_settings(lease_seconds: float) -> StoreSettings:
    return StoreSettings(max_queued_jobs=50, lease_seconds=lease_seconds, retention_hours=2, orphan_hours=1)


async def fill(bench: Bench) -> None:
    """Jobs of all ends, and what is left of some."""
    await bench.run("succeeded")
    await bench.create("failed", b"content", b"another style")
    lease = await bench.claim()
    await lease.save_checkpoint(b"state" * 200_000, Checkpoint(iteration=1))
    await lease.fail(job_pb2.JobError(code=13))
    await bench.commands.cancel(await bench.create("cancelled"))
    deleted = await bench.run("deleted", b"only here", b"style", result=b"and here")
    await bench.commands.delete(deleted)
    await bench.pictures.put(b"an upload that nobody used" * 50_000)
    # Its server wrote the end and died before it could tidy up.
    await bench.create("killed at the end")
    killed = await bench.claim()
    await killed.save_checkpoint(b"state", Checkpoint(iteration=1))
    await killed.append(job_pb2.JobEvent(job_state=FAILED, error=job_pb2.JobError(code=13)))
    await bench.backbone.jetstream.purge_stream("NST_TICKETS")
    # Their record is gone: what belonged to it is left behind.
    orphan = await bench.create("removal cut short", time_limit={"seconds": 5})
    half_removed = await bench.claim()
    await half_removed.save_checkpoint(b"state", Checkpoint(iteration=1))
    await bench.preview(half_removed, b"preview")
    await bench.backbone.jetstream.purge_stream("KV_nst_jobs", subject=f"$KV.nst_jobs.*.{orphan}")
    await half_removed._message.ack_sync()
    # A picture whose upload was cut off, and a ticket whose job never came.
    await bench.backbone.jetstream.publish(f"nst.picture.{'0' * 64}.0", b"chunk")


async def test_the_store_returns_to_its_starting_size(bench, monkeypatch):
    monkeypatch.setattr(records, "MARKER_SECONDS", 1)
    nothing = await bench.stored()
    assert set(nothing.values()) == {(0, 0)}
    await fill(bench)
    assert all(messages for name, (messages, _) in (await bench.stored()).items() if name != "NST_TICKETS")
    counted = removed()
    await bench.sweep(ahead=3 * HOUR)
    await bench.keeper.end_overdue()
    await bench.empty()
    assert await bench.stored() == nothing
    went = {kind: count - counted[kind] for kind, count in removed().items()}
    assert went == {"job": 4, "history": 5, "preview": 2, "checkpoint": 1, "picture": 8}


def removed() -> dict[str, float]:
    """How many parts have been removed, by kind."""
    kinds = ("job", "history", "preview", "checkpoint", "picture")
    return {kind: store_metrics.REMOVED.labels(kind)._value.get() for kind in kinds}


async def test_live_jobs_keep_everything_however_old_they_are(bench):
    await bench.create("paused", b"content", b"style")
    paused = await bench.claim()
    await paused.save_checkpoint(b"old state", Checkpoint(iteration=1))
    await paused.save_checkpoint(b"state", Checkpoint(iteration=2))
    await bench.preview(paused, b"preview")
    await bench.commands.update(paused.job_id, job_pb2.JobUpdate(paused=True))
    await paused.pause_or_hand_back()
    await bench.backbone.nats.flush()
    await fill(bench)
    waiting = await bench.create("waiting", b"other content", b"style")
    await bench.sweep(ahead=1000 * HOUR)
    await bench.keeper.end_overdue()
    assert await bench.jobs() == {paused.job_id, waiting}
    for data in (b"content", b"style", b"other content"):
        assert await bench.pictures.get(digest(data)) == data
    assert await bench.commands.get(waiting)
    await bench.commands.update(paused.job_id, job_pb2.JobUpdate(paused=False))
    assert (await bench.claim()).job_id == waiting
    resumed = await bench.claim()
    assert await resumed.load_checkpoint() == b"state"


async def test_a_job_that_nobody_works_on_keeps_one_checkpoint(bench):
    await bench.create("request")
    lease = await bench.claim()
    for iteration in (1, 2):
        await lease.save_checkpoint(b"state" * 100_000, Checkpoint(iteration=iteration))
    await bench.sweep()
    kept = await bench.stored()
    assert await lease.load_checkpoint()
    await bench.commands.update(lease.job_id, job_pb2.JobUpdate(paused=True))
    await lease.pause_or_hand_back()
    await bench.sweep()
    assert (await bench.stored())["NST_CHECKPOINTS"][1] < 0.6 * kept["NST_CHECKPOINTS"][1]
    await bench.commands.update(lease.job_id, job_pb2.JobUpdate(paused=False))
    resumed = await bench.claim()
    await resumed.save_checkpoint(b"later", Checkpoint(iteration=3))
    await bench.sweep()
    assert await resumed.load_checkpoint() == b"later"


async def test_nothing_goes_before_its_time(bench):
    job_id = await bench.run("request")
    await bench.pictures.put(b"an upload")
    before = await bench.stored()
    await bench.sweep(ahead=0.9 * HOUR)
    assert await bench.stored() == before
    await bench.sweep(ahead=1.9 * HOUR)
    assert await bench.commands.get(job_id)
    assert not await bench.has(b"an upload")


async def test_a_shared_picture_goes_with_its_last_job(bench):
    first = await bench.run("first", b"shared", b"style", result=b"result")
    second = await bench.run("second", b"shared", b"style", result=b"result")  # a twin, with the same result
    for job_id, still_there in ((first, True), (second, False)):
        await bench.commands.delete(job_id)
        await bench.sweep(ahead=UNKEPT_SECONDS + 1)
        for data in (b"shared", b"style", b"result"):
            assert await bench.has(data) == still_there


async def test_a_job_being_made_keeps_a_picture_whose_last_job_goes(bench):
    """The picture is kept before the job's record is there to say so."""
    first = await bench.run("first", b"shared", b"style")
    assert await bench.pictures.keep(digest(b"shared"))
    await bench.commands.delete(first)
    await bench.sweep(ahead=UNKEPT_SECONDS / 2)
    assert await bench.has(b"shared")
    await bench.sweep(ahead=UNKEPT_SECONDS + 1)  # the job was never made
    assert not await bench.has(b"shared")


async def test_a_picture_that_is_kept_while_it_is_looked_at_stays(bench, monkeypatch):
    await bench.pictures.put(b"upload")
    blobs = BlobStore(bench.backbone, PICTURES, patience=5)
    seen = await blobs.head(picture_name("tenant", digest(b"upload")))
    monkeypatch.setattr(blobs_module, "KEPT_SECONDS", 0.0)  # it is older than that
    assert await bench.pictures.keep(digest(b"upload"))
    assert not await blobs.remove(picture_name("tenant", digest(b"upload")), seen)
    assert await bench.pictures.get(digest(b"upload")) == b"upload"


async def test_a_picture_that_is_uploaded_again_is_an_upload_again(bench):
    await bench.commands.delete(await bench.run("first", b"content", b"style"))
    await bench.pictures.put(b"content")
    await bench.sweep(ahead=0.5 * HOUR)
    assert await bench.has(b"content")
    assert not await bench.has(b"style")


async def test_a_job_in_use_is_not_removed(bench):
    job_id = await bench.run("request")
    five_hours_ago = int((time.time() - 5 * HOUR) * 1e9)

    def end_long_ago(record) -> None:
        record.create_time.FromNanoseconds(five_hours_ago)
        record.ending.time.FromNanoseconds(five_hours_ago)

    assert not (await bench.commands.records.update(job_id, end_long_ago)).HasField("last_use_time")
    await bench.commands.get(job_id)
    used = await bench.commands.records.get(job_id)
    assert used.HasField("last_use_time")
    await bench.commands.get(job_id)
    assert await bench.commands.records.get(job_id) == used, "noted once"
    await bench.sweep()
    assert await bench.commands.get(job_id)
    await bench.sweep(ahead=HOUR)
    with pytest.raises(JobNotFound):
        await bench.commands.get(job_id)


@SHORT_LEASES
async def test_an_attempt_at_a_deleted_job_cannot_write_into_the_new_one(bench):
    job_id = await bench.create("request")
    zombie = await bench.claim()
    await bench.preview(zombie, b"first")
    # Another attempt ends the job, the client deletes it and makes it again: attempt 1 once more.
    heir = await bench.claim()
    await heir.append(job_pb2.JobEvent(job_state=FAILED, error=job_pb2.JobError(code=13)))
    await heir.close()
    await bench.commands.delete(job_id)
    assert await bench.create("request") == job_id
    lease = await bench.claim()
    assert lease.attempt == zombie.attempt
    await lease.save_checkpoint(b"new", Checkpoint(iteration=7))

    progress = job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, progress=job_pb2.Progress(iteration=9))
    for write in (
        zombie.append(progress),
        zombie.save_checkpoint(b"old", Checkpoint(iteration=9)),
        zombie.fail(job_pb2.JobError(code=13)),
        zombie.hand_back("late"),
        zombie.pause_or_hand_back(),
        zombie.refresh(),
    ):
        with pytest.raises(Superseded):
            await write
    assert await lease.load_checkpoint() == b"new"
    assert [stored.event.sequence async for stored in bench.commands.events.read(job_id)] == [1, 2]
    await bench.sweep()
    await bench.succeed(lease, b"result")


async def test_a_job_made_again_while_the_old_one_is_being_removed_starts_afresh(bench):
    job_id = await bench.run("request")
    last = await bench.commands.events.last(job_id)
    # A removal that got as far as the record.
    await bench.backbone.jetstream.purge_stream("KV_nst_jobs", subject=f"$KV.nst_jobs.*.{job_id}")
    assert await bench.create("request") == job_id
    await bench.commands.events.delete(job_id, last)  # and goes on late
    assert [stored.event.sequence async for stored in bench.commands.events.read(job_id)] == [1]
    assert (await bench.claim()).job_id == job_id


@pytest.fixture
def short_lock(monkeypatch) -> None:
    monkeypatch.setattr(topology, "KEEPER_LOCK_SECONDS", 1.0)


async def test_of_many_keepers_one_works_and_another_takes_over(short_lock, backbone):
    locks = [Lock(backbone) for _ in range(4)]
    taken = await asyncio.gather(*(lock.take() for lock in locks))
    assert sum(taken) == 1
    holder = locks[taken.index(True)]
    others = [lock for lock in locks if lock is not holder]
    assert await holder.take()
    assert not any([await lock.take() for lock in others])
    # The holder is killed.
    while not any(taken := await asyncio.gather(*(lock.take() for lock in others))):
        pass
    assert sum(taken) == 1
    assert not await holder.take(), "it comes back, and finds the lock taken"


async def test_two_sweeps_at_once_harm_nothing(bench):
    await fill(bench)
    live = await bench.create("live", b"content", b"style")
    await asyncio.gather(*(bench.sweep(ahead=3 * HOUR) for _ in range(3)))
    record = await bench.commands.records.get(live)
    for name in pictures_of(record):
        assert await bench.pictures.get(name.removeprefix("tenant."))
    assert await bench.jobs() == {live}


async def test_the_note_of_a_deadline_goes_when_the_job_ends(bench):
    limit = {"time_limit": {"seconds": 1000}}
    await bench.commands.cancel(await bench.create("cancelled", **limit))
    await bench.create("done", **limit)
    await bench.succeed(await bench.claim(), b"result")
    await bench.create("waiting", **limit)
    assert (await bench.stored())["NST_NOTES"][0] == 1


async def test_notes_of_pauses_become_what_the_records_say(bench):
    waiting, paused = await bench.create("waiting"), await bench.create("paused")
    notes = PausedJobs(bench.backbone, patience=5)
    await bench.commands.update(paused, job_pb2.JobUpdate(paused=True))
    noted = await notes.noted()
    assert noted == {f"tenant.{paused}"}
    await notes.note(await bench.commands.records.get(waiting))  # who was about to pause it has died
    await notes.forget(await bench.commands.records.get(paused))
    await bench.sweep()
    assert await notes.noted() == noted


async def test_the_picture_that_a_job_was_let_go_with_is_released_when_it_goes_on(bench):
    await bench.create("request", time_limit={"seconds": 1000})
    lease = await bench.claim()
    pictures = [b"let go once", b"let go twice"]
    for iteration, picture in enumerate(pictures, start=1):
        reference = image_pb2.ImageReference(sha256=await bench.pictures.put(picture))
        checkpoint = Checkpoint(iteration=iteration, picture=job_pb2.Result(reference=reference))
        await lease.save_checkpoint(b"state", checkpoint)
    await bench.sweep(ahead=UNKEPT_SECONDS + 1)
    assert [await bench.has(picture) for picture in pictures] == [False, True]
    await lease.save_checkpoint(b"state", Checkpoint(iteration=3))
    await bench.sweep(ahead=UNKEPT_SECONDS + 1)
    assert not await bench.has(pictures[1])


async def test_a_job_out_of_time_ends_with_the_picture_that_it_was_let_go_with(bench):
    job_id = await bench.create("request", time_limit={"seconds": 1})
    lease = await bench.claim()
    reference = image_pb2.ImageReference(sha256=await bench.pictures.put(b"let go"))
    kept = job_pb2.Result(iterations=7, width=4, height=3, reference=reference)
    await lease.save_checkpoint(b"state", Checkpoint(iteration=7, picture=kept))
    await bench.commands.update(job_id, job_pb2.JobUpdate(paused=True))
    await lease.pause_or_hand_back()
    bench.ahead = 2.0
    await bench.keeper.end_overdue()
    assert (await bench.commands.get(job_id)).error.partial == kept
    await bench.sweep(ahead=HOUR / 2)
    assert await bench.has(b"let go")
