"""A tenant's jobs, the newest first, on a real nats-server."""

import pytest
from google.protobuf.message import DecodeError

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2
from nst_server.jobs import listing as listing_module
from nst_server.jobs.commands import derive_job_id
from nst_server.jobs.listing import Listing
from nst_server.jobs.records import MARKER_SECONDS, Position, Records, tenant_digits


@pytest.fixture
def records(backbone) -> Records:
    return Records(backbone, patience=5)


async def made(records: Records, tenant: str, count: int) -> list[str]:
    """The ids of new records, the newest first."""
    ids = [derive_job_id(tenant, f"request {number}") for number in range(count)]
    for number, job_id in enumerate(ids):
        await records.create(_record(tenant, job_id, 1_000_000 + number))
    return ids[::-1]


def _record(tenant: str, job_id: str, seconds: int) -> JobRecord:
    record = JobRecord(job_id=job_id, tenant=tenant)
    record.create_time.FromSeconds(seconds)
    return record


async def _allowed(record: JobRecord) -> None:
    return


@pytest.fixture
def listing(backbone, records) -> Listing:
    return Listing(backbone, records, patience=5)


def ids_of(found: list[Position]) -> list[str]:
    return [job_id for _, job_id in found]


async def test_a_tenants_jobs_come_newest_first_page_by_page(records, listing):
    ids = await made(records, "a", 150)
    await made(records, "b", 20)
    # What is changed moves to the end of what is read, and stays where it is here.
    await records.update(ids[100], lambda record: setattr(record.lease, "attempt", 1))
    first = await listing.newest("a", 100)
    assert ids_of(first) == ids[:100]
    second = await listing.newest("a", 100, before=first[-1])
    assert ids_of(second) == ids[100:]
    assert await listing.newest("a", 100, before=second[-1]) == []


@pytest.mark.parametrize("count", [1, 2, 3, 7])
async def test_however_few_are_asked_for_they_are_the_newest(records, listing, count):
    ids = await made(records, "a", 7)
    await records.update(ids[-1], lambda record: setattr(record.lease, "attempt", 1))
    assert ids_of(await listing.newest("a", count)) == ids[:count]


async def test_those_that_ended_in_other_states_are_left_out(records, listing):
    ids = await made(records, "a", 4)
    ended = (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_UNSPECIFIED)
    for job_id, state in zip(ids, ended, strict=False):
        await records.update(job_id, lambda record, state=state: setattr(record.ending, "state", state))
    failed = await listing.newest("a", 10, states=[job_pb2.JOB_STATE_FAILED])
    assert ids_of(failed) == [ids[0], *ids[2:]]  # of the last two the records do not tell


async def test_the_next_page_reads_only_what_has_changed(backbone, records, listing):
    ids = await made(records, "a", 150)
    assert ids_of(await listing.newest("a", 150)) == ids
    removed, new = ids[3], derive_job_id("a", "another")
    await records.remove(removed, _allowed)
    await records.create(_record("a", new, 2_000_000))
    before = backbone.nats.stats["in_msgs"]
    assert ids_of(await listing.newest("a", 200)) == [new, *(one for one in ids if one != removed)]
    assert backbone.nats.stats["in_msgs"] - before < 10


async def test_what_a_broken_connection_left_out_is_read_again(records, listing, backbone, monkeypatch):
    ids = await made(records, "a", 5)
    changes = records.changes
    monkeypatch.setattr(records, "changes", lambda tenant, after: changes(tenant, after + 3))
    assert len(await listing.newest("a", 10)) < 5
    monkeypatch.undo()
    assert len(await listing.newest("a", 10)) < 5
    monkeypatch.setitem(backbone.nats.stats, "reconnects", 1)
    assert ids_of(await listing.newest("a", 10)) == ids


async def test_all_is_read_again_before_markers_of_removal_go(records, listing, monkeypatch):
    ids = await made(records, "a", 3)
    assert ids_of(await listing.newest("a", 10)) == ids
    await records.remove(ids[0], _allowed)
    purge = records._backbone.jetstream.purge_stream
    await purge("KV_nst_jobs", subject=f"$KV.nst_jobs.{tenant_digits('a')}.{ids[0]}")
    assert listing_module.KNOWN_SECONDS < MARKER_SECONDS / 2
    monkeypatch.setattr(listing_module, "KNOWN_SECONDS", 0.0)
    assert ids_of(await listing.newest("a", 10)) == ids[1:]


async def test_who_asked_longest_ago_is_forgotten_first(backbone, records, listing, monkeypatch):
    monkeypatch.setattr(listing_module, "KNOWN_JOBS", 5)
    ids = {tenant: await made(records, tenant, 2) for tenant in ("a", "b", "c")}
    for tenant in ("a", "b", "a", "c", "a"):
        assert ids_of(await listing.newest(tenant, 10)) == ids[tenant]
    assert listing._tenants.keys() == {"a", "c"}
    many = await made(records, "many", 7)
    assert ids_of(await listing.newest("many", 10)) == many
    assert listing._tenants.keys() == {"many"}


async def test_tenants_without_jobs_take_no_room_either(listing, monkeypatch):
    monkeypatch.setattr(listing_module, "KNOWN_TENANTS", 3)
    for number in range(6):
        assert await listing.newest(str(number), 10) == []
    assert listing._tenants.keys() == {"3", "4", "5"}


async def test_a_store_that_was_lost_is_read_from_its_beginning(backbone, records, listing):
    ids = await made(records, "a", 5)
    assert ids_of(await listing.newest("a", 10)) == ids
    await backbone.jetstream.purge_stream("KV_nst_jobs")
    listing.forget("a")
    assert await listing.newest("a", 10) == []


async def test_a_job_made_anew_is_where_it_was_made_last(records, listing):
    ids = await made(records, "a", 3)
    assert ids_of(await listing.newest("a", 10)) == ids
    await records.remove(ids[2], _allowed)
    await records.create(_record("a", ids[2], 2_000_000))
    assert ids_of(await listing.newest("a", 10)) == [ids[2], *ids[:2]]


async def test_the_records_of_other_tenants_are_not_read(backbone, records, listing):
    ids = await made(records, "a", 3)
    for number in range(300):
        await backbone.nats.publish(f"$KV.nst_jobs.{tenant_digits('b')}.{number}", b"\xff is no record")
    await backbone.nats.flush()
    before = backbone.nats.stats["in_msgs"]
    assert ids_of(await listing.newest("a", 10)) == ids
    assert backbone.nats.stats["in_msgs"] - before < 10
    with pytest.raises(DecodeError):
        await listing.newest("b", 10)


async def test_another_tenant_with_the_same_digits_is_left_out(records, listing):
    ids = await made(records, "a", 2)
    await records.create(JobRecord(job_id=derive_job_id("a", "not a's"), tenant="b"))
    assert ids_of(await listing.newest("a", 10)) == ids
