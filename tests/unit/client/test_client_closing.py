"""A client that is closed, or used where it does not belong, says so, and cancels nobody."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from scripted_server import JOB_ID, Fault, ScriptedServer, abort, progress_event, result_event, result_messages

from nst_client import AsyncClient, NstError


async def follow(client: AsyncClient) -> None:
    async for _ in client.job(JOB_ID):
        pass


async def list_jobs(client: AsyncClient) -> None:
    async for _ in client.jobs():
        pass


CALLS: dict[str, Callable[[AsyncClient], Awaitable[Any]]] = {
    "UploadImage": lambda client: client.upload(b"a picture"),
    "CreateJob": lambda client: client.stylize(b"a picture", b"another"),
    "WatchJob": follow,
    "GetJob": lambda client: client.job(JOB_ID).result(),
    "ListJobs": list_jobs,
    "DeleteJob": lambda client: client.delete_job(JOB_ID),
    "GetServerInfo": lambda client: client.server_info(),
}


@pytest.mark.parametrize(("method", "call"), CALLS.items(), ids=CALLS)
async def test_closing_ends_a_call_with_an_error(
    server: ScriptedServer, method: str, call: Callable[[AsyncClient], Awaitable[Any]]
) -> None:
    server.breaks[method].append(server.stay_silent)
    client = AsyncClient(server.address)
    calling = asyncio.ensure_future(call(client))
    await asyncio.to_thread(server.wait_for, method)
    await client.close()
    with pytest.raises(NstError, match="the client is closed"):
        await calling


async def test_closing_ends_the_fetching_of_a_result(server: ScriptedServer) -> None:
    server.publish(result_event(None))
    server.result = result_messages(b"a result", chunk=4)
    server.breaks["GetResult/chunk"].append(server.stay_silent)
    client = AsyncClient(server.address)
    fetching = asyncio.ensure_future(client.job(JOB_ID).result())
    await asyncio.to_thread(server.wait_for, "GetResult")
    await client.close()
    with pytest.raises(NstError, match="the client is closed"):
        await fetching


async def test_closing_ends_a_loop_over_events(server: ScriptedServer) -> None:
    server.publish(progress_event(1))
    client = AsyncClient(server.address)
    events = client.job(JOB_ID).events()
    await anext(events)
    following = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(NstError, match="the client is closed"):
        await following


async def test_closing_ends_the_wait_for_a_server_that_is_away(server: ScriptedServer) -> None:
    busy = abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", RetryInfo(retry_delay=Duration(seconds=50)))
    server.faults.append(Fault(0, busy))
    client = AsyncClient(server.address)
    await client.server_info()
    following = asyncio.ensure_future(follow(client))
    await asyncio.to_thread(server.wait_for, "WatchJob")
    await asyncio.to_thread(server.wait_until_unwatched)
    await client.close()
    async with asyncio.timeout(30):
        with pytest.raises(NstError, match="the client is closed"):
            await following


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_closed_client_calls_nobody(
    server: ScriptedServer, call: Callable[[AsyncClient], Awaitable[Any]], used: bool
) -> None:
    async with AsyncClient(server.address) as client:
        if used:
            await client.server_info()
    before = len(server.metadata)
    with pytest.raises(NstError, match="the client is closed"):
        await call(client)
    assert len(server.metadata) == before


@pytest.mark.parametrize("closed", [True, False])
async def test_a_task_that_its_owner_cancels_is_cancelled(server: ScriptedServer, closed: bool) -> None:
    client = AsyncClient(server.address)
    following = asyncio.ensure_future(follow(client))
    await asyncio.to_thread(server.wait_for, "WatchJob")
    following.cancel()
    if closed:
        await client.close()
    with pytest.raises(asyncio.CancelledError):
        await following
    await client.close()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_second_event_loop_is_refused(server: ScriptedServer, call: Callable[[AsyncClient], Awaitable[Any]]) -> None:
    client = AsyncClient(server.address)

    async def using() -> None:
        await call(client)

    asyncio.run(client.server_info())
    with pytest.raises(NstError, match="belongs to the event loop that used it first"):
        asyncio.run(using())
    asyncio.run(client.close())
