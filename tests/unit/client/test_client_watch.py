"""A history is followed without gap or repeat, whatever happens to the connection."""

import asyncio
import threading
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from scripted_server import (
    JOB_ID,
    Breaker,
    Fault,
    ScriptedServer,
    abort,
    preview_event,
    progress_event,
    result_event,
    state_event,
)
from tcp_proxy import TcpProxy

from nst.v1 import job_pb2
from nst_client import AsyncClient, ErrorEvent, NotFound, NstError, ServerUnavailable

LENGTH = 11
WHOLE = list(range(1, LENGTH + 1))


def publish_whole_history(server: ScriptedServer) -> None:
    server.publish(state_event(job_pb2.JOB_STATE_QUEUED), state_event(job_pb2.JOB_STATE_RUNNING))
    server.publish(*(progress_event(i) for i in range(1, 8)), preview_event(7, b"png"), result_event(b"png"))


async def sequences(client: AsyncClient, after: int = 0) -> list[int]:
    return [event.sequence async for event in client.job(JOB_ID).events(after)]


async def test_a_message_may_be_as_large_as_the_server_lets_it_be(server: ScriptedServer) -> None:
    server.publish(result_event(b"x" * 70 * 2**20))
    async with AsyncClient(server.address) as client:
        assert await sequences(client) == [1]


def end_early(context: grpc.ServicerContext) -> None:
    """The stream ends as if the history had."""


BREAKS = {
    "unavailable": abort(grpc.StatusCode.UNAVAILABLE, "draining"),
    "stream reset": abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    "stream removed": abort(grpc.StatusCode.UNKNOWN, "Stream removed"),
    "cancelled by the peer": abort(grpc.StatusCode.CANCELLED, "CANCELLED"),
    "end too early": end_early,
    "no room": abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", RetryInfo(retry_delay=Duration(nanos=5_000_000))
    ),
}


@pytest.mark.parametrize("how", BREAKS.values(), ids=BREAKS)
async def test_attaches_again_without_gap_or_repeat(server: ScriptedServer, how: Breaker) -> None:
    publish_whole_history(server)
    # Before the first event, between events, and before the last one; the first stream makes the server known.
    server.faults.extend([Fault(1, how), Fault(0, how), Fault(3, how), Fault(LENGTH - 5, how)])
    async with AsyncClient(server.address) as client:
        assert await sequences(client) == WHOLE
    assert server.watches == [0, 1, 1, 4, 10]


@pytest.mark.parametrize("broken_after", [0, 1, 5, LENGTH - 1])
async def test_survives_a_connection_that_is_reset(server: ScriptedServer, broken_after: int) -> None:
    publish_whole_history(server)
    with TcpProxy(server.port) as proxy:
        server.faults.append(Fault(broken_after, lambda context: proxy.reset()))
        async with AsyncClient(proxy.address) as client:
            await client.server_info()
            assert await sequences(client) == WHOLE
        assert proxy.connections == 2


async def test_survives_a_server_that_restarts() -> None:
    restart = asyncio.Event()
    seen: list[int] = []

    async def follow(address: str) -> None:
        async with AsyncClient(address) as client:
            async for event in client.job(JOB_ID):
                seen.append(event.sequence)
                if event.sequence == 4:
                    restart.set()

    with ScriptedServer() as before:
        before.publish(*(progress_event(i) for i in range(1, 5)))
        following = asyncio.create_task(follow(before.address))
        await restart.wait()
    with ScriptedServer(before.port) as after:
        publish_whole_history(after)
        await following
    assert seen == WHOLE
    assert after.watches == [4]


async def test_attaches_again_when_a_stream_falls_silent(server: ScriptedServer) -> None:
    publish_whole_history(server)
    server.faults.append(Fault(3, server.stay_silent))
    async with AsyncClient(server.address, silence_timeout=0.2) as client:
        assert await sequences(client) == WHOLE
    assert server.watches == [0, 3]


async def test_heartbeats_keep_a_quiet_stream(server: ScriptedServer) -> None:
    server.heartbeat_seconds = 0.05
    server.publish(progress_event(1))
    async with AsyncClient(server.address, silence_timeout=1.0) as client:
        events = client.job(JOB_ID).events()
        assert (await anext(events)).sequence == 1
        following = asyncio.ensure_future(anext(events))
        # Thirty heartbeats take longer than the silence that would count as a dead stream.
        await asyncio.to_thread(server.wait_for_heartbeats, 30)
        assert not following.done()
        server.publish(progress_event(2))
        assert (await following).sequence == 2
        await events.aclose()
    assert server.watches == [0]


async def test_repeated_events_are_dropped(server: ScriptedServer) -> None:
    """A server that replays from an earlier place must not show through."""
    publish_whole_history(server)
    server.ignore_after_sequence = True
    server.faults.append(Fault(5, abort(grpc.StatusCode.UNAVAILABLE, "draining")))
    async with AsyncClient(server.address) as client:
        assert await sequences(client) == WHOLE


async def test_begins_after_the_sequence_asked_for(server: ScriptedServer) -> None:
    publish_whole_history(server)
    async with AsyncClient(server.address) as client:
        assert await sequences(client, after=8) == [9, 10, 11]
        assert await sequences(client, after=LENGTH) == []


@pytest.mark.parametrize(
    ("after", "error"), [(-1, ValueError), (2**64, ValueError), ("x", TypeError), (1.5, TypeError)]
)
async def test_where_no_history_begins_is_named(server: ScriptedServer, after: Any, error: type[Exception]) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(error, match=r"^after_sequence: "):
            await sequences(client, after)
    assert not server.watches


async def test_gives_up_when_the_server_stays_away(server: ScriptedServer) -> None:
    server.publish(progress_event(1))
    async with AsyncClient(server.address, reconnect_timeout=0.5) as client:
        events = client.job(JOB_ID).events()
        await anext(events)
        server.stop()
        with pytest.raises(ServerUnavailable, match=server.address):
            await anext(events)


async def test_each_outage_has_the_whole_timeout(server: ScriptedServer) -> None:
    publish_whole_history(server)
    unavailable = abort(grpc.StatusCode.UNAVAILABLE, "draining")

    def much_later(context: grpc.ServicerContext) -> None:
        threading.Event().wait(0.6)
        unavailable(context)

    server.faults.extend([Fault(1, unavailable), Fault(2, much_later)])
    async with AsyncClient(server.address, reconnect_timeout=0.5) as client:
        assert await sequences(client) == WHOLE


async def test_an_address_where_nothing_answers_is_named_at_once() -> None:
    with ScriptedServer() as gone:
        address = gone.address
    async with AsyncClient(address, reconnect_timeout=3600) as client:
        with pytest.raises(ServerUnavailable, match=address) as caught:
            await sequences(client)
    assert caught.value.address == address


async def test_a_refusal_is_not_tried_again(server: ScriptedServer) -> None:
    server.faults.append(Fault(0, abort(grpc.StatusCode.NOT_FOUND, "no job job-1")))
    async with AsyncClient(server.address) as client:
        with pytest.raises(NotFound, match="no job job-1"):
            await sequences(client)
    assert server.watches == [0]


async def test_an_error_that_the_server_explains_is_not_a_broken_connection(server: ScriptedServer) -> None:
    server.faults.append(Fault(0, abort(grpc.StatusCode.INTERNAL, "a bug", ErrorInfo(reason="BUG"))))
    async with AsyncClient(server.address) as client:
        with pytest.raises(NstError, match="a bug") as caught:
            await sequences(client)
    assert caught.value.reason == "BUG"


async def test_leaving_early_ends_the_call(server: ScriptedServer) -> None:
    server.publish(progress_event(1))
    async with AsyncClient(server.address) as client:
        events = client.job(JOB_ID).events()
        await anext(events)
        await events.aclose()
        await asyncio.to_thread(server.wait_until_unwatched)


async def test_a_failed_job_ends_its_history(server: ScriptedServer) -> None:
    error = job_pb2.JobError(code=8, reason="OUT_OF_MEMORY", message="use a smaller size")
    server.publish(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_FAILED, error=error))
    async with AsyncClient(server.address) as client:
        (event,) = [event async for event in client.job(JOB_ID)]
    assert isinstance(event, ErrorEvent)
    assert (event.code, event.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
