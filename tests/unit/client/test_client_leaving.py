"""Who leaves while the server makes a job leaves no job behind that nobody has the id of."""

import asyncio
import signal
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scripted_server import JOB_ID, ScriptedServer

from nst_client import AsyncClient, Client, ImageRef
from nst_client.loop_thread import LoopThread

A, B = ImageRef("a" * 64), ImageRef("b" * 64)


async def leave_amid_making(server: ScriptedServer, release: threading.Event, request_id: str | None = None) -> None:
    """Cancels `stylize` when the server has its request, which it answers when it is released."""
    server.breaks["CreateJob"].append(lambda context: release.wait(60) and None)
    async with AsyncClient(server.address) as client:
        making = asyncio.create_task(client.stylize(A, B, request_id=request_id))
        await asyncio.to_thread(server.wait_for, "CreateJob")
        making.cancel()
        asyncio.get_running_loop().call_soon(release.set)
        with pytest.raises(asyncio.CancelledError):
            await making


async def test_a_job_that_is_being_made_is_cancelled(server: ScriptedServer) -> None:
    await leave_amid_making(server, threading.Event())
    assert [request.job_id for request in server.received["CancelJob"]] == [JOB_ID]


async def test_a_job_that_can_be_asked_for_again_is_not(server: ScriptedServer) -> None:
    await leave_amid_making(server, threading.Event(), request_id="mine")
    assert "CancelJob" not in server.received


@pytest.mark.parametrize("silent", ["CreateJob", "CancelJob"])
async def test_a_server_that_says_nothing_is_not_waited_for(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setattr("nst_client.client._ANSWER_SECONDS", 0.2)
    server.breaks[silent].append(server.stay_silent)
    async with asyncio.timeout(20):
        await leave_amid_making(server, threading.Event())
    assert ("CancelJob" in server.received) == (silent == "CancelJob")


def test_ctrl_c_in_the_blocking_client_cancels_it(server: ScriptedServer) -> None:
    release = threading.Event()
    server.breaks["CreateJob"].append(lambda context: release.wait(60) and None)

    def interrupt() -> None:
        server.wait_for("CreateJob")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        release.set()

    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.stylize(A, B)
        assert [request.job_id for request in server.received["CancelJob"]] == [JOB_ID]


@pytest.mark.parametrize("request_id", [None, "mine"])
def test_ctrl_c_as_the_job_is_there_cancels_it_too(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, request_id: str | None
) -> None:
    run = LoopThread.run

    def interrupted(loop: LoopThread, work: Coroutine[Any, Any, Any]) -> None:
        monkeypatch.setattr(LoopThread, "run", run)
        run(loop, work)
        raise KeyboardInterrupt

    with Client(server.address) as client:
        monkeypatch.setattr(LoopThread, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.stylize(A, B, request_id=request_id)
        assert len(server.received["CreateJob"]) == 1
        assert ("CancelJob" in server.received) == (request_id is None)
