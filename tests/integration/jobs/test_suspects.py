"""Jobs that may harm the server they run on: who may run them, and when no one may any more, on a real nats-server."""

import asyncio

import pytest
from google.rpc import code_pb2
from lease_support import LEASE_SECONDS, SHORT_LEASES, claimed, of_server, progress
from nats.js.errors import ServiceUnavailableError

from nst.internal.v1.job_record_pb2 import Checkpoint
from nst.v1 import job_pb2
from nst_running import running_job
from nst_server.config import StoreSettings
from nst_server.jobs import lease as lease_module
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.claims import Leases
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.suspicion import MustRunAlone
from nst_server.jobs.tickets import TicketSource
from nst_server.jobs.topology import EVENTS


async def ended(backbone: Backbone, commands: JobCommands, tickets: TicketSource, job_id: str) -> job_pb2.JobError:
    """The error that the next claim ends the job with."""
    message = await asyncio.wait_for(tickets.next(list), 10)
    assert await of_server(backbone, 99).claim(message, alone=False) is None
    return (await commands.get(job_id)).error


@SHORT_LEASES
async def test_a_job_that_kills_two_servers_is_quarantined(backbone, commands, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    for number in range(2):
        lease = await claimed(of_server(backbone, number), tickets)
        await lease.append(progress(7))
    error = await ended(backbone, commands, tickets, job.job_id)
    assert (error.code, error.reason) == (code_pb2.ABORTED, "QUARANTINED")
    assert "iteration 7" in error.message
    assert "max_lost_attempts = 2" in error.message


@SHORT_LEASES
async def test_only_a_checkpoint_beyond_the_last_loss_clears_a_job(backbone, commands, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    first = await claimed(of_server(backbone, 0), tickets)
    await first.append(progress(50))
    second = await claimed(of_server(backbone, 1), tickets)
    assert second.record.lease.furthest == 50
    await second.save_checkpoint(b"state", Checkpoint(iteration=50))
    assert second.suspected
    await ended(backbone, commands, tickets, job.job_id)
    assert (await commands.get(job.job_id)).error.reason == "QUARANTINED"


@pytest.mark.parametrize("store_settings", [StoreSettings(max_checkpoint_bytes=2**20, lease_seconds=LEASE_SECONDS)])
async def test_a_checkpoint_beyond_the_last_loss_that_finds_no_room_clears_a_job_too(backbone, commands, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    await (await claimed(of_server(backbone, 0), tickets)).append(progress(50))
    heir = await claimed(of_server(backbone, 1), tickets)
    for iteration, suspected in ((50, True), (200, False)):
        with pytest.raises(StoreFull, match="max_checkpoint_bytes"):
            await heir.save_checkpoint(b"x" * 2**21, Checkpoint(iteration=iteration))
        assert heir.suspected == suspected
    assert not heir.record.checkpoint.object


@SHORT_LEASES
@pytest.mark.parametrize(("iterations", "untold"), [(100, 10), (55, 3)])
async def test_what_may_have_been_done_untold_clears_no_job(backbone, commands, tickets, spec, iterations, untold):
    """It dies where it died before, some iterations after the last that was told of, and before the last."""
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(of_server(backbone, 0), tickets)
    told = job_pb2.Progress(iteration=50, iterations=iterations, iterations_per_second=20.0)
    await lease.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, progress=told))
    again = await claimed(of_server(backbone, 1), tickets)
    await again.save_checkpoint(b"state", Checkpoint(iteration=50 + untold))
    assert again.suspected
    await again.save_checkpoint(b"state", Checkpoint(iteration=51 + untold))
    assert not again.suspected


@SHORT_LEASES
async def test_a_job_that_gets_on_may_lose_any_number_of_servers(backbone, commands, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    for number in range(4):
        lease = await claimed(of_server(backbone, number), tickets)
        assert lease.suspected == (number > 0)
        await lease.append(progress(10 * number + 5))
        await lease.save_checkpoint(b"state", Checkpoint(iteration=10 * number + 6))
        assert not lease.suspected


@SHORT_LEASES
async def test_a_suspect_is_claimed_only_by_a_server_that_has_no_other_job(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    await claimed(of_server(backbone, 0), tickets)
    message = await asyncio.wait_for(tickets.next(list), 10)
    before = await commands.records.get(job.job_id)
    with pytest.raises(MustRunAlone):
        await leases.claim(message, alone=False)
    assert await commands.records.get(job.job_id) == before, "a server that dies now has lost nothing"
    assert await leases.claim(message) is not None


@SHORT_LEASES
async def test_a_suspect_that_is_not_to_run_needs_no_server_to_itself(backbone, commands, leases, tickets, spec):
    job = await commands.create("request", "tenant", spec, "")
    await claimed(of_server(backbone, 0), tickets)
    await commands.cancel(job.job_id)
    assert await leases.claim(await asyncio.wait_for(tickets.next(list), 10), alone=False) is None
    assert (await commands.get(job.job_id)).state == job_pb2.JOB_STATE_CANCELLED


async def test_what_ran_out_of_memory_is_alone_until_it_has_got_on(commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    lease = await claimed(leases, tickets)
    await lease.append(progress(3))
    await lease.hand_back("ran out of memory", alone=True)
    message = await asyncio.wait_for(tickets.next(list), 10)
    with pytest.raises(MustRunAlone):
        await other_leases.claim(message, alone=False)
    heir = await other_leases.claim(message)
    assert heir.record.lease.alone
    assert not heir.record.lease.lost_attempts
    await heir.save_checkpoint(b"state", Checkpoint(iteration=3))
    assert heir.suspected
    await heir.save_checkpoint(b"state", Checkpoint(iteration=4))
    assert not heir.suspected


async def test_an_abandoned_job_comes_again_at_once_and_counts_as_lost(commands, leases, other_leases, tickets, spec):
    await commands.create("request", "tenant", spec, "")
    await (await claimed(leases, tickets)).abandon()
    heir = await claimed(other_leases, tickets)
    assert heir.record.lease.lost_attempts == [1]


@SHORT_LEASES
async def test_a_server_that_turns_out_to_be_alive_takes_its_loss_back(
    backbone, commands, leases, other_leases, tickets, spec
):
    job = await commands.create("request", "tenant", spec, "")
    frozen = await claimed(leases, tickets)
    heir = await claimed(other_leases, tickets)
    assert heir.suspected
    for _ in range(2):  # once is all that it takes
        await frozen.take_back_loss()
    assert not (await heir.refresh()).lease.lost_attempts
    last = await claimed(of_server(backbone, 3), tickets)
    assert last.record.lease.lost_attempts == [2], "the heir has not been heard of again"
    await frozen.take_back_loss()
    assert (await commands.records.get(job.job_id)).lease.lost_attempts == [2]


@SHORT_LEASES
async def test_a_claim_that_is_overtaken_is_no_loss(
    backbone, commands, leases, other_leases, tickets, spec, monkeypatch
):
    job = await commands.create("request", "tenant", spec, "")
    message = await asyncio.wait_for(tickets.next(list), 10)
    starts = Leases._starts

    async def slowly(self, lease):
        monkeypatch.undo()
        await claimed(other_leases, tickets)
        return await starts(self, lease)

    monkeypatch.setattr(Leases, "_starts", slowly)
    assert await leases.claim(message) is None
    record = await commands.records.get(job.job_id)
    assert (record.lease.attempt, list(record.lease.lost_attempts)) == (2, [])


@pytest.mark.parametrize("store_settings", [StoreSettings(max_event_bytes=6000)])
async def test_a_history_without_room_is_nothing_that_a_job_has_done(backbone, commands, tickets, spec, monkeypatch):
    monkeypatch.setattr(lease_module, "NO_ROOM_SECONDS", 0.05)
    await commands.create("request", "tenant", spec, "")
    running = await claimed(of_server(backbone, 0), tickets)
    with pytest.raises(ServiceUnavailableError):
        [await backbone.jetstream.publish("nst.event.others", b"x" * 10) for _ in range(1000)]
    await running_job(running)._failed(StoreFull("max_event_bytes", "no room for its progress"))
    for number in range(3):
        with pytest.raises(StoreFull, match="max_event_bytes"):
            await claimed(of_server(backbone, number), tickets)
    await backbone.jetstream.purge_stream(EVENTS, subject="nst.event.others")
    assert not (await claimed(of_server(backbone, 3), tickets)).suspected
