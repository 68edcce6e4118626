"""What one tenant may ask of a gateway, and store."""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from nst_server.config import GatewaySettings
from nst_server.gateway.errors import Refusal, exhausted
from nst_server.jobs.blobs import CHUNK_BYTES, PictureStore
from nst_server.shared_tasks import SharedTasks

BURST_SECONDS = 2.0
REMEMBERED_TENANTS = 10_000
COUNT_SECONDS = 5.0
CALLS_RETRY_SECONDS = 2.0
STORAGE_RETRY_SECONDS = 60.0


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RequestRates:
    """A bucket of tokens for each tenant: a call takes one, and they come back at a steady rate."""

    def __init__(self, settings: GatewaySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = settings.max_tenant_requests_per_second
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def count(self, tenant: str) -> None:
        """Takes a token for a call of the tenant.

        Raises:
            Refusal: there is none.
        """
        now, full = self._clock(), self._rate * BURST_SECONDS
        bucket = self._buckets.setdefault(tenant, _Bucket(full, now))
        self._buckets.move_to_end(tenant)
        if len(self._buckets) > REMEMBERED_TENANTS:
            self._buckets.popitem(last=False)
        bucket.tokens = min(full, bucket.tokens + (now - bucket.filled_at) * self._rate)
        bucket.filled_at = now
        if bucket.tokens < 1:
            seconds = (1 - bucket.tokens) / self._rate
            text = "too many calls of this tenant: try again later"
            raise exhausted("max_tenant_requests_per_second", self._rate, text, seconds)
        bucket.tokens -= 1

    async def wait(self, tenant: str) -> None:
        """Takes a token for a message of an open call, when there is one."""
        while True:
            try:
                return self.count(tenant)
            except Refusal as refusal:
                await asyncio.sleep(refusal.retry_seconds or 0.0)


class OpenCalls:
    """How many calls each tenant has open: of the calls that a gateway can have, none is to hold all."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._limit = settings.max_tenant_calls
        self._open: Counter[str] = Counter()

    @contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """Holds a place for a call of the tenant.

        Raises:
            Refusal: it has too many open.
        """
        if self._open[tenant] >= self._limit:
            text = "this tenant has too many calls open: try again later"
            raise exhausted("max_tenant_calls", self._limit, text, CALLS_RETRY_SECONDS)
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]


@dataclass
class _Stored:
    size: int
    counted_at: float


class PictureQuota:
    """How much tenants have stored: counted every few seconds at most, and what was added since."""

    def __init__(self, stored: Callable[[str], PictureStore], settings: GatewaySettings) -> None:
        self._store_of = stored
        self._limit = settings.max_tenant_bytes
        self._stored: OrderedDict[str, _Stored] = OrderedDict()
        self._counts = SharedTasks[_Stored]()

    async def check(self, tenant: str, size: int) -> None:
        """Refuses pictures of `size` bytes for which the tenant has no room.

        Raises:
            Refusal: they would be too many bytes.
        """
        await self._with_room(tenant, size)

    async def take(self, tenant: str, size: int) -> None:
        """As `check`, of a picture that is stored next.

        Raises:
            StoreFull: what room is left is for results.
        """
        await self._store_of(tenant).check_room()
        # Nothing comes between the two: each counts for the next, until all are counted again.
        (await self._with_room(tenant, size)).size += whole_chunks(size)

    async def _with_room(self, tenant: str, size: int) -> _Stored:
        known = self._stored.get(tenant)
        if known is None or time.monotonic() > known.counted_at + COUNT_SECONDS:
            known = await self._counts.run(tenant, partial(self._count, tenant))
        if known.size + whole_chunks(size) > self._limit:
            text = f"this tenant has {known.size} bytes of pictures stored, which go as they get old: try again later"
            raise exhausted("max_tenant_bytes", self._limit, text, STORAGE_RETRY_SECONDS)
        return known

    async def _count(self, tenant: str) -> _Stored:
        known = _Stored(await self._store_of(tenant).size(), time.monotonic())
        self._stored[tenant] = known
        self._stored.move_to_end(tenant)
        if len(self._stored) > REMEMBERED_TENANTS:
            self._stored.popitem(last=False)
        return known


def whole_chunks(size: int) -> int:
    """The bytes that a picture of this size is counted as."""
    return -(-size // CHUNK_BYTES) * CHUNK_BYTES
