"""Which jobs a tenant has, the newest first.

What was read for one page is known for the next, for which only what has changed since is read.
"""

import asyncio
import time
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2
from nst_server.jobs.backbone import Backbone, BackboneUnavailable
from nst_server.jobs.records import Position, Records, position

# All is then read anew, and with it what a connection that broke may have left out. Before markers of removal go.
KNOWN_SECONDS = 60.0
KNOWN_TENANTS = 1000
KNOWN_JOBS = 100_000

State: TypeAlias = "job_pb2.JobState.ValueType"


class _Job(NamedTuple):
    """Where a job is in the order, and the state in which it has ended, as far as its record tells."""

    place: Position
    ended: State

    def may_be_in(self, states: Sequence[State]) -> bool:
        return not states or not self.ended or self.ended in states


class _Known:
    """A tenant's jobs, as they were at one place of the records' stream."""

    def __init__(self, reconnects: int) -> None:
        self.reconnects = reconnects
        self.since = time.monotonic()
        self.sequence = 0
        self.reading = asyncio.Lock()
        self._jobs: dict[str, _Job] = {}
        self._places: list[Position] = []  # of all jobs, the oldest first

    def __len__(self) -> int:
        return len(self._places)

    def put(self, record: JobRecord) -> None:
        """Takes a new job, or what has changed of one."""
        job = _Job(position(record), record.ending.state)
        before = self._jobs.get(record.job_id)
        if before is None or before.place != job.place:
            self.drop(record.job_id)
            insort(self._places, job.place)
        self._jobs[record.job_id] = job

    def drop(self, job_id: str) -> None:
        """Takes one out; no error if it is not there."""
        if (job := self._jobs.pop(job_id, None)) is not None:
            del self._places[bisect_left(self._places, job.place)]

    def newest(self, count: int, before: Position | None, states: Sequence[State]) -> list[Position]:
        """See `Listing.newest`."""
        end = len(self._places) if before is None else bisect_left(self._places, before)
        found: list[Position] = []
        for index in range(end - 1, -1, -1):
            place = self._places[index]
            if self._jobs[place[1]].may_be_in(states):
                found.append(place)
            if len(found) == count:
                break
        return found


class Listing:
    """The places of jobs in the order in which they were made, of the tenants that asked last."""

    def __init__(self, backbone: Backbone, records: Records, *, patience: float) -> None:
        """`patience` is how long to wait for another reading of the same tenant's jobs, in seconds."""
        self._nats = backbone.nats
        self._patience = patience
        self._records = records
        self._tenants: OrderedDict[str, _Known] = OrderedDict()

    async def newest(
        self, tenant: str, count: int, before: Position | None = None, states: Sequence[State] = ()
    ) -> list[Position]:
        """The tenant's jobs made last, at most so many, the newest first.

        Args:
            tenant: whose.
            count: how many.
            before: only those that were made before this place.
            states: leaves out those that have ended in others; of the rest only their histories tell.

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
        self._keep(tenant, known)
        return known.newest(count, before, states)

    def forget(self, tenant: str) -> None:
        """Has the tenant's jobs read anew: what was known of them is wrong."""
        self._tenants.pop(tenant, None)

    async def _catch_up(self, tenant: str, known: _Known) -> None:
        async for sequence, job_id, record in self._records.changes(tenant, known.sequence):
            if record is None or record.tenant != tenant:
                known.drop(job_id)
            else:
                known.put(record)
            known.sequence = sequence

    def _known(self, tenant: str) -> _Known:
        reconnects = self._nats.stats["reconnects"]
        known = self._tenants.get(tenant)
        if known is None or known.reconnects != reconnects or time.monotonic() > known.since + KNOWN_SECONDS:
            known = self._tenants[tenant] = _Known(reconnects)
        return known

    def _keep(self, tenant: str, known: _Known) -> None:
        """Keeps what is known of the tenant that has asked; drops who asked longest ago, as long as it is too much."""
        if self._tenants.get(tenant) is not known:
            return
        self._tenants.move_to_end(tenant)
        jobs = sum(map(len, self._tenants.values()))
        while len(self._tenants) > 1 and (len(self._tenants) > KNOWN_TENANTS or jobs > KNOWN_JOBS):
            jobs -= len(self._tenants.popitem(last=False)[1])
