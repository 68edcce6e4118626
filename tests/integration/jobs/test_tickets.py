"""Which ticket comes next, and from whom it comes back, on a real nats-server."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from nst.internal.v1.job_record_pb2 import Ticket
from nst.v1 import job_pb2
from nst_server.config import StoreSettings
from nst_server.jobs import queue as queue_module
from nst_server.jobs import tickets as tickets_module
from nst_server.jobs.backbone import connect
from nst_server.jobs.keeper import Keeper
from nst_server.jobs.pulls import Pulls
from nst_server.jobs.queue import QueueFull, TenantQueueFull, TicketQueue
from nst_server.jobs.tickets import Flow, TicketSource, make_consumer
from nst_server.jobs.topology import QueueRules, ticket_consumers

BATCH, INTERACTIVE = job_pb2.PRIORITY_BATCH, job_pb2.PRIORITY_INTERACTIVE
LEASE_SECONDS = 1.0


@pytest.fixture
def store_settings() -> StoreSettings:
    return StoreSettings(
        max_queued_jobs=60, max_tenant_jobs=40, max_tenant_running_jobs=30, lease_seconds=LEASE_SECONDS
    )


@pytest.fixture
def queue(backbone):
    return TicketQueue(backbone, patience=5)


@pytest.fixture
async def source(backbone):
    return await opened(backbone)


@pytest.fixture
async def other(nats_url, store_settings):
    """Another model server's, with a connection of its own."""
    async with connect(nats_url, "other", None) as backbone:
        yield await opened(backbone)


async def opened(backbone) -> TicketSource:
    source = TicketSource(backbone)
    await source.open()
    return source


async def put(queue: TicketQueue, tenant: str, *job_ids: str, priority=INTERACTIVE) -> None:
    for job_id in job_ids:
        await queue.put(job_id, tenant, priority)
        await queue.wake(tenant, priority)


async def taken(source: TicketSource, rank=list):
    return await asyncio.wait_for(source.next(rank), 10)


def job_of(message) -> str:
    return str(Ticket.FromString(message.data).job_id)


async def nothing(source: TicketSource, seconds: float, rank=list) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source.next(rank), seconds)


async def test_the_model_server_chooses_whose_ticket_comes_next(queue, source):
    await put(queue, "busy", *(f"busy {number}" for number in range(5)))
    await put(queue, "late", "late 0", "late 1")
    seen: list[set[Flow]] = []

    def late_first(flows: Sequence[Flow]) -> list[Flow]:
        seen.append(set(flows))
        return sorted(flows, key=lambda flow: flow.tenant != "late")

    order = [job_of(await taken(source, late_first)) for _ in range(7)]
    assert order == ["late 0", "late 1", *(f"busy {number}" for number in range(5))]
    assert seen[0] == {Flow("interactive", "busy"), Flow("interactive", "late")}


async def test_a_flow_that_is_left_out_is_not_served(queue, source):
    await put(queue, "a", "job a")
    await nothing(source, 0.3, lambda flows: [])
    await put(queue, "b", "job b")
    assert job_of(await taken(source, lambda flows: [flow for flow in flows if flow.tenant == "b"])) == "job b"
    assert job_of(await taken(source)) == "job a"


async def test_a_nudge_brings_the_next_look_forward(queue, source):
    await put(queue, "a", "job")
    allowed: list[bool] = []
    looked = asyncio.Event()

    def rank(flows: Sequence[Flow]) -> Sequence[Flow]:
        looked.set()
        return flows if allowed else []

    waiting = asyncio.create_task(source.next(rank))
    await looked.wait()
    allowed.append(True)
    source.nudge()
    done, _ = await asyncio.wait({waiting}, timeout=0.5)  # an idle look is a second apart from the last
    assert done


@pytest.mark.parametrize("tenant", ["a.b", "A_b-9", "~", "dots.and.dashes-", "100%", "Müller & Söhne"])
async def test_every_tenant_has_a_flow(queue, source, tenant):
    await put(queue, tenant, "job", priority=BATCH)
    message = await taken(source)
    assert Flow.of(message.subject) == Flow("batch", tenant)
    assert "." not in Flow("batch", tenant).consumer


async def test_idle_servers_share_out_what_comes(queue, source, other):
    waiting = [asyncio.create_task(taken(one)) for one in (source, other)]
    await put(queue, "a", "first")
    await put(queue, "b", "second")
    assert sorted(job_of(message) for message in await asyncio.gather(*waiting)) == ["first", "second"]


@pytest.fixture
async def busy(nats_url, store_settings):
    """Of a model server that has jobs."""
    async with connect(nats_url, "busy", None) as backbone:
        source = TicketSource(backbone, lambda: 3)
        await source.open()
        yield source


async def test_a_busy_server_leaves_a_ticket_to_an_idle_one_that_asked_later(backbone, queue, source, busy):
    await put(queue, "a", "leased")
    held = await taken(source)
    keeping = asyncio.create_task(keep([held]))
    waiting = asyncio.create_task(taken(busy))
    await waited_on(backbone)
    for number in range(5):
        idle = asyncio.create_task(taken(source))
        await waited_on(backbone, 2)
        await put(queue, "a", f"job {number}")
        assert job_of(await idle) == f"job {number}"
        await idle.result().ack_sync(timeout=10)
    await put(queue, "a", "last")
    assert job_of(await waiting) == "last", "nobody else asks"
    keeping.cancel()


async def test_a_busy_server_looks_later_at_a_tenants_first_ticket(queue, source, busy, monkeypatch):
    monkeypatch.setattr(tickets_module, "YIELD_SECONDS", 1.0)
    waiting = [asyncio.create_task(taken(one)) for one in (busy, source)]
    await asyncio.sleep(0.1)  # so that both have looked, in vain
    await put(queue, "a", "job")
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert done == {waiting[1]}
    waiting[0].cancel()


async def test_a_server_that_has_fewer_jobs_by_now_comes_earlier(backbone, queue, source, busy):
    jobs = [0] * 9
    changing = TicketSource(backbone, lambda: len(jobs))
    await changing.open()
    await put(queue, "a", "leased")
    keeping = asyncio.create_task(keep([await taken(source)]))
    waiting = asyncio.create_task(taken(changing))
    other = asyncio.create_task(taken(busy))
    await waited_on(backbone, 2)
    await put(queue, "a", "first")
    assert job_of(await other) == "first"
    jobs.clear()
    changing.nudge()
    for number in range(50):
        other = asyncio.create_task(taken(busy))
        await waited_on(backbone, 2)
        await put(queue, "a", f"job {number}")
        done, _ = await asyncio.wait({waiting, other}, return_when=asyncio.FIRST_COMPLETED)
        if waiting in done:
            break
    assert waiting in done
    for task in (other, keeping):
        task.cancel()


async def test_a_ticket_whose_holder_died_comes_by_itself(queue, source, other):
    await put(queue, "a", "job")
    await taken(source)
    started = time.monotonic()
    again = await taken(other)
    assert (job_of(again), again.metadata.num_delivered) == ("job", 2)
    assert time.monotonic() - started >= LEASE_SECONDS / 2  # not before the lease was over


async def test_a_ticket_that_is_handed_back_goes_to_who_waits(queue, source, other):
    await put(queue, "a", "job")
    held = await taken(source)
    waiting = asyncio.create_task(taken(other))
    await put(queue, "b", "other")  # so that the other source has looked
    first = await waiting
    waiting = asyncio.create_task(taken(other))
    await held.nak()
    assert {job_of(first), job_of(await waiting)} == {"job", "other"}


async def test_who_does_not_wait_takes_no_ticket(queue, source, other):
    await put(queue, "a", "leased")
    held = await taken(other)
    await nothing(source, 0.3)  # leaves requests open, and withdraws them
    await put(queue, "a", "new")
    assert job_of(await taken(other)) == "new"
    await held.ack()


@pytest.mark.parametrize("store_settings", [StoreSettings(lease_seconds=60)])
async def test_a_ticket_that_comes_while_the_wait_ends_is_not_lost(queue, source, other):
    """Cancelled at any point, a wait leaves every ticket to others at once, not after its lease."""
    for number in range(20):
        waiting = asyncio.create_task(source.next(list))
        await asyncio.sleep(0.002 * number)
        await put(queue, "a", f"job {number}")
        await asyncio.sleep(0.0005 * number)
        waiting.cancel()
        await asyncio.wait({waiting})
        if waiting.cancelled():
            message = await taken(other)
        else:
            message = waiting.result()
        assert job_of(message) == f"job {number}"
        await message.ack_sync(timeout=10)


@pytest.mark.parametrize("store_settings", [StoreSettings(lease_seconds=60)])
async def test_what_is_sent_while_requests_are_withdrawn_goes_back(backbone, queue, other):
    flow = Flow("interactive", "a")
    await put(queue, "a", "job 0")
    await (await taken(other)).ack_sync(timeout=10)
    lost = 0
    for number in range(1, 20):
        async with Pulls(backbone.nats, lambda: None) as pulls:
            await pulls.wait(flow.consumer)
            await backbone.nats.flush()
            # Not awaited: it is delivered while the requests are withdrawn.
            queued = asyncio.create_task(queue.put(f"job {number}", "a", INTERACTIVE))
            await asyncio.sleep(0.0005 * number)
        await queued
        try:
            message = await taken(other)
        except TimeoutError:
            lost += 1  # sent in the moment in which the server forgets the inbox: it comes when its lease runs out
            continue
        assert job_of(message) == f"job {number}"
        await message.ack_sync(timeout=10)
    assert lost <= 2


async def test_a_consumer_that_vanished_is_made_again(backbone, queue, source):
    await put(queue, "a", "first", "second")
    await backbone.jetstream.delete_consumer("NST_TICKETS", Flow("interactive", "a").consumer)
    assert [job_of(await taken(source)) for _ in range(2)] == ["first", "second"]
    (made,) = await ticket_consumers(backbone.jetstream)
    assert made.config.ack_wait == LEASE_SECONDS
    assert made.config.max_ack_pending == 30


async def test_a_consumer_that_vanishes_while_it_is_waited_on_is_made_again(backbone, queue, source, other):
    await put(queue, "a", "leased")
    held = await taken(other)
    waiting = asyncio.create_task(source.next(list))
    await waited_on(backbone)
    await held.ack_sync(timeout=10)
    await backbone.jetstream.delete_consumer("NST_TICKETS", Flow("interactive", "a").consumer)
    await put(queue, "a", "new")  # the gateway believes that the consumer is there
    assert job_of(await asyncio.wait_for(waiting, 5)) == "new"


async def waited_on(backbone, requests: int = 1) -> None:
    """Waits until so many requests are open with a consumer."""
    for _ in range(500):
        if any(consumer.num_waiting == requests for consumer in await ticket_consumers(backbone.jetstream)):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")


async def test_many_flows_that_are_leased_elsewhere_cost_an_idle_server_little(queue, source, other):
    tenants = [f"tenant-{number}" for number in range(30)]
    for tenant in tenants:
        await put(queue, tenant, tenant)
    held = [await taken(other) for _ in tenants]
    looks = 0
    looked = asyncio.Event()

    def rank(flows: Sequence[Flow]) -> Sequence[Flow]:
        nonlocal looks
        looks += 1
        looked.set()
        return flows

    keeping = asyncio.create_task(keep(held))
    waiting = asyncio.create_task(source.next(rank))
    await looked.wait()
    before = source._nats.stats["out_msgs"]
    await asyncio.sleep(2.5)
    assert looks <= 4
    assert source._nats.stats["out_msgs"] - before < 2 * len(tenants) + 10
    await held[7].nak()
    assert job_of(await asyncio.wait_for(waiting, 0.9)) == job_of(held[7])
    keeping.cancel()


async def keep(held) -> None:
    while True:
        for message in held:
            await message.in_progress()
        await asyncio.sleep(LEASE_SECONDS / 4)


async def test_a_tenant_has_a_limited_number_of_jobs(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_jobs=2)) as backbone:
        queue = TicketQueue(backbone, patience=5)
        await put(queue, "a", "1", priority=BATCH)
        await put(queue, "a", "2")
        with pytest.raises(TenantQueueFull, match="max_tenant_jobs = 2"):
            await queue.put("3", "a", BATCH)
        await put(queue, "b", "4")
        await (await taken(await opened(backbone), lambda flows: [Flow("batch", "a")])).ack_sync(timeout=10)
        await put(queue, "a", "5")


async def test_jobs_at_once_do_not_get_round_the_limit(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_jobs=3)) as backbone:
        queues = [TicketQueue(backbone, patience=5) for _ in range(12)]
        puts = (queue.put(str(number), "a", INTERACTIVE) for number, queue in enumerate(queues))
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, TenantQueueFull)]
        assert len(refused) == len(outcomes) - 3


async def test_the_whole_queue_has_a_limit_of_its_own(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_queued_jobs=2)) as backbone:
        queue = TicketQueue(backbone, patience=5)
        await put(queue, "a", "1")
        await put(queue, "b", "2")
        with pytest.raises(QueueFull):
            await queue.put("3", "c", INTERACTIVE)


async def test_a_tenant_runs_a_limited_number_of_jobs_and_the_others_wait(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_running_jobs=2, lease_seconds=30)) as backbone:
        queue, source = TicketQueue(backbone, patience=5), await opened(backbone)
        await put(queue, "a", *"12345")
        await put(queue, "b", "6")

        def a_first(flows: Sequence[Flow]) -> list[Flow]:
            return sorted(flows, key=lambda flow: flow.tenant)

        held = [await taken(source, a_first) for _ in range(3)]
        assert [job_of(message) for message in held] == ["1", "2", "6"]
        waiting = asyncio.create_task(source.next(a_first))
        await asyncio.wait({waiting}, timeout=0.3)
        assert not waiting.done()
        await held[0].ack()
        assert job_of(await asyncio.wait_for(waiting, 0.9)) == "3"


async def test_tenants_at_their_limit_do_not_hold_up_the_others(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_running_jobs=1, lease_seconds=30)) as backbone:
        queue, source = TicketQueue(backbone, patience=5), await opened(backbone)
        full = [f"full-{number}" for number in range(10)]
        for tenant in full:
            await put(queue, tenant, "running", "waits")
        held = [await taken(source, sorted) for _ in full]
        assert {job_of(message) for message in held} == {"running"}
        await nothing(source, 0.5, sorted)  # has found out by now
        asked: list[str] = []
        ask = Pulls.ask

        async def counted(pulls: Pulls, consumer: str) -> str:
            asked.append(consumer)
            return await ask(pulls, consumer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pulls, "ask", counted)
            await put(queue, "late", "job")
            assert job_of(await taken(source, lambda flows: sorted(flows, key=full_first))) == "job"
        assert len(asked) <= 2
        await held[3].ack()
        assert Flow.of((await taken(source, sorted)).subject) == Flow.of(held[3].subject)


def full_first(flow: Flow) -> bool:
    return not flow.tenant.startswith("full")


async def test_a_lower_limit_keeps_the_tickets_that_are_there(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_jobs=20)) as backbone:
        await put(TicketQueue(backbone, patience=5), "a", *map(str, range(10)))
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_jobs=4, max_queued_jobs=6)) as backbone:
        source, queue = await opened(backbone), TicketQueue(backbone, patience=5)
        with pytest.raises(QueueFull):
            await queue.put("more", "a", INTERACTIVE)
        for number in range(10):
            message = await taken(source)
            assert job_of(message) == str(number)
            await message.ack_sync(timeout=10)
        await put(queue, "a", *"1234")
        with pytest.raises(TenantQueueFull):
            await queue.put("5", "a", INTERACTIVE)


async def test_the_keeper_removes_consumers_without_tickets(backbone, store_settings, queue, source, monkeypatch):
    keepers = Keeper(backbone, store_settings), Keeper(backbone, store_settings)
    for tenant in ("gone", "leased", "waiting", "kept"):
        await put(queue, tenant, tenant)
    messages = {tenant: await taken(source, only(tenant)) for tenant in ("gone", "leased", "kept")}
    for tenant in ("gone", "kept"):
        await messages[tenant].ack_sync(timeout=10)
    monkeypatch.setattr(queue_module, "IDLE_CONSUMERS", 1)
    assert await queue.depths() == {"interactive": 1, "batch": 0}
    await tended(keepers)
    assert await tenants_with_consumers(backbone) == {"gone", "leased", "waiting", "kept"}, "nobody has the lock"
    for keeper in keepers:
        await keeper.look_at_deadlines()
    await tended(keepers[1:])
    assert "gone" in await tenants_with_consumers(backbone), "the other one has it"
    await tended(keepers)
    assert await tenants_with_consumers(backbone) == {"leased", "waiting", "kept"}
    monkeypatch.setattr(queue_module, "IDLE_CONSUMER_SECONDS", -1.0)
    await tended(keepers)
    assert await tenants_with_consumers(backbone) == {"leased", "waiting"}
    await put(queue, "gone", "again")
    assert job_of(await taken(source, only("gone"))) == "again"


async def tended(keepers: Iterable[Keeper]) -> None:
    for keeper in keepers:
        await keeper.tend_queue()


def only(tenant: str):
    return lambda flows: [flow for flow in flows if flow.tenant == tenant]


async def tenants_with_consumers(backbone) -> set[str]:
    return {Flow.of(one.config.filter_subject).tenant for one in await ticket_consumers(backbone.jetstream)}


async def test_a_consumer_that_gets_a_lease_while_it_is_looked_at_is_not_removed(backbone, queue, source, monkeypatch):
    """The list says that it is idle; by the time it would be removed it no longer is."""
    await put(queue, "a", "first")
    await (await taken(source)).ack_sync(timeout=10)
    (idle,) = await ticket_consumers(backbone.jetstream)
    await put(queue, "a", "second")
    held = await taken(source)
    await queue.remove_consumer(idle)
    (kept,) = await ticket_consumers(backbone.jetstream)
    assert (kept.num_ack_pending, bool(kept.paused)) == (1, False)
    await held.ack_sync(timeout=10)
    await put(queue, "a", "third")
    assert job_of(await taken(source)) == "third"


async def test_a_paused_consumer_gives_nothing_out_even_when_it_is_made_again(backbone, queue, source):
    """What the removal of a consumer stands on."""
    await put(queue, "a", "job")
    flow = Flow("interactive", "a")
    until = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    await backbone.jetstream.pause_consumer("NST_TICKETS", flow.consumer, until)
    await make_consumer(backbone, flow, QueueRules(LEASE_SECONDS, 40, 30))
    await nothing(source, 0.3)
    await backbone.jetstream.resume_consumer("NST_TICKETS", flow.consumer)
    assert job_of(await taken(source)) == "job"


async def test_tickets_of_before_there_were_flows_are_served(nats_url, backbone, source):
    await backbone.jetstream.publish("nst.ticket.batch", Ticket(job_id="old").SerializeToString())
    message = await taken(source)
    assert (job_of(message), Flow.of(message.subject)) == ("old", Flow("batch", ""))
    await message.ack_sync(timeout=10)
