"""A tenant's records, the newest first, on a real nats-server."""

import pytest
from google.protobuf.message import DecodeError

from nst.internal.v1.job_record_pb2 import JobRecord
from nst_server.jobs.commands import derive_job_id
from nst_server.jobs.records import Records, position, tenant_digits


@pytest.fixture
def records(backbone) -> Records:
    return Records(backbone, patience=5)


async def made(records: Records, tenant: str, count: int) -> list[str]:
    """The ids of new records, the newest first."""
    ids = [derive_job_id(tenant, f"request {number}") for number in range(count)]
    for number, job_id in enumerate(ids):
        record = JobRecord(job_id=job_id, tenant=tenant)
        record.create_time.FromSeconds(1_000_000 + number)
        await records.create(record)
    return ids[::-1]


def ids_of(found: list[JobRecord]) -> list[str]:
    return [record.job_id for record in found]


async def test_a_tenants_records_come_newest_first_page_by_page(records):
    ids = await made(records, "a", 150)
    await made(records, "b", 20)
    # What is changed moves to the end of what is read, and stays where it is here.
    await records.update(ids[100], lambda record: setattr(record.lease, "attempt", 1))
    first = await records.newest("a", 100)
    assert ids_of(first) == ids[:100]
    second = await records.newest("a", 100, before=position(first[-1]))
    assert ids_of(second) == ids[100:]
    assert second[0].lease.attempt == 1
    assert await records.newest("a", 100, before=position(second[-1])) == []


@pytest.mark.parametrize("count", [1, 2, 3, 7])
async def test_however_few_are_asked_for_they_are_the_newest(records, count):
    ids = await made(records, "a", 7)
    await records.update(ids[-1], lambda record: setattr(record.lease, "attempt", 1))
    assert ids_of(await records.newest("a", count)) == ids[:count]


async def test_the_records_of_other_tenants_are_not_read(backbone, records):
    ids = await made(records, "a", 3)
    for number in range(300):
        await backbone.nats.publish(f"$KV.nst_jobs.{tenant_digits('b')}.{number}", b"\xff is no record")
    await backbone.nats.flush()
    before = backbone.nats.stats["in_msgs"]
    assert ids_of(await records.newest("a", 10)) == ids
    assert backbone.nats.stats["in_msgs"] - before < 10
    with pytest.raises(DecodeError):
        await records.newest("b", 10)


async def test_another_tenant_with_the_same_digits_is_left_out(records):
    ids = await made(records, "a", 2)
    await records.create(JobRecord(job_id=derive_job_id("a", "not a's"), tenant="b"))
    assert ids_of(await records.newest("a", 10)) == ids
