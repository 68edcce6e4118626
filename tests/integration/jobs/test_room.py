"""How the keeper makes room in a store that fills up, on a real nats-server. Clocks are the tests' own."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest
from lease_support import history
from store_bench import HOUR, UNLIMITED

from nst.v1 import job_pb2
from nst_engine import StepReport
from nst_running import FLOW, running_job
from nst_server.config import StoreSettings
from nst_server.jobs.backbone import StoreFull
from nst_server.jobs.belongings import USE_NOTE_SECONDS
from nst_server.jobs.blobs import UNKEPT_SECONDS
from nst_server.jobs.topology import EVENTS, configure, picture_name
from nst_server.model_server import job_pictures
from nst_server.model_server.seats import Seat, Step


def noise() -> Step:
    """A step with a picture that takes 360 KB."""
    report = StepReport(7, 7, 1, 1, 400, 300, 1.0, {}, 0, (), None)
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return Step(report, 1.0, 1.0, picture, None, 0)


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=50, max_picture_bytes=10_000_000)])
async def test_the_least_recently_used_jobs_make_room(bench):
    jobs = [await bench.run(str(number), result=bytes([number]) * 10**6) for number in range(8)]
    bench.ahead = USE_NOTE_SECONDS + 1

    def use(record) -> None:
        record.last_use_time.FromNanoseconds(int((time.time() + HOUR) * 1e9))

    await bench.commands.records.update(jobs[0], use)  # its client has come back for it
    await bench.sweep(ahead=10 * HOUR)
    assert await bench.jobs() == {jobs[0], *jobs[-3:]}
    before = await bench.stored()
    await bench.sweep(ahead=10 * HOUR)
    assert await bench.stored() == before, "there is room: nothing more goes"


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=50, max_picture_bytes=10_000_000)])
async def test_pictures_that_are_about_to_go_count_as_gone(bench):
    for number in range(8):
        await bench.run(str(number), result=bytes([number]) * 10**6)
    for _ in range(3):
        await bench.sweep(ahead=UNKEPT_SECONDS / 2)
        assert len(await bench.jobs()) == 4


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=50, max_event_bytes=10000)])
async def test_a_tenant_with_few_jobs_makes_no_room_for_one_with_many(bench):
    few = {
        (await bench.commands.create(str(number), "few", await bench.spec(b"c", b"s"), "")).job_id
        for number in range(2)
    }
    for job_id in few:
        await bench.commands.cancel(job_id)
    many = []
    for number in range(40):
        many.append(await bench.create(str(number)))
        await bench.commands.cancel(many[-1])
        await bench.sweep()
    left = await bench.jobs()
    assert few < left
    assert many[0] not in left


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=50, max_event_bytes=6000)])
async def test_histories_make_room_before_new_jobs_are_refused(bench):
    for number in range(60):
        await bench.commands.cancel(await bench.create(str(number)))
        if number % 5 == 4:
            await bench.sweep()
    assert await bench.commands.get(
        (await bench.commands.create("last", "tenant", await bench.spec(b"c", b"s"), "")).job_id
    )


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=50, max_picture_bytes=10_000_000)])
async def test_uploads_that_nobody_uses_make_room_before_results_do(bench):
    job_id = await bench.run("request", result=b"r" * 2 * 10**6)
    uploads = [bytes([number]) * 10**6 for number in range(6)]
    for upload in uploads:
        await bench.pictures.put(upload)
    await bench.sweep(ahead=UNKEPT_SECONDS / 2)
    assert all([await bench.has(upload) for upload in uploads]), "one of them may be about to be used"
    await bench.sweep(ahead=HOUR)
    assert [await bench.has(upload) for upload in uploads] == [False] * 4 + [True] * 2, "the oldest went"
    assert await bench.has(b"r" * 2 * 10**6)
    assert await bench.commands.get(job_id)


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=50, max_record_bytes=20_000)])
async def test_records_make_room_before_new_jobs_are_refused(bench):
    for number in range(80):
        await bench.commands.cancel(await bench.create(str(number)))
        if number % 5 == 4:
            await bench.sweep()
            for picture in await bench.pictures._released.all():
                await bench.pictures._released.drop(picture)
    with pytest.raises(StoreFull, match="max_record_bytes"):
        [await bench.create(f"one of too many {number}") for number in range(50)]


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=50)])
async def test_room_is_made_by_the_limits_that_the_store_has_now(bench, backbone, store_settings):
    """A gateway with other settings may have started since the one that keeps the store."""
    for number in range(15):
        await bench.commands.cancel(await bench.create(str(number)))
    await configure(backbone.jetstream, replace(store_settings, max_event_bytes=6000))
    assert (await bench.stored())[EVENTS][1] > 0.7 * 6000
    await bench.sweep()
    assert (await bench.stored())[EVENTS][1] < 0.5 * 6000


@pytest.mark.parametrize("store_settings", [StoreSettings(max_queued_jobs=50)])
async def test_room_is_made_though_there_is_none_for_what_is_noted_on_the_way(bench, backbone, store_settings):
    for number in range(30):
        pictures = (f"{kind} {number}".encode() for kind in ("content", "style"))
        await bench.commands.cancel(await bench.create(str(number), *pictures))
    await bench.create("unclosed")
    lease = await bench.claim()
    await configure(backbone.jetstream, replace(store_settings, max_record_bytes=4000))
    with pytest.raises(StoreFull, match="max_record_bytes"):
        await bench.succeed(lease, b"result")
    await bench.sweep(ahead=HOUR)
    assert len(await bench.jobs()) < 10


@pytest.mark.parametrize("store_settings", [StoreSettings(max_picture_bytes=1_000_000)])
async def test_the_last_of_the_pictures_room_is_for_results(bench):
    await bench.pictures.check_room()
    await bench.pictures.put(b"x" * 850_000)
    with pytest.raises(StoreFull, match="max_picture_bytes"):
        await bench.pictures.check_room()
    await bench.pictures.put(b"result" * 10_000)


@pytest.mark.parametrize("store_settings", [StoreSettings(max_picture_bytes=1_000_000)])
async def test_a_result_waits_until_there_is_room(bench, monkeypatch):
    monkeypatch.setattr(job_pictures, "ROOM_PAUSE_SECONDS", 0.02)
    await bench.create("request")
    results = job_pictures.JobPictures(bench.backbone, await bench.claim())
    digest = await bench.pictures.put(b"x" * 950_000)
    step = noise()
    storing = asyncio.create_task(results.result(step, job_pb2.Progress(), 1.0))
    _, waiting = await asyncio.wait({storing}, timeout=0.5)
    assert waiting, "there is no room"
    name = picture_name("tenant", digest)
    head = await results.store._blobs.head(name)
    assert head is not None
    await results.store._blobs.remove(name, head)
    assert (await asyncio.wait_for(storing, 10)).iterations == 7
    await results.store.put(b"y" * 600_000)
    with pytest.raises(StoreFull, match="max_picture_bytes"):
        await results.result(replace(step, picture=255 - step.picture), job_pb2.Progress(), 1.0, room_seconds=0.0)


@pytest.mark.parametrize("storage_settings", [{"max_file": 2**20}])
@pytest.mark.parametrize("store_settings", [UNLIMITED])
async def test_a_preview_that_finds_no_room_is_left_out(bench):
    job_id = await bench.create("request")
    lease = await bench.claim()
    seat = Seat(FLOW.account, 1, 1, 0)
    with pytest.raises(StoreFull, match="max_file_store"):
        await bench.pictures.put(bytes(2**21))
    await running_job(lease, backbone=bench.backbone)._preview(seat, noise())
    assert not any(event.HasField("preview") for event in await history(bench.commands, job_id))
