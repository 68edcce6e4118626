"""Ctrl-C cancels the job in good order, a second one leaves at once, and nothing else leaves a job behind.

In real processes with real signals.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from PIL import Image
from scripted_server import (
    JOB_ID,
    ScriptedServer,
    abort,
    preview_event,
    progress_event,
    result_event,
    state_event,
)

from nst.v1 import job_pb2

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(server: ScriptedServer, tmp_path: Path) -> Iterator[Start]:
    """Starts `nst` as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, ignoring: str = "") -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", "from nst_client.cli import main; main()", *map(str, arguments)]
        if ignoring:
            command = ["sh", "-c", 'trap "" "$0"; exec "$@"', ignoring, *command]
        environment = {**os.environ, "NST_SERVER": server.address}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()  # type: ignore[union-attr]


@pytest.fixture
def stylize(start: Start, tmp_path: Path) -> Start:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    return lambda *more, **how: start("stylize", "a.png", "a.png", "-o", "out.png", "--json", *more, **how)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_job_is_cancelled(server: ScriptedServer, stylize: Start, number: int, tmp_path: Path) -> None:
    server.publish(state_event(job_pb2.JOB_STATE_RUNNING), progress_event(1))
    process = stylize()
    server.wait_for("WatchJob")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [request.job_id for request in server.received["CancelJob"]] == [JOB_ID]
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["sequence"] for event in events] == [1, 2, 3]
    assert events[-1]["state"] == "JOB_STATE_CANCELLED"
    assert "Traceback" not in err
    assert not (tmp_path / "out.png").exists()


def test_a_second_ctrl_c_leaves_at_once(server: ScriptedServer, stylize: Start) -> None:
    release = threading.Event()
    server.breaks["CancelJob"].append(lambda context: release.wait(60) and None)
    server.publish(state_event(job_pb2.JOB_STATE_RUNNING))
    process = stylize()
    server.wait_for("WatchJob")
    process.send_signal(signal.SIGINT)
    server.wait_for("CancelJob")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert not release.is_set()
    release.set()
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_job_that_could_not_be_cancelled_is_told(server: ScriptedServer, stylize: Start) -> None:
    server.breaks["CancelJob"].append(server.stay_silent)
    process = stylize()
    server.wait_for("WatchJob")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"the job may go on. `nst jobs cancel {JOB_ID}` ends it" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_is_said_twice_is_no_second_ctrl_c(server: ScriptedServer, stylize: Start, number: int) -> None:
    release = threading.Event()
    server.breaks["CancelJob"].append(lambda context: release.wait(60) and None)
    server.publish(state_event(job_pb2.JOB_STATE_RUNNING))
    process = stylize()
    server.wait_for("WatchJob")
    process.send_signal(number)
    server.wait_for("CancelJob")
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    release.set()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["state"] == "JOB_STATE_CANCELLED"


def test_what_a_script_put_in_the_background_can_be_ended(server: ScriptedServer, stylize: Start) -> None:
    process = stylize(ignoring="INT")
    server.wait_for("WatchJob")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert server.received["CancelJob"]


def test_under_nohup_the_job_outlives_the_terminal(server: ScriptedServer, stylize: Start, tmp_path: Path) -> None:
    process = stylize(ignoring="HUP")
    server.wait_for("WatchJob")
    process.send_signal(signal.SIGHUP)
    server.publish(result_event(b"a result"))
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "out.png").exists()


def test_a_job_that_is_just_being_made_is_not_left_behind(server: ScriptedServer, stylize: Start) -> None:
    release = threading.Event()
    server.breaks["CreateJob"].append(lambda context: release.wait(60) and None)
    process = stylize()
    server.wait_for("CreateJob")
    process.send_signal(signal.SIGINT)
    release.set()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert server.received["CancelJob"]


def test_ctrl_c_while_uploading_makes_no_job(server: ScriptedServer, stylize: Start) -> None:
    release = threading.Event()
    server.breaks["UploadImage"].append(lambda context: release.wait(60) and None)
    process = stylize()
    server.wait_for("UploadImage")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    release.set()
    assert process.returncode == 130
    assert "CreateJob" not in server.received


def test_a_reader_that_leaves_cancels_the_job(server: ScriptedServer, stylize: Start) -> None:
    server.publish(progress_event(1))
    process = stylize()
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    server.publish(progress_event(2))
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    assert [request.job_id for request in server.received["CancelJob"]] == [JOB_ID]


@pytest.mark.parametrize("can_cancel", [True, False])
def test_a_preview_that_cannot_be_saved_cancels_the_job(
    server: ScriptedServer, stylize: Start, tmp_path: Path, can_cancel: bool
) -> None:
    if not can_cancel:
        server.breaks["CancelJob"].append(abort(grpc.StatusCode.PERMISSION_DENIED, "not yours"))
    process = stylize("--previews", "previews")
    server.wait_for("WatchJob")
    (tmp_path / "previews").rmdir()
    server.publish(preview_event(5, b"a preview"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "Error: [Errno 2] No such file or directory: 'previews/0005.png'\n"
    assert server.received["CancelJob"]


def test_a_job_that_has_ended_is_not_cancelled(server: ScriptedServer, stylize: Start, tmp_path: Path) -> None:
    process = stylize()
    server.wait_for("WatchJob")
    (tmp_path / "out.png").mkdir()
    server.publish(result_event(b"a result"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "out.png" in err
    assert "CancelJob" not in server.received


def test_leaving_a_watch_does_not_touch_the_job(server: ScriptedServer, start: Start) -> None:
    server.publish(progress_event(1))
    process = start("jobs", "watch", JOB_ID, "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["sequence"] == 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "CancelJob" not in server.received


def test_lines_are_flushed_one_by_one(server: ScriptedServer, start: Start) -> None:
    process = start("jobs", "watch", JOB_ID, "--json")
    assert process.stdout is not None
    for sequence in (1, 2):
        server.publish(progress_event(sequence))
        assert json.loads(process.stdout.readline())["sequence"] == sequence
    server.publish(result_event(b""))
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_reader_that_leaves_is_no_traceback(server: ScriptedServer, start: Start) -> None:
    server.publish(progress_event(1))
    process = start("jobs", "watch", JOB_ID, "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    server.publish(progress_event(2), result_event(b""))
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
