"""Which jobs a tenant has, the newest first.

What was read for one page is known for the next, whose cost is then what has changed in between.
"""

import asyncio
import heapq
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from nst_server.jobs.backbone import Backbone, BackboneUnavailable
from nst_server.jobs.records import Position, Records, position

# All is then read anew, and with it what a connection that broke may have left out. Before markers of removal go.
KNOWN_SECONDS = 60.0
KNOWN_JOBS = 100_000


@dataclass
class _Known:
    """A tenant's jobs, as they were at one place of the records' stream."""

    reconnects: int
    since: float
    sequence: int = 0
    places: dict[str, Position] = field(default_factory=dict)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class Listing:
    """The places of jobs in the order in which they were made, of the tenants that asked last."""

    def __init__(self, backbone: Backbone, records: Records, *, patience: float) -> None:
        """`patience` is how long to wait for another reading of the same tenant's jobs, in seconds."""
        self._nats = backbone.nats
        self._patience = patience
        self._records = records
        self._tenants: OrderedDict[str, _Known] = OrderedDict()

    async def newest(self, tenant: str, count: int, before: Position | None = None) -> list[Position]:
        """The tenant's jobs made last, at most so many, the newest first.

        Args:
            tenant: whose.
            count: how many.
            before: only those that were made before this place.

        Raises:
            BackboneUnavailable: NATS does not answer.
        """
        known = self._known(tenant)
        try:
            await asyncio.wait_for(known.reading.acquire(), self._patience)
        except TimeoutError as error:
            raise BackboneUnavailable("the tenant's jobs are still being read for others") from error
        try:
            await self._catch_up(tenant, known)
        finally:
            known.reading.release()
        self._forget_others(tenant)
        return heapq.nlargest(count, (place for place in known.places.values() if before is None or place < before))

    async def _catch_up(self, tenant: str, known: _Known) -> None:
        async for sequence, job_id, record in self._records.changes(tenant, known.sequence):
            if record is None or record.tenant != tenant:
                known.places.pop(job_id, None)
            else:
                known.places[job_id] = position(record)
            known.sequence = sequence

    def _known(self, tenant: str) -> _Known:
        now, reconnects = time.monotonic(), self._nats.stats["reconnects"]
        known = self._tenants.get(tenant)
        if known is None or known.reconnects != reconnects or now > known.since + KNOWN_SECONDS:
            known = self._tenants[tenant] = _Known(reconnects, now)
        self._tenants.move_to_end(tenant)
        return known

    def _forget_others(self, tenant: str) -> None:
        """Drops who asked longest ago, as long as too many jobs are known; never this tenant."""
        jobs = sum(len(known.places) for known in self._tenants.values())
        for other in [name for name in self._tenants if name != tenant]:
            if jobs <= KNOWN_JOBS:
                return
            jobs -= len(self._tenants.pop(other).places)
