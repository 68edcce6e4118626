"""How many jobs wait and run, of one tenant and of all, on a real nats-server."""

import asyncio
from collections.abc import Sequence

import pytest
from ticket_support import job_of, nothing, opened, put, taken

from nst_server.config import StoreSettings
from nst_server.jobs.backbone import connect
from nst_server.jobs.pulls import Pulls
from nst_server.jobs.queue import QueueFull, TenantQueueFull, TicketQueue
from nst_server.jobs.tickets import Flow


async def test_a_tenant_has_a_limited_number_of_jobs(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_jobs=2)) as backbone:
        queue = TicketQueue(backbone, patience=5)
        await put(queue, "a", "1", lane="batch")
        await put(queue, "a", "2")
        with pytest.raises(TenantQueueFull, match="max_tenant_jobs = 2"):
            await queue.put("3", Flow("batch", "a"))
        await put(queue, "b", "4")
        await (await taken(await opened(backbone), lambda flows: [Flow("batch", "a")])).ack_sync(timeout=10)
        await put(queue, "a", "5")


async def test_jobs_at_once_do_not_get_round_the_limit(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_jobs=3)) as backbone:
        queues = [TicketQueue(backbone, patience=5) for _ in range(12)]
        puts = (queue.put(str(number), Flow("interactive", "a")) for number, queue in enumerate(queues))
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, TenantQueueFull)]
        assert len(refused) == len(outcomes) - 3


async def test_those_who_ask_at_once_are_refused_by_one_look_at_the_queue(nats_url, monkeypatch):
    async with connect(nats_url, "gateway", StoreSettings(max_tenant_jobs=1)) as backbone:
        queue, looks = TicketQueue(backbone, patience=5), []
        await put(queue, "a", "1")
        look = backbone.jetstream.stream_info

        async def counted(*arguments, **options):
            looks.append(options["subjects_filter"])
            return await look(*arguments, **options)

        monkeypatch.setattr(backbone.jetstream, "stream_info", counted)
        gone = asyncio.create_task(queue.check_room("a"))
        asked = [asyncio.create_task(queue.check_room(tenant)) for tenant in "aaab"]
        await asyncio.sleep(0)
        gone.cancel()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [*[TenantQueueFull] * 3, type(None)]
        assert len(looks) == 2
        with pytest.raises(TenantQueueFull):
            await queue.check_room("a")
        assert len(looks) == 3


async def test_the_whole_queue_has_a_limit_of_its_own(nats_url):
    async with connect(nats_url, "gateway", StoreSettings(max_queued_jobs=2)) as backbone:
        queue = TicketQueue(backbone, patience=5)
        await put(queue, "a", "1")
        await put(queue, "b", "2")
        with pytest.raises(QueueFull):
            await queue.put("3", Flow("interactive", "c"))


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
            await queue.put("more", Flow("interactive", "a"))
        for number in range(10):
            message = await taken(source)
            assert job_of(message) == str(number)
            await message.ack_sync(timeout=10)
        await put(queue, "a", *"1234")
        with pytest.raises(TenantQueueFull):
            await queue.put("5", Flow("interactive", "a"))
