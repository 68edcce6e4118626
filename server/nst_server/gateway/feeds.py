"""Following jobs: one listener a job and gateway, however many watch.

A feed hears of stored events as JetStream republishes them and keeps the latest in memory. What a
watcher needs from before that, or what a lost message left out, is read from the store. Events
hold references, not pictures, so a feed is small, and a watcher that does not read costs a cursor.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nst.v1 import job_pb2
from nst_server.jobs.backbone import Backbone, BackboneUnavailable
from nst_server.jobs.events import EventLog, Stored, stored_subject
from nst_server.jobs.records import JobNotFound

log = logging.getLogger(__name__)

TAIL_EVENTS = 256
CHECK_SECONDS = 5.0


class Draining(Exception):
    """The gateway is shutting down; the watcher should go to another."""


class _Feed:
    """The latest events of one job."""

    def __init__(self, job_id: str, events: EventLog) -> None:
        self.job_id = job_id
        self.watchers = 0
        self.tail: deque[Stored] = deque(maxlen=TAIL_EVENTS)
        self.moved = asyncio.Condition()
        self.latest_preview = 0
        self.subscription: Subscription | None = None
        self._events = events

    async def heard(self, message: Msg) -> None:
        """Takes a republished event; a gap before it is filled from the store."""
        event = job_pb2.JobEvent.FromString(message.data)
        stored = Stored(event, int((message.headers or {})["Nats-Sequence"]))
        if not self.tail or event.sequence == self.tail[-1].event.sequence + 1:
            await self._take([stored])
        elif event.sequence > self.tail[-1].event.sequence:
            with contextlib.suppress(BackboneUnavailable):
                await self.catch_up()

    async def catch_up(self) -> None:
        """Reads from the store what the tail does not have yet."""
        after = self.tail[-1].stream_sequence if self.tail else 0
        await self._take([stored async for stored in self._events.read(self.job_id, after)])

    async def _take(self, new: list[Stored]) -> None:
        async with self.moved:
            for stored in new:
                if self.tail and stored.event.sequence <= self.tail[-1].event.sequence:
                    continue
                self.tail.append(stored)
                if stored.event.HasField("preview"):
                    self.latest_preview = stored.event.sequence
            self.moved.notify_all()

    def after(self, sequence: int) -> Stored | None:
        """The event that follows `sequence`, if the tail has it."""
        if not self.tail:
            return None
        index = sequence + 1 - self.tail[0].event.sequence
        return self.tail[index] if 0 <= index < len(self.tail) else None

    @property
    def end(self) -> int:
        """The sequence number of the latest event."""
        return self.tail[-1].event.sequence if self.tail else 0

    @property
    def ended(self) -> bool:
        """True when the job's last event is known."""
        return bool(self.tail) and self.tail[-1].final


class Feeds:
    """The feeds that somebody watches now."""

    def __init__(self, backbone: Backbone, events: EventLog, heartbeat_seconds: float) -> None:
        self._nats = backbone.nats
        self._events = events
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds: dict[str, _Feed] = {}
        self._opening = asyncio.Lock()
        self._draining = asyncio.Event()

    async def drain(self) -> None:
        """Ends every watch with `Draining`."""
        self._draining.set()
        for feed in list(self._feeds.values()):
            async with feed.moved:
                feed.moved.notify_all()

    async def check(self) -> None:
        """Looks into the store for every feed, for ever: what NATS did not republish is found here."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for feed in list(self._feeds.values()):
                with contextlib.suppress(BackboneUnavailable):
                    await feed.catch_up()

    async def watch(self, job_id: str, after_sequence: int) -> AsyncGenerator[tuple[job_pb2.JobEvent, bool] | None]:
        """The job's events after a place, to its last; None where a heartbeat is due.

        With each event comes whether it is stale: a preview that a later one has overtaken while
        this watcher, once up to date, was busy.

        Raises:
            Draining: the gateway is shutting down.
        """
        async with self._feed(job_id) as feed:
            cursor, position, live = after_sequence, 0, False
            while True:
                if self._draining.is_set():
                    raise Draining
                stored = feed.after(cursor)
                if stored is None and cursor < feed.end:
                    stored = await self._from_store(job_id, cursor, position)
                if stored is None:
                    if feed.ended:
                        return
                    live = True
                    if not await self._moved(feed, cursor):
                        yield None
                    continue
                cursor, position = stored.event.sequence, stored.stream_sequence
                yield stored.event, live and feed.latest_preview > cursor
                if stored.final:
                    return

    async def _from_store(self, job_id: str, cursor: int, position: int) -> Stored:
        async for stored in self._events.read(job_id, position):
            if stored.event.sequence > cursor:
                return stored
        raise JobNotFound(job_id)  # deleted while it was watched

    async def _moved(self, feed: _Feed, cursor: int) -> bool:
        try:
            async with asyncio.timeout(self._heartbeat_seconds), feed.moved:
                await feed.moved.wait_for(lambda: feed.end > cursor or self._draining.is_set())
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def _feed(self, job_id: str) -> AsyncIterator[_Feed]:
        async with self._opening:
            feed = self._feeds.get(job_id)
            if feed is None:
                feed = _Feed(job_id, self._events)
                feed.subscription = await self._nats.subscribe(stored_subject(job_id), cb=feed.heard)
                self._feeds[job_id] = feed
            feed.watchers += 1
        try:
            await feed.catch_up()
            yield feed
        finally:
            feed.watchers -= 1
            if feed.watchers == 0 and self._feeds.get(job_id) is feed:
                del self._feeds[job_id]
                if feed.subscription is not None:
                    with contextlib.suppress(Exception):
                        await feed.subscription.unsubscribe()
