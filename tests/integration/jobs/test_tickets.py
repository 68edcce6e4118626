"""Which ticket comes next, and from whom it comes back, on a real nats-server."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from lease_support import LEASE_SECONDS, SHORT_LEASES
from nats.js.api import StreamInfo
from ticket_support import job_of, nothing, put, settings, taken, waited_on

from nst.internal.v1.job_record_pb2 import Ticket
from nst.v1 import job_pb2
from nst_server.config import StoreSettings
from nst_server.jobs import tickets as tickets_module
from nst_server.jobs.backbone import connect
from nst_server.jobs.pulls import Pulls
from nst_server.jobs.tickets import Flow, TicketSource


@pytest.fixture
def store_settings(lease_seconds: float) -> StoreSettings:
    return settings(lease_seconds)


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
    await put(queue, tenant, "job", lane="batch")
    message = await taken(source)
    assert Flow.of(message.subject) == Flow("batch", tenant)
    assert "." not in Flow("batch", tenant).consumer


@pytest.mark.parametrize("tenant", ["a.b", "large", "_large", "large-x", "x_large"])
async def test_large_pictures_flow_apart(queue, source, tenant):
    small, large = Flow("batch", tenant), Flow("batch", tenant, large=True)
    await put(queue, tenant, "large job", lane="batch", large=True)
    await put(queue, tenant, "small job", lane="batch")
    message = await taken(source, lambda flows: [flow for flow in flows if flow == small])
    assert (job_of(message), Flow.of(message.subject)) == ("small job", small)
    message = await taken(source)
    assert (job_of(message), Flow.of(message.subject)) == ("large job", large)
    assert small.account == large.account
    assert len({flow.consumer for flow in (small, large, Flow("batch", f"large-{tenant}"))}) == 3


def test_a_picture_is_large_by_its_longer_side():
    spec = job_pb2.JobSpec(priority=job_pb2.PRIORITY_BATCH, options={"size": 1024})
    assert Flow.of_job("a", spec) == Flow("batch", "a")
    spec.options.size = 1025
    assert Flow.of_job("a", spec) == Flow("batch", "a", large=True)


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
    await taken(source)
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
    await taken(source)
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
    other.cancel()


@SHORT_LEASES
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


async def test_a_wait_ends_though_something_happens_as_it_is_cancelled(source):
    for turns in range(8):
        waiting = asyncio.create_task(source.next(list))
        await asyncio.sleep(0.05)  # it has looked in vain
        source.nudge()
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        _, left = await asyncio.wait({waiting}, timeout=5)
        assert not left, turns


async def test_a_wait_ends_though_an_answer_comes_as_it_is_cancelled(source, monkeypatch):
    asked: list[asyncio.Future[StreamInfo]] = []

    async def ask() -> StreamInfo:
        asked.append(asyncio.get_running_loop().create_future())
        return await asyncio.wait_for(asked[-1], 30)  # as the library does

    info = await source._info()
    monkeypatch.setattr(source, "_info", ask)
    waiting = asyncio.create_task(source.next(list))
    await asyncio.sleep(0.05)
    asked[0].set_result(info)
    waiting.cancel()
    _, left = await asyncio.wait({waiting}, timeout=5)
    assert not left


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
            queued = asyncio.create_task(queue.put(f"job {number}", Flow("interactive", "a")))
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

    waiting = asyncio.create_task(source.next(rank))
    await looked.wait()
    before = source._nats.stats["out_msgs"]
    await asyncio.sleep(2.5)
    assert looks <= 4
    assert source._nats.stats["out_msgs"] - before < 2 * len(tenants) + 10
    await held[7].nak()
    assert job_of(await asyncio.wait_for(waiting, 0.9)) == job_of(held[7])


async def test_tickets_of_before_there_were_flows_are_served(nats_url, backbone, source):
    await backbone.jetstream.publish("nst.ticket.batch", Ticket(job_id="old").SerializeToString())
    message = await taken(source)
    assert (job_of(message), Flow.of(message.subject)) == ("old", Flow("batch", ""))
    await message.ack_sync(timeout=10)
