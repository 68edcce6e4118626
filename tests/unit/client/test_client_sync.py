"""The blocking client: the same answers, from any thread, and nothing left behind."""

import asyncio
import gc
import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from nst_command import png
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from scripted_server import JOB_ID, ScriptedServer, abort, progress_event, result_event, result_messages, state_event

from nst.v1 import job_pb2
from nst_client import AsyncClient, AsyncJob, Client, ImageRef, Job, JobState, NstError
from nst_client.loop_thread import LoopThread

A, B = ImageRef("a" * 64), ImageRef("b" * 64)


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nst-client"]


@pytest.mark.parametrize(("blocking", "core"), [(Client, AsyncClient), (Job, AsyncJob)])
def test_the_blocking_classes_offer_all_that_the_others_do(blocking: type, core: type) -> None:
    offered = {name for name, _ in inspect.getmembers(core) if not name.startswith("_")}
    assert offered == {name for name, _ in inspect.getmembers(blocking) if not name.startswith("_")}


def test_a_stream_that_the_garbage_collector_closes_amid_a_call_hangs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs wherever objects are made, and so while a call is handed over."""

    async def numbers() -> AsyncGenerator[int, None]:
        yield 1
        yield 2

    async def answer() -> int:
        return 3

    loop = LoopThread(nothing, "a test")
    left = [loop.iterate(numbers())]
    assert next(left[0]) == 1
    submit = asyncio.run_coroutine_threadsafe

    def amid(*arguments: Any) -> Any:
        while left:
            left.pop().close()  # type: ignore[attr-defined]
        return submit(*arguments)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", amid)
    answers: list[int] = []
    calling = threading.Thread(target=lambda: answers.append(loop.run(answer())), daemon=True)
    calling.start()
    calling.join(10)
    assert answers == [3]
    loop.close()


async def nothing() -> None:
    pass


def test_a_job_from_start_to_result(server: ScriptedServer) -> None:
    with Client(server.address) as client:
        job = client.stylize(b"content", [B, (A, 2)], size=64)
        assert isinstance(job, Job)
        server.publish(state_event(job_pb2.JOB_STATE_RUNNING), progress_event(1), result_event(b"png"))
        assert [event.sequence for event in job] == [1, 2, 3]
        assert [event.sequence for event in job.events(2)] == [3]
        assert job.result_picture().data == b"png"
        assert job.status().state is JobState.SUCCEEDED
        assert client.job(JOB_ID).id == job.id == JOB_ID
        assert client.server_info().version == "scripted"
        client.delete_job(job.id)
    assert server.received["CreateJob"][0].spec.options.size == 64


@pytest.mark.parametrize("wait", [Job.wait, Job.result, Job.result_picture])
def test_waiting_may_have_an_end_and_the_job_goes_on(server: ScriptedServer, wait: Callable[..., Any]) -> None:
    server.publish(progress_event(1))
    server.result = result_messages(png(1))
    with Client(server.address) as client:
        job = client.job(JOB_ID)
        with pytest.raises(TimeoutError, match=f"no result of job {JOB_ID} in 0.1 s: it goes on"):
            wait(job, timeout=0.1)
        server.wait_until_unwatched()
        server.publish(result_event(None))
        assert wait(job, timeout=60)
    assert "CancelJob" not in server.received


def test_errors_come_through(server: ScriptedServer) -> None:
    server.breaks["CreateJob"].append(abort(grpc.StatusCode.FAILED_PRECONDITION, "not now"))
    with Client(server.address) as client:
        with pytest.raises(NstError, match="not now"):
            client.stylize(A, B)
        with pytest.raises(ValueError, match="sise"):
            client.stylize(A, B, sise=3)


def test_many_threads_share_a_client(server: ScriptedServer) -> None:
    server.publish(*(progress_event(i) for i in range(1, 20)), result_event(b"png"))
    with Client(server.address) as client, ThreadPoolExecutor(8) as pool:
        jobs = pool.map(client.job, [JOB_ID] * 8)
        followed = list(pool.map(lambda job: [event.sequence for event in job], jobs))
    assert followed == [list(range(1, 21))] * 8


def test_closing_ends_the_thread_and_once_is_enough(server: ScriptedServer) -> None:
    client = Client(server.address)
    client.server_info()
    assert len(client_threads()) == 1
    client.close()
    client.close()
    assert not client_threads()
    with pytest.raises(NstError, match="the client is closed"):
        client.server_info()


def test_a_client_that_is_dropped_is_closed_with_a_warning(server: ScriptedServer) -> None:
    client = Client(server.address)
    client.server_info()
    (thread,), transport = client_threads(), client._core._transport
    with pytest.warns(ResourceWarning, match=f"the client of {server.address} was dropped without close()"):
        del client
    thread.join(30)
    assert not thread.is_alive()
    assert transport._closed.is_set()


def test_a_job_keeps_its_connection(server: ScriptedServer) -> None:
    job = Client(server.address).job(JOB_ID)
    gc.collect()
    assert job.status().job_id == JOB_ID
    with pytest.warns(ResourceWarning):
        del job


def test_a_client_that_was_closed_is_dropped_in_silence(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)
    with Client(server.address) as client:
        client.server_info()
    del client
    assert (ignored, recwarn.list) == ([], [])


def test_clients_that_come_and_go_leave_no_threads(server: ScriptedServer) -> None:
    counts = []
    for _ in range(4):
        with Client(server.address) as client:
            client.server_info()
        counts.append(threading.active_count())  # gRPC keeps one thread of its own for all of them
    assert len(set(counts)) == 1


def test_leaving_a_loop_early_ends_the_call(server: ScriptedServer) -> None:
    server.publish(progress_event(1))
    with Client(server.address) as client:
        for _ in client.job(JOB_ID):
            break
        gc.collect()
        server.wait_until_unwatched()


def test_ctrl_c_while_waiting_ends_the_call(server: ScriptedServer) -> None:
    def interrupt() -> None:
        server.wait_for("WatchJob")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        events = client.job(JOB_ID).events()
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(events)
        server.wait_until_unwatched()
        assert client.server_info().version == "scripted"


def test_closing_ends_a_loop_in_another_thread(server: ScriptedServer) -> None:
    server.publish(progress_event(1))
    started = threading.Event()
    client = Client(server.address)

    def follow() -> None:
        for _ in client.job(JOB_ID):
            started.set()

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        assert started.wait(30)
        client.close()
        with pytest.raises(NstError, match="the client is closed"):
            following.result(30)


def test_a_generator_that_outlives_its_client_is_harmless(server: ScriptedServer) -> None:
    server.publish(progress_event(1))
    with Client(server.address) as client:
        events = client.job(JOB_ID).events()
        next(events)
    events.close()  # type: ignore[attr-defined]


def test_no_tasks_are_left_on_the_loop(server: ScriptedServer) -> None:
    server.publish(progress_event(1), result_event(b"png"))
    with Client(server.address) as client:
        for _ in client.job(JOB_ID):
            break
        list(client.job(JOB_ID))
        server.wait_until_unwatched()

        async def others() -> list[str]:
            await asyncio.sleep(0)
            return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        assert client._loop.run(others()) == []


def test_the_callers_trace_goes_along(server: ScriptedServer) -> None:
    with Client(server.address) as client, TracerProvider().get_tracer("t").start_as_current_span("caller") as span:
        client.server_info()
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    assert str(server.metadata[0]["traceparent"]).split("-")[1] == trace_id


async def test_works_beside_a_running_loop(server: ScriptedServer) -> None:
    with Client(server.address) as client:
        assert client.server_info().version == "scripted"


def test_in_a_forked_process_it_says_so(server: ScriptedServer) -> None:
    program = f"""
import os
from nst_client import Client, NstError
with Client({server.address!r}) as client:
    client.server_info()
    pid = os.fork()
    if not pid:
        for call in (client.server_info, lambda: next(client.job({JOB_ID!r}).events())):
            try:
                call()
            except NstError as error:
                print(error, flush=True)
        client.close()
        os._exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    first, second, code = ended.stdout.splitlines()
    assert first == second
    assert "this process was forked" in first
    assert code == "3"


def test_a_program_that_forgets_to_close_still_ends(server: ScriptedServer) -> None:
    program = f"from nst_client import Client; print(Client({server.address!r}).server_info().version)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("scripted\n", "")


def test_the_client_imports_neither_torch_nor_the_server() -> None:
    program = (
        "import sys, nst_client, nst_client.cli; "
        "print(sorted({'torch', 'nats', 'nst_engine', 'nst_server', 'opentelemetry'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "[]\n"
