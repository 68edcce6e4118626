"""A job that kills its model server is quarantined, and the others go on."""

from pathlib import Path

import psutil
from google.rpc import code_pb2

from nst.v1 import job_pb2
from nst_calls import assert_gapless, calls, job_spec
from nst_processes import Server, running_server

# Its iterations last long enough for it to be killed in the midst of its first.
POISONED = {"size": 256, "iterations": 20, "scales": 1}
INNOCENT = {"size": 48, "iterations": 30, "scales": 1}


def kill_model_server(server: Server) -> None:
    """At once, whatever server.json says by now."""
    for child in psutil.Process(server.pid).children():
        if "model-server" in child.cmdline():
            child.kill()


def seconds(event: job_pb2.JobEvent) -> float:
    return event.time.ToNanoseconds() / 1e9


def test_a_job_that_kills_its_server_twice_is_quarantined_and_the_other_succeeds(
    tmp_path: Path, content_path: Path, style_path: Path
) -> None:
    with running_server(tmp_path / "data", NST_LEASE_SECONDS="2") as server, calls(server.address) as call:
        innocent = call.create(job_spec(content_path, style_path, **INNOCENT))
        poisoned = call.create(job_spec(content_path, style_path, **POISONED))
        events: list[job_pb2.JobEvent] = []
        killed = 0
        for event in call.watch(poisoned):
            events.append(event)
            if event.HasField("progress") and event.attempt > killed:
                killed = event.attempt
                kill_model_server(server)
        others = list(call.watch(innocent))
    assert_gapless(events)
    assert killed == 2
    error = events[-1].error
    assert (error.code, error.reason) == (code_pb2.ABORTED, "QUARANTINED")
    assert "max_lost_attempts = 2" in error.message
    assert_gapless(others)
    assert others[-1].HasField("result")
    assert others[0].attempt == 0
    second = [seconds(event) for event in events if event.attempt == 2]
    assert not [event for event in others if second[0] < seconds(event) < second[-1]], "it was to run alone"


def test_a_server_that_hangs_in_an_iteration_ends_and_is_started_again(
    tmp_path: Path, content_path: Path, style_path: Path
) -> None:
    settings = {"NST_LEASE_SECONDS": "2", "NST_STALL_SECONDS": "1", "NST_MAX_LOST_ATTEMPTS": "1"}
    with running_server(tmp_path / "data", **settings) as server, calls(server.address) as call:
        endless = call.create(job_spec(content_path, style_path, size=768, iterations=2, scales=1))
        last = list(call.watch(endless))[-1]
        assert last.error.reason == "QUARANTINED"
        (entry,) = server.logged("an iteration takes longer than stall_seconds allows, ending")
        assert entry["stall_seconds"] == 1
        tiny = call.create(job_spec(content_path, style_path, size=32, iterations=2))
        assert list(call.watch(tiny))[-1].HasField("result")
