"""What a person sees on a terminal."""

import os
import pty
import re
import subprocess
import sys

from scripted_server import JOB_ID, ScriptedServer, progress_event, result_event, state_event

from nst.v1 import job_pb2


def seen_on_terminal(*arguments: str) -> tuple[int, str]:
    """The exit code, and what `nst` writes to a terminal of 80 columns, without control sequences."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from nst_client.cli import main; main()", *arguments]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = bytearray()
        try:
            while piece := os.read(ours, 65536):
                text += piece
        except OSError:  # how a terminal says that its last user has gone
            pass
        os.close(ours)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.decode())


def test_a_live_bar_with_pace_and_losses(server: ScriptedServer) -> None:
    progress = progress_event(7)
    progress.progress.undone = 2
    server.publish(state_event(job_pb2.JOB_STATE_RUNNING, "starts"), progress, result_event(b"png"))
    code, text = seen_on_terminal("jobs", "watch", JOB_ID, "--server", server.address)
    assert code == 0
    assert f"{JOB_ID} running: starts" in text
    (bar,) = {line for line in re.split(r"[\r\n]+", text) if " 7/10" in line}
    assert "2.0 it/s 0:03 left" in bar
    assert "scale 1/1 4x3 (2 undone)" in bar
    assert len(bar) <= 80
    assert "result: 4x3, 10 iterations in 1.5 s" in text


def test_no_bar_without_a_terminal(server: ScriptedServer) -> None:
    server.publish(progress_event(7), result_event(b"png"))
    command = [sys.executable, "-c", "from nst_client.cli import main; main()"]
    arguments = ["jobs", "watch", JOB_ID, "--server", server.address]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("", "result: 4x3, 10 iterations in 1.5 s\n")


def test_info_is_folded_to_the_terminal_but_for_names(server: ScriptedServer) -> None:
    name = "a-network-with-a-long-name"
    server.info.models.add(name=name, description="what it is " * 10, credit="whom to thank " * 10)
    _, text = seen_on_terminal("info", "--server", server.address)
    assert f" {name} " in text
    assert max(map(len, text.splitlines())) <= 80
