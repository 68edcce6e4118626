"""Following a job's history through a gateway's feeds, on a real nats-server."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest

from nst.v1 import job_pb2
from nst.v1.job_service_pb2 import WatchJobResponse
from nst_server.gateway.feeds import Draining, Feeds
from nst_server.jobs.belongings import incarnation
from nst_server.jobs.events import EventLog, Stored
from nst_server.jobs.records import JobNotFound
from nst_server.jobs.topology import EVENTS

JOB = "job"
WATCHED = job_pb2.Job(job_id=JOB)


@pytest.fixture
def events(backbone):
    return EventLog(backbone, patience=5)


@pytest.fixture
def feeds(backbone, events):
    return Feeds(backbone, events, heartbeat_seconds=30)


async def append(events: EventLog, last: Stored | None, count: int, *, end: bool = False) -> Stored | None:
    """Appends `count` previews, and a result if the history is to end."""
    for _ in range(count):
        event = job_pb2.JobEvent(job_id=JOB, job_state=job_pb2.JOB_STATE_RUNNING, preview=job_pb2.Preview())
        last = await events.append(event, last)
    if end:
        result = job_pb2.JobEvent(job_id=JOB, job_state=job_pb2.JOB_STATE_SUCCEEDED, result=job_pb2.Result())
        last = await events.append(result, last)
    return last


async def watched(feeds: Feeds, after: int = 0) -> list[int]:
    """The numbers of the events that a watcher gets, to the last."""
    return [item[0].event.sequence async for item in feeds.watch(WATCHED, after) if item is not None]


async def test_every_watcher_gets_the_whole_history_wherever_it_comes_in(events, feeds):
    last = await append(events, None, 400)  # more than a feed keeps in memory
    early = [asyncio.create_task(watched(feeds)), asyncio.create_task(watched(feeds, after=390))]
    await asyncio.sleep(0)
    last = await append(events, last, 300)
    middle = asyncio.create_task(watched(feeds, after=100))
    await append(events, last, 10, end=True)
    late = asyncio.create_task(watched(feeds))
    assert await early[0] == list(range(1, 712))
    assert await early[1] == list(range(391, 712))
    assert await middle == list(range(101, 712))
    assert await late == list(range(1, 712))


async def test_a_long_history_is_read_in_batches(backbone, events, feeds):
    await append(events, None, 1000, end=True)
    before = backbone.nats.stats["out_msgs"]
    assert await watched(feeds) == list(range(1, 1002))
    assert backbone.nats.stats["out_msgs"] - before < 150


async def test_watchers_that_come_together_read_the_history_once(backbone, events, feeds):
    await append(events, None, 200, end=True)
    before = backbone.nats.stats["out_msgs"]
    assert await asyncio.gather(*(watched(feeds) for _ in range(20))) == [list(range(1, 202))] * 20
    assert backbone.nats.stats["out_msgs"] - before < 60


async def test_watchers_that_come_near_the_end_of_a_running_job_do_not_read_its_history_again(backbone, events, feeds):
    last = await append(events, None, 600)
    before = backbone.nats.stats["out_msgs"]
    watchers = [asyncio.create_task(watched(feeds, after=590)) for _ in range(20)]
    appended = 20
    await append(events, last, appended, end=True)  # some are heard while the feed opens
    assert await asyncio.gather(*watchers) == [list(range(591, 622))] * 20
    assert backbone.nats.stats["out_msgs"] - before < 150 + appended


async def test_where_an_event_is_lost_the_history_goes_on(backbone, events):
    last = await append(events, None, 4)
    await append(events, last, 300, end=True)
    await backbone.jetstream.delete_msg(EVENTS, last.stream_sequence)
    assert [stored.event.sequence async for stored in events.read(JOB)] == [1, 2, 3, *range(5, 306)]


async def test_where_an_event_is_lost_watchers_miss_no_other(backbone, events, feeds):
    lost = await append(events, None, 4)
    last = await append(events, lost, 6)
    await backbone.jetstream.delete_msg(EVENTS, lost.stream_sequence)
    early = asyncio.create_task(watched(feeds))
    await asyncio.sleep(0.05)
    await append(events, last, 10, end=True)
    assert await asyncio.wait_for(early, 10) == [1, 2, 3, *range(5, 22)]
    assert await watched(feeds, after=7) == list(range(8, 22))


async def test_a_reader_that_leaves_in_the_middle_leaves_nothing_behind(backbone, events):
    await append(events, None, 300)
    before = len(backbone.nats._subs)
    async with aclosing(events.read(JOB)) as reader:
        await anext(reader)
    # Cancelled wherever it waits, among others for the rest of a batch.
    for turns in range(40):
        reading = asyncio.create_task(anext(events.read(JOB)))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
    assert len(backbone.nats._subs) == before


async def test_all_watchers_are_given_the_same_bytes(events, feeds):
    await append(events, None, 1)
    async with aclosing(feeds.watch(WATCHED, 0)) as first, aclosing(feeds.watch(WATCHED, 0)) as second:
        (one, _), (other, _) = await anext(first), await anext(second)
    assert one.response is other.response
    assert WatchJobResponse.FromString(one.response).event == one.event


async def test_a_job_without_a_history_is_not_there(feeds):
    with pytest.raises(JobNotFound):
        await watched(feeds)


async def test_watchers_of_one_job_share_one_subscription(backbone, events, feeds):
    await append(events, None, 1)
    before = len(backbone.nats._subs)
    async with aclosing(feeds.watch(WATCHED, 0)) as first, aclosing(feeds.watch(WATCHED, 0)) as second:
        await anext(first)
        await anext(second)
        assert len(backbone.nats._subs) == before + 1
    assert len(backbone.nats._subs) == before


async def test_only_a_watcher_that_fell_behind_is_told_that_a_preview_is_stale(events, feeds):
    last = await append(events, None, 3)
    async with aclosing(feeds.watch(WATCHED, 0)) as slow:
        replayed = [(await anext(slow))[1] for _ in range(3)]
        waiting = asyncio.ensure_future(anext(slow))
        await asyncio.sleep(0.05)  # it is up to date now, and waits
        last = await append(events, last, 1)
        live = (await waiting)[1]
        await append(events, last, 3, end=True)
        await asyncio.wait_for(_end_heard(feeds), 10)
        late = [item[1] async for item in slow]
    assert replayed == [False, False, False]
    assert live is False
    assert late == [True, True, False, False]


async def _end_heard(feeds: Feeds) -> None:
    feed = feeds._feeds[incarnation(WATCHED)]
    while not feed.ended:
        await feed.moved.wait()


async def test_silence_is_filled_with_heartbeats(backbone, events):
    await append(events, None, 1)
    feeds = Feeds(backbone, events, heartbeat_seconds=0.05)
    async with aclosing(feeds.watch(WATCHED, 1)) as watcher:
        assert await anext(watcher) is None
        assert await anext(watcher) is None


async def test_looking_into_the_store_is_no_news(backbone, events, monkeypatch):
    """It is done more often than heartbeats are due."""
    monkeypatch.setattr("nst_server.gateway.feeds.CHECK_SECONDS", 0.01)
    await append(events, None, 1)
    feeds = Feeds(backbone, events, heartbeat_seconds=0.3)
    async with checking(feeds), aclosing(feeds.watch(WATCHED, 1)) as watcher:
        assert await asyncio.wait_for(anext(watcher), 10) is None


@asynccontextmanager
async def checking(feeds: Feeds):
    task = asyncio.create_task(feeds.check())
    try:
        yield
    finally:
        task.cancel()


async def test_a_watcher_that_waits_learns_that_the_history_is_gone(backbone, events, monkeypatch):
    """Also if the job's end has not been heard here."""
    monkeypatch.setattr("nst_server.gateway.feeds.CHECK_SECONDS", 0.01)
    last = await append(events, None, 1)
    feeds = Feeds(backbone, events, heartbeat_seconds=0.5)
    async with aclosing(feeds.watch(WATCHED, 1)) as watcher:
        assert await anext(watcher) is None
        await feeds._feeds[incarnation(WATCHED)].subscription.unsubscribe()
        last = await append(events, last, 0, end=True)
        await events.delete(JOB, last)
        async with checking(feeds):
            with pytest.raises(JobNotFound):
                await asyncio.wait_for(anext(watcher), 10)


async def test_a_history_that_was_lost_and_begins_anew_is_another(backbone, events, monkeypatch):
    monkeypatch.setattr("nst_server.gateway.feeds.CHECK_SECONDS", 0.01)
    feeds = Feeds(backbone, events, heartbeat_seconds=0.5)
    await append(events, None, 5)
    subscriptions = len(backbone.nats._subs)
    async with aclosing(feeds.watch(WATCHED, 0)) as slow, aclosing(feeds.watch(WATCHED, 5)) as watcher:
        await anext(slow)
        assert await anext(watcher) is None
        await backbone.jetstream.purge_stream(EVENTS)
        await append(events, None, 2, end=True)
        async with checking(feeds):
            with pytest.raises(JobNotFound):
                await asyncio.wait_for(anext(watcher), 10)
            assert await asyncio.wait_for(watched(feeds), 10) == [1, 2, 3]
    assert len(backbone.nats._subs) == subscriptions


async def test_a_history_that_goes_on_while_the_store_is_looked_into_is_the_same(events, feeds, monkeypatch):
    last = await append(events, None, 1)

    async def late_answer(job_id: str) -> Stored | None:
        heard = feed.moved
        await append(events, last, 1)
        await asyncio.wait_for(heard.wait(), 10)
        return last

    async with aclosing(feeds.watch(WATCHED, 0)) as watcher:
        await anext(watcher)
        feed = feeds._feeds[incarnation(WATCHED)]
        with monkeypatch.context() as patched:
            patched.setattr(events, "last", late_answer)
            await feed.check()
        assert (await anext(watcher))[0].event.sequence == 2
        waiting = asyncio.ensure_future(anext(watcher))
        await asyncio.sleep(0.05)  # it finds no more
        await append(events, await events.last(JOB), 1)
        assert (await asyncio.wait_for(waiting, 10))[0].event.sequence == 3


async def test_a_watcher_beyond_the_end_is_sent_home(events, feeds):
    await append(events, None, 2, end=True)
    assert await asyncio.wait_for(watched(feeds, after=99), 5) == []


async def test_a_history_that_is_deleted_ends_its_watches(events, feeds):
    await append(events, None, 600)  # more than a batch before what the feed keeps
    async with aclosing(feeds.watch(WATCHED, 0)) as watcher:
        await anext(watcher)
        await events.delete(JOB, await events.last(JOB))
        with pytest.raises(JobNotFound):
            async for _ in watcher:
                pass


async def test_draining_sends_waiting_watchers_away(events, feeds):
    await append(events, None, 1)
    async with aclosing(feeds.watch(WATCHED, 1)) as watcher:
        waiting = asyncio.ensure_future(anext(watcher))
        await asyncio.sleep(0.05)
        feeds.drain()
        with pytest.raises(Draining):
            await waiting


async def test_a_slow_watcher_does_not_hold_on_to_the_history_of_a_job_that_is_made_anew(commands, feeds, spec):
    job = await commands.create("request", "tenant", spec, "")
    async with aclosing(feeds.watch(job, 0)) as slow:
        await anext(slow)
        await commands.cancel(job.job_id)
        await commands.delete(job.job_id)
        again = await commands.create("request", "tenant", spec, "")
        async with aclosing(feeds.watch(again, 0)) as fresh:
            entry, _ = await asyncio.wait_for(anext(fresh), 10)
            assert entry.event == (await commands.events.last(job.job_id)).event
