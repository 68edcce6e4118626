"""The job store follows the gateway's settings."""

import asyncio
import dataclasses
from contextlib import ExitStack

import nats
import pytest
from nats.js import api
from store_bench import UNLIMITED

from nst.internal.v1.job_record_pb2 import JobRecord, Ticket
from nst_processes import running_nats
from nst_server.config import StoreSettings
from nst_server.jobs import backbone as backbone_module
from nst_server.jobs.backbone import BackboneUnavailable, StoreFull, connect
from nst_server.jobs.blobs import PictureStore
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.records import JobNotFound, Records
from nst_server.jobs.tickets import Flow, TicketSource
from nst_server.jobs.topology import ticket_consumers


async def test_changed_settings_reach_a_store_that_is_there(nats_url, store_settings):
    async with connect(nats_url, "gateway", store_settings) as backbone:
        await TicketQueue(backbone, patience=5).put("job", Flow("batch", "tenant"))
    changed = dataclasses.replace(
        store_settings,
        max_queued_jobs=7,
        lease_seconds=33,
        retention_hours=2,
        max_picture_bytes=9 * 2**20,
        max_tenant_running_jobs=5,
    )
    async with connect(nats_url, "gateway", changed) as backbone:
        streams = {info.config.name: info.config for info in await backbone.jetstream.streams_info()}
        tickets = TicketSource(backbone)
        await tickets.open()
        (consumer,) = await ticket_consumers(backbone.jetstream)
    assert (consumer.config.ack_wait, consumer.config.max_ack_pending) == (33, 5)
    assert streams["NST_TICKETS"].max_msgs == 7
    assert tickets.lease_seconds == 33
    assert streams["NST_PICTURES"].max_bytes == 9 * 2**20
    assert streams["NST_PREVIEWS"].max_age == 2 * 3600
    for name in ("NST_EVENTS", "KV_nst_jobs", "NST_PICTURES", "NST_CHECKPOINTS"):
        assert not streams[name].max_age, "what a waiting job needs goes by itself"


async def test_gateways_with_different_settings_may_set_the_store_up_at_once(nats_url, store_settings):
    async def started(settings: StoreSettings) -> int:
        async with connect(nats_url, "gateway", settings) as backbone:
            return (await backbone.jetstream.stream_info("NST_EVENTS")).config.max_bytes

    limits = (10**7, 2 * 10**7, 3 * 10**7)
    changed = [dataclasses.replace(store_settings, max_event_bytes=limit, max_record_bytes=limit) for limit in limits]
    assert {*await asyncio.gather(*map(started, changed))} <= {*limits}


async def test_a_store_of_before_tenants_had_queues_is_taken_over(nats_url, store_settings):
    client = await nats.connect(nats_url)
    jetstream = client.jetstream()
    stream = api.StreamConfig(
        name="NST_TICKETS",
        subjects=["nst.ticket.*"],
        retention=api.RetentionPolicy.WORK_QUEUE,
        discard=api.DiscardPolicy.NEW,
        max_msgs=1000,
    )
    await jetstream.add_stream(stream)
    lane = api.ConsumerConfig(durable_name="batch", name="batch", filter_subject="nst.ticket.batch", ack_wait=10)
    await jetstream.add_consumer("NST_TICKETS", lane)
    await jetstream.publish("nst.ticket.batch", Ticket(job_id="old").SerializeToString())
    await client.close()
    async with connect(nats_url, "gateway", store_settings) as backbone:
        await TicketQueue(backbone, patience=5).put("new", Flow("batch", "tenant"))
        tickets = TicketSource(backbone)
        await tickets.open()
        messages = [await asyncio.wait_for(tickets.next(list), 10) for _ in range(2)]
    assert {Ticket.FromString(message.data).job_id for message in messages} == {"old", "new"}


async def test_a_model_server_says_so_when_no_gateway_has_set_the_store_up(nats_url, monkeypatch):
    monkeypatch.setattr(backbone_module, "START_SECONDS", 0.5)
    with pytest.raises(BackboneUnavailable):
        async with connect(nats_url, "model-server", None):
            pass


@pytest.mark.parametrize("storage_settings", [{"max_file": 2**20}])
async def test_too_little_storage_for_the_settings_names_the_limit_of_nats(nats_url, store_settings):
    with pytest.raises(StoreFull, match="max_file_store"):
        async with connect(nats_url, "gateway", store_settings):
            pass


@pytest.mark.parametrize("storage_settings", [{"max_file": 4 * 2**20}])
async def test_storage_that_runs_out_names_the_limit_of_nats(nats_url):
    async with connect(nats_url, "gateway", UNLIMITED) as backbone:
        pictures = PictureStore(backbone, "tenant", patience=5)
        records = Records(backbone, patience=5)
        await records.create(JobRecord(job_id="job"))
        with pytest.raises(StoreFull, match="max_file_store"):
            [await pictures.put(bytes([number]) * 2**20) for number in range(10)]
        for size in (100_000, 1_000, 0):
            with pytest.raises(StoreFull):
                [await records.create(_sized(f"{size}-{number}", size)) for number in range(1_000)]
        await records.remove("job", _allowed)  # or no room could ever be made
        with pytest.raises(JobNotFound):
            await records.get("job")


def _sized(job_id: str, size: int) -> JobRecord:
    return JobRecord(job_id=job_id, request_id="x" * size)


async def _allowed(record: JobRecord) -> None:
    return


async def test_who_is_done_leaves_in_peace_though_nats_has_gone(tmp_path):
    with ExitStack() as running:
        url = running.enter_context(running_nats(tmp_path))
        async with connect(url, "test", StoreSettings()) as backbone:
            running.close()
            while not backbone.nats.is_reconnecting:  # noqa: ASYNC110 it tells nobody
                await asyncio.sleep(0.01)
            await backbone.nats.publish("anywhere", b"")
