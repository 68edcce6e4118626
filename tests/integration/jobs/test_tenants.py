"""What the store keeps of each tenant, on a real nats-server."""

import contextlib

import pytest

from nst_server.config import GatewaySettings, StoreSettings
from nst_server.gateway import quotas
from nst_server.gateway.errors import Refusal
from nst_server.gateway.quotas import PictureQuota, RequestRates
from nst_server.jobs.blobs import CHUNK_BYTES, BlobNotFound, PictureStore


def pictures(backbone, tenant: str) -> PictureStore:
    return PictureStore(backbone, tenant, patience=5)


async def test_tenants_keep_their_pictures_apart(backbone):
    digest = await pictures(backbone, "a").put(b"picture")
    assert await pictures(backbone, "a").get(digest) == b"picture"
    assert await pictures(backbone, "a").keep(digest)
    for other in ("b", "a.b", "A", "*", ">"):
        assert not await pictures(backbone, other).keep(digest)
        with pytest.raises(BlobNotFound):
            await pictures(backbone, other).get(digest)
    assert await pictures(backbone, "b").put(b"picture") == digest


async def test_a_tenants_bytes_are_counted_in_whole_chunks(backbone):
    assert await pictures(backbone, "a").size() == 0
    await pictures(backbone, "a").put(b"x")
    await pictures(backbone, "a").put(b"y" * (CHUNK_BYTES + 1))
    await pictures(backbone, "a").put(b"x")
    await pictures(backbone, "a.b").put(b"z")
    assert await pictures(backbone, "a").size() == 3 * CHUNK_BYTES


@pytest.mark.parametrize("storage_settings", [{"sync_interval": "2m"}])
@pytest.mark.parametrize("store_settings", [StoreSettings()])
async def test_a_tenants_bytes_are_counted_however_many_pictures_it_has(backbone):
    """NATS names 100,000 subjects at once, and no more."""
    for number in range(100_001):
        # Each 1000th waits for the stream, which drops what comes faster than it stores.
        publish = backbone.nats.publish if number % 1000 else backbone.jetstream.publish
        await publish(f"nst.picture.a.{number}.0", b"")
    assert await backbone.jetstream.publish("nst.picture.a.last.0", b"")
    assert await pictures(backbone, "a").size() == 100_002 * CHUNK_BYTES


@pytest.fixture
def quota(backbone):
    settings = GatewaySettings(max_tenant_bytes=3 * CHUNK_BYTES)
    return PictureQuota(lambda tenant: pictures(backbone, tenant), settings)


async def refused(work) -> Refusal | None:
    try:
        await work
    except Refusal as refusal:
        return refusal
    return None


async def test_the_quota_counts_what_is_taken_between_two_counts(quota):
    await quota.take("a", 1)
    await quota.take("a", CHUNK_BYTES)
    await quota.check("a", CHUNK_BYTES)
    assert (await refused(quota.check("a", CHUNK_BYTES + 1))).metadata == {"limit": "max_tenant_bytes"}
    await quota.take("a", 1)
    assert await refused(quota.take("a", 1)) is not None
    await quota.take("b", 1)


async def test_the_quota_is_free_again_when_pictures_are_gone(backbone, quota, monkeypatch):
    monkeypatch.setattr(quotas, "COUNT_SECONDS", 0.0)
    store = pictures(backbone, "a")
    for number in range(3):
        await store.put(bytes([number]), admit=lambda size: quota.take("a", size))
    assert await refused(store.put(b"more", admit=lambda size: quota.take("a", size))) is not None
    await store.put(bytes([0]), admit=lambda size: quota.take("a", size))  # is stored already
    await backbone.jetstream.purge_stream("NST_PICTURES", subject="nst.picture.a.>", keep=4)
    await store.put(b"more", admit=lambda size: quota.take("a", size))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_calls_come_as_tokens_do():
    clock = Clock()
    rates = RequestRates(GatewaySettings(max_tenant_requests_per_second=4), clock)
    assert taken(rates, "a", 20) == 8  # two seconds' worth
    clock.now += 0.125
    assert taken(rates, "a", 20) == 0
    clock.now += 0.375
    assert taken(rates, "a", 20) == 2
    assert taken(rates, "b", 20) == 8
    clock.now += 1000
    assert taken(rates, "a", 20) == 8
    with pytest.raises(Refusal) as caught:
        rates.count("a")
    assert caught.value.metadata == {"limit": "max_tenant_requests_per_second"}
    assert caught.value.retry_seconds == 0.25
    clock.now += caught.value.retry_seconds
    assert taken(rates, "a", 20) == 1


def test_only_so_many_tenants_are_remembered(monkeypatch):
    monkeypatch.setattr(quotas, "REMEMBERED_TENANTS", 3)
    rates = RequestRates(GatewaySettings(max_tenant_requests_per_second=1), Clock())
    for tenant in "abc":
        assert taken(rates, tenant, 2) == 2
    assert taken(rates, "a", 1) == 0
    rates.count("d")  # the one unheard of for longest, b, makes room
    assert len(rates._buckets) == 3
    assert taken(rates, "a", 1) == 0


def taken(rates: RequestRates, tenant: str, calls: int) -> int:
    """How many of so many calls are let through."""
    count = 0
    for _ in range(calls):
        with contextlib.suppress(Refusal):
            rates.count(tenant)
            count += 1
    return count
