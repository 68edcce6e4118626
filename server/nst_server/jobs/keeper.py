"""The keeper: ends jobs whose deadline passes while nobody works on them, and clears store and queue.

Every gateway runs one, and one at a time works. Two that do at once, because one lost the lock in the
middle of a round, do no harm: what is changed or removed is compared first, and can be again. Of the
queue's consumers nothing can be compared as they are removed, so the lock is looked at before each.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import uuid4

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2
from nst_server.config import StoreSettings
from nst_server.jobs import store_metrics
from nst_server.jobs.backbone import Backbone, cancellable, persistently
from nst_server.jobs.deadlines import Deadline, Deadlines, LastPictures, deadline_of, is_overdue
from nst_server.jobs.events import ABANDONED_SECONDS, EventLog
from nst_server.jobs.queue import TicketQueue
from nst_server.jobs.records import JobNotFound, Records
from nst_server.jobs.sweep import Sweep
from nst_server.jobs.topology import (
    CHECKPOINTS,
    EVENTS,
    KEEPER,
    KEEPER_LOCK_SECONDS,
    NOTES,
    PICTURES,
    PREVIEWS,
    RECORDS,
    SERVERS,
    TICKETS,
    configure,
)
from nst_server.jobs.unheld import UnheldJobs, take_away

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
LOCK_SECONDS = KEEPER_LOCK_SECONDS / 4
DEADLINE_SECONDS = 1.0
STORE_SECONDS = 5.0
SWEEP_SECONDS = 60.0
QUEUE_SECONDS = 5.0
SILENT_LEASES = 6.0  # how long a model server has for ending a job that is out of time, in leases
BUCKETS = (RECORDS, SERVERS, KEEPER)
STREAMS = (
    *(TICKETS, EVENTS, NOTES, PICTURES.stream, PREVIEWS.stream, CHECKPOINTS.stream),
    *(f"KV_{bucket}" for bucket in BUCKETS),
)


class Lock:
    """Held by who wrote its key last, until that is as old as `KEEPER_LOCK_SECONDS`: then NATS removes the key."""

    KEY = "lock"

    def __init__(self, backbone: Backbone) -> None:
        self._bucket: Any = backbone.keeper
        self._holder = uuid4().hex.encode()
        self._revision: int | None = None

    async def take(self) -> bool:
        """Takes the lock, or holds it for longer; False when another has it."""
        revision, self._revision = self._revision, None
        write = partial(self._bucket.create, self.KEY, self._holder)
        if revision is not None:
            write = partial(self._bucket.update, self.KEY, self._holder, last=revision)
        # The library looks for a key that is in the way, and by then it may have run out.
        with contextlib.suppress(KeyWrongLastSequenceError, KeyNotFoundError):
            self._revision = await persistently(write, seconds=PATIENCE_SECONDS)
        return self._revision is not None


class Keeper:
    """What one gateway does to keep the store."""

    def __init__(self, backbone: Backbone, settings: StoreSettings, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells the time, in Unix seconds."""
        self._backbone = backbone
        self._settings = settings
        self._clock = clock
        self._lock = Lock(backbone)
        self._holds = False
        self._records = Records(backbone, patience=PATIENCE_SECONDS)
        self._events = EventLog(backbone, patience=PATIENCE_SECONDS)
        self._deadlines = Deadlines(backbone, patience=PATIENCE_SECONDS)
        self._last_pictures = LastPictures(backbone, patience=PATIENCE_SECONDS)
        self._unheld = UnheldJobs(backbone, patience=PATIENCE_SECONDS)
        self._tickets = TicketQueue(backbone, patience=PATIENCE_SECONDS)

    async def run(self) -> None:
        """Keeps the store, for ever."""
        await asyncio.gather(
            _every(LOCK_SECONDS, self.take_lock),
            _every(DEADLINE_SECONDS, self._look_at_deadlines),
            _every(STORE_SECONDS, self._watch_store),
            _every(SWEEP_SECONDS, self._sweep_in_turn),
            _every(QUEUE_SECONDS, self.tend_queue),
        )

    async def take_lock(self) -> None:
        """Takes the lock, or holds it for longer."""
        self._holds = False
        self._holds = await self._lock.take()

    async def _look_at_deadlines(self) -> None:
        if self._holds:
            await self.end_overdue()

    async def _watch_store(self) -> None:
        try:
            for stream in STREAMS:
                info = await self._backbone.jetstream.stream_info(stream)
                store_metrics.STORE_BYTES.labels(stream).set(info.state.bytes)
        except NotFoundError:
            log.critical("the job store has lost a stream, with all that was in it, and gets a new one")
            # Other gateways may do so at once.
            await persistently(lambda: configure(self._backbone.jetstream, self._settings), seconds=PATIENCE_SECONDS)

    async def _sweep_in_turn(self) -> None:
        if self._holds:
            await self.sweep()

    async def tend_queue(self) -> None:
        """Removes consumers of the queue that nobody needs, as long as this keeper has the lock."""
        if self._holds:
            for consumer in await self._tickets.unneeded_consumers():
                if self._holds:
                    await self._tickets.remove_consumer(consumer)

    async def sweep(self) -> None:
        """Removes what need not be kept any more."""
        await Sweep(self._backbone, self._settings, self._clock(), patience=PATIENCE_SECONDS).run()

    async def end_overdue(self) -> None:
        """Ends the jobs that are out of time, but for those whose model server will."""
        for deadline in await self._deadlines.passed(self._clock()):
            try:
                done = await self._is_done(deadline)
            except JobNotFound:
                # Until then the job may still be in the making.
                done = self._clock() - deadline.time > ABANDONED_SECONDS
            if done:
                await self._deadlines.drop(deadline)

    async def _is_done(self, deadline: Deadline) -> bool:
        """Ends the job, if that is the keeper's to do; True when the deadline needs no more looking at."""
        now = self._clock()
        record = await self._records.get(deadline.job_id)
        last = await self._events.last(deadline.job_id)
        if deadline_of(record) != deadline or (last is not None and last.final):
            return True
        if record.lease.held:
            if now - deadline.time < SILENT_LEASES * self._settings.lease_seconds:
                return False
            record = await self._records.update(record.job_id, lambda record: _take_away_overdue(record, now))
        error = await self._last_pictures.overdue_error(record)
        await self._unheld.write(
            record.job_id,
            lambda record: job_pb2.JobEvent(
                job_id=record.job_id,
                attempt=record.lease.attempt,
                job_state=job_pb2.JOB_STATE_FAILED,
                error=error,
            ),
        )
        return False  # the next round sees whether it has


def _take_away_overdue(record: JobRecord, now: float) -> None:
    if record.lease.held and is_overdue(record, now):
        take_away(record.lease)


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await cancellable(work)
        except Exception:
            log.warning("a round of the keeper failed, and is tried again", exc_info=True)
        await asyncio.sleep(seconds)
