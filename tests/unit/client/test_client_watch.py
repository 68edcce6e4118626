"""A history is followed without gap or repeat, whatever happens to the connection."""

import socket
import struct
import threading
from collections.abc import Iterator

import grpc
import pytest
from nst.v1 import job_pb2
from scripted_server import JOB_ID, Fault, ScriptedServer, preview_event, progress_event, result_event, state_event

from nst_client import AsyncClient, NotFound, NstError, ResultEvent, ServerUnavailable


def publish_whole_history(server: ScriptedServer) -> None:
    running = state_event(job_pb2.JOB_STATE_RUNNING)
    server.publish(state_event(job_pb2.JOB_STATE_QUEUED), running)
    server.publish(*(progress_event(i) for i in range(1, 8)), preview_event(7, b"png"), result_event(b"png"))


LENGTH = 11


async def sequences(client: AsyncClient, after: int = 0) -> list[int]:
    return [event.sequence async for event in client.job(JOB_ID).events(after)]


def end_early(context: grpc.ServicerContext) -> None:
    """The stream ends as if the history had."""


def abort(code: grpc.StatusCode, message: str) -> "object":
    def how(context: grpc.ServicerContext) -> None:
        context.abort(code, message)

    return how


BREAKS = {
    "unavailable": abort(grpc.StatusCode.UNAVAILABLE, "draining"),
    "stream reset": abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    "stream removed": abort(grpc.StatusCode.UNKNOWN, "Stream removed"),
    "cancelled by the peer": abort(grpc.StatusCode.CANCELLED, "CANCELLED"),
    "end too early": end_early,
}


@pytest.mark.parametrize("how", BREAKS.values(), ids=BREAKS)
async def test_reattaches_without_gap_or_repeat(server: ScriptedServer, how: object) -> None:
    publish_whole_history(server)
    server.faults.extend([Fault(1, how), Fault(0, how), Fault(3, how), Fault(LENGTH - 5, how)])
    async with AsyncClient(server.address) as client:
        assert await sequences(client) == list(range(1, LENGTH + 1))
    assert server.watches == [0, 1, 1, 4, 10]
