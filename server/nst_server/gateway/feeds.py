"""Following jobs: one listener a job and gateway, however many watch.

A feed hears of stored events as JetStream republishes them and keeps the latest in memory. What a
watcher needs from before that, or what a lost message left out, is read from the store. Events
hold references, not pictures, so a feed is small, and a watcher that does not read costs a cursor.
"""

import asyncio
import contextlib
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from functools import cached_property

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nst.v1 import job_pb2
from nst.v1 import job_service_pb2 as pb
from nst_server.jobs.backbone import Backbone, BackboneUnavailable
from nst_server.jobs.belongings import incarnation
from nst_server.jobs.events import EventLog, Stored, stored_subject
from nst_server.jobs.records import JobNotFound

log = logging.getLogger(__name__)

TAIL_EVENTS = 256
CHECK_SECONDS = 5.0


class Draining(Exception):
    """The gateway is shutting down; the watcher should go to another."""


class Entry(Stored):
    """An event as a feed keeps it, serialised once for all who watch."""

    @cached_property
    def response(self) -> bytes:
        """The message that tells a watcher of it, without a picture."""
        return pb.WatchJobResponse(event=self.event).SerializeToString()


class _Feed:
    """The latest events of one job."""

    def __init__(self, job_id: str, events: EventLog) -> None:
        self.job_id = job_id
        self.watchers = 0
        self.tail: deque[Entry] = deque(maxlen=TAIL_EVENTS)
        self.moved = asyncio.Event()
        self.latest_preview = 0
        self.gone = False
        self.subscription: Subscription | None = None
        self._events = events
        self._catching_up = asyncio.Lock()

    async def heard(self, message: Msg) -> None:
        """Takes a republished event; a gap before it is filled from the store."""
        event = job_pb2.JobEvent.FromString(message.data)
        stored = Stored(event, int((message.headers or {})["Nats-Sequence"]))
        if event.sequence == self.end + 1:
            self._take([stored])
        elif event.sequence > self.end:
            with contextlib.suppress(BackboneUnavailable):
                await self.catch_up()

    async def check(self) -> None:
        """Looks into the store for what was not heard of: events, or that this history is gone."""
        known = self.end  # what is heard while the store answers may be later than its answer
        last = await self._events.last(self.job_id)
        if last is None or last.event.sequence < known:  # lost, and perhaps begun anew
            self.gone = True
            self.wake()
        elif last.event.sequence > self.end:
            await self.catch_up()

    async def catch_up(self) -> None:
        """Reads from the store what the tail does not have yet."""
        async with self._catching_up:
            after = self.tail[-1].stream_sequence if self.tail else 0
            new: deque[Stored] = deque(maxlen=TAIL_EVENTS)
            async for stored in self._events.read(self.job_id, after):
                new.append(stored)
            self._take(new)

    def _take(self, found: Iterable[Stored]) -> None:
        """Keeps what is new of this; watchers wake for nothing else, which is what tells silence from news."""
        new = [stored for stored in found if stored.event.sequence > self.end]
        for stored in new:
            self.tail.append(Entry(stored.event, stored.stream_sequence))
            if stored.event.HasField("preview"):
                self.latest_preview = stored.event.sequence
        if new:
            self.wake()

    def wake(self) -> None:
        """Lets every watcher look; who waits from now on waits for the next time."""
        self.moved.set()
        self.moved = asyncio.Event()

    def after(self, sequence: int) -> Entry | None:
        """The event that follows `sequence`, if the tail has it."""
        if sequence >= self.end or sequence + 1 < self.tail[0].event.sequence:
            return None
        # Not by its number: the store may have lost an event before it.
        return self.tail[bisect_right(self.tail, sequence, key=lambda entry: entry.event.sequence)]

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
        self._draining = False

    def drain(self) -> None:
        """Ends every watch with `Draining`."""
        self._draining = True
        for feed in self._feeds.values():
            feed.wake()

    async def check(self) -> None:
        """Looks into the store for every feed, for ever: what NATS did not republish is found here."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for feed in list(self._feeds.values()):
                with contextlib.suppress(BackboneUnavailable):
                    await feed.check()

    async def watch(self, job: job_pb2.Job, after_sequence: int) -> AsyncGenerator[tuple[Entry, bool] | None]:
        """The job's events after a place, to its last; None where a heartbeat is due.

        With each event comes whether it is stale: a preview that a later one has overtaken while
        this watcher, once up to date, was busy.

        Raises:
            Draining: the gateway is shutting down.
            JobNotFound: there is no such job, or it was deleted while it was watched.
        """
        async with self._feed(job) as feed, aclosing(self._entries(feed, after_sequence)) as entries:
            live = False
            async for entry in entries:
                if self._draining:
                    raise Draining
                if entry is not None:
                    yield entry, live and feed.latest_preview > entry.event.sequence
                    if entry.final:
                        return
                elif feed.ended:
                    return
                elif feed.gone:
                    raise JobNotFound(job.job_id)
                else:
                    live = True
                    if not await self._moved(feed):
                        yield None

    async def _entries(self, feed: _Feed, cursor: int) -> AsyncGenerator[Entry | None]:
        """The events after a place, without end: None where there is no more yet.

        They come from the feed's memory or, where that does not reach back so far, from the store.
        """
        position = 0
        while True:
            if (entry := feed.after(cursor)) is not None:
                cursor, position = entry.event.sequence, entry.stream_sequence
                yield entry
            elif cursor >= feed.end:
                yield None
            else:
                before = cursor
                async with aclosing(self._events.read(feed.job_id, position)) as older:
                    async for stored in older:
                        if stored.event.sequence <= cursor:
                            continue
                        cursor, position = stored.event.sequence, stored.stream_sequence
                        yield Entry(stored.event, position)
                        if feed.after(cursor) is not None:
                            break
                if cursor == before:
                    raise JobNotFound(feed.job_id)

    async def _moved(self, feed: _Feed) -> bool:
        try:
            async with asyncio.timeout(self._heartbeat_seconds):
                await feed.moved.wait()
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def _feed(self, job: job_pb2.Job) -> AsyncIterator[_Feed]:
        # Not by the job's id: a watcher that is slow holds the feed of one that was deleted and made anew.
        key = incarnation(job)
        async with self._opening:
            feed = self._feeds.get(key)
            if feed is None or feed.gone:
                feed = _Feed(job.job_id, self._events)
                feed.subscription = await self._nats.subscribe(stored_subject(job.job_id), cb=feed.heard)
                self._feeds[key] = feed
            feed.watchers += 1
        try:
            await feed.catch_up()
            if not feed.tail:
                raise JobNotFound(job.job_id)
            yield feed
        finally:
            feed.watchers -= 1
            if feed.watchers == 0:
                if self._feeds.get(key) is feed:  # one that is gone may have been replaced
                    del self._feeds[key]
                if feed.subscription is not None:
                    with contextlib.suppress(Exception):
                        await feed.subscription.unsubscribe()
