"""A job that takes its model servers down is quarantined, and the others go on."""

from datetime import datetime
from pathlib import Path

import psutil
from google.rpc import code_pb2

from nst.v1 import job_pb2
from nst_calls import assert_gapless, calls, job_spec
from nst_processes import Server, running_server

# Its first iteration takes longer than an iteration may.
POISONED = {"size": 1024, "iterations": 2, "scales": 1}
INNOCENT = {"size": 48, "iterations": 30, "scales": 1}


def kill_model_server(server: Server) -> None:
    """At once, whatever server.json says by now."""
    for child in psutil.Process(server.pid).children():
        if "model-server" in child.cmdline():
            child.kill()


def seconds(event: job_pb2.JobEvent) -> float:
    return event.time.ToNanoseconds() / 1e9


def test_a_job_that_costs_two_servers_is_quarantined_and_the_other_succeeds(
    tmp_path: Path, content_path: Path, style_path: Path
) -> None:
    """The first is killed in the midst of an iteration; the second, which is not, ends itself as it hangs in one."""
    settings = {"NST_LEASE_SECONDS": "2", "NST_STALL_SECONDS": "2"}
    with running_server(tmp_path / "data", **settings) as server, calls(server.address) as call:
        innocent = call.create(job_spec(content_path, style_path, **INNOCENT))
        poisoned = call.create(job_spec(content_path, style_path, **POISONED))
        events: list[job_pb2.JobEvent] = []
        for event in call.watch(poisoned):
            events.append(event)
            if (event.state.state, event.attempt) == (job_pb2.JOB_STATE_RUNNING, 1):
                kill_model_server(server)
        others = list(call.watch(innocent))
        *_, entry = server.logged("an iteration takes longer than stall_seconds allows, ending")
    assert entry["stall_seconds"] == 2
    assert_gapless(events)
    assert [event.attempt for event in events if event.state.state == job_pb2.JOB_STATE_RUNNING] == [1, 2]
    error = events[-1].error
    assert (error.code, error.reason) == (code_pb2.ABORTED, "QUARANTINED")
    assert "max_lost_attempts = 2" in error.message
    assert_gapless(others)
    assert others[-1].HasField("result")
    assert others[0].attempt == 0
    hung = datetime.fromisoformat(entry["time"]).timestamp()
    beside = [event for event in others if event.attempt > 1 and event.HasField("state") and seconds(event) < hung]
    assert all(event.state.state == job_pb2.JOB_STATE_QUEUED for event in beside[-1:]), "it was to run alone"
