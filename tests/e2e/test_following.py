"""Watching a job from other processes, over dropped connections, with the SDK and the command line."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst_calls import SHALLOW, assert_gapless, calls
from nst_client import Client, ProgressEvent, ResultEvent
from nst_processes import Process, Server, free_port

OPTIONS = {"size": 64, "iterations": 80, "scales": 1, "preview_interval": 5, **SHALLOW}


@pytest.fixture(scope="module")
def gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Gateway"]:
    gateway = Gateway(server, tmp_path_factory.mktemp("gateway") / "log")
    yield gateway
    gateway.process.stop()


class Gateway:
    """A gateway beside the server's own, which can be killed and come back at the same address."""

    def __init__(self, server: Server, log: Path) -> None:
        self._nats = server.status["nats"]
        self._log = log
        self.address = f"127.0.0.1:{free_port()}"
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        metrics = ("--metrics-listen", "127.0.0.1:0")
        self.process = Process(self._log, "gateway", "--nats", self._nats, "--listen", self.address, *metrics)
        self.process.wait_for_log("gateway ready", self.starts)


def nst(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nst_client", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lines(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def test_watchers_during_and_after_a_job_see_the_same_history(server, content_path, style_path):
    with Client(server.address) as client:
        job = client.stylize(content_path, style_path, **OPTIONS)
        first = next(event for event in job if isinstance(event, ProgressEvent))
        during = nst("jobs", "watch", job.id, "--server", server.address, "--json")
        here = list(job)
        after = nst("jobs", "watch", job.id, "--server", server.address, "--json", "--after", str(first.sequence))
        theirs, rest = lines(during), lines(after)
    assert [event["sequence"] for event in theirs] == list(range(1, len(here) + 1))
    assert [event["event"] for event in theirs][-1] == "result"
    assert rest == theirs[first.sequence :]
    assert [event.sequence for event in here] == [event["sequence"] for event in theirs]


def test_the_picture_is_the_same_wherever_it_is_had(server, content_path, style_path, tmp_path):
    out = tmp_path / "out.png"
    command = nst(
        *("stylize", str(content_path), str(style_path), "-o", str(out), "--server", server.address),
        *("--size", "64", "--iterations", "5", "--seed", "3", "--json", "--previews", str(tmp_path / "previews")),
    )
    events = lines(command)
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    result = events[-1]
    with Client(server.address) as client:
        job = client.job(str(result["job_id"]))
        in_event = next(event for event in job if isinstance(event, ResultEvent))
        fetched = job.result()
    pixels = np.asarray(Image.open(out))
    assert np.array_equal(pixels, np.asarray(fetched))
    assert np.array_equal(pixels, np.asarray(in_event.image))
    assert result["sha256"] == hashlib.sha256(in_event.picture.data).hexdigest()
    assert result["bytes"] == len(in_event.picture.data)
    assert list((tmp_path / "previews").iterdir())


def test_the_sdk_follows_a_job_over_a_killed_gateway(gateway, content_path, style_path):
    with Client(gateway.address) as client:
        job = client.stylize(content_path, style_path, **OPTIONS)
        seen = []
        for event in job:
            seen.append(event)
            if isinstance(event, ProgressEvent) and event.iteration > 5 and gateway.starts == 1:
                gateway.process.kill()
                gateway.start()
        with calls(gateway.address) as call:
            history = list(call.watch(job.id))
    assert_gapless(history)
    assert [event.sequence for event in seen] == [event.sequence for event in history]
    assert isinstance(seen[-1], ResultEvent)


def test_the_sdk_moves_on_from_a_gateway_that_drains(gateway, content_path, style_path):
    with Client(gateway.address) as client:
        job = client.stylize(content_path, style_path, **OPTIONS)
        numbers = []
        starts = gateway.starts
        for event in job:
            numbers.append(event.sequence)
            if isinstance(event, ProgressEvent) and event.iteration > 5 and gateway.starts == starts:
                assert gateway.process.stop() == 0
                gateway.start()
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_job_runs_on_without_anybody_watching(server, content_path, style_path):
    with Client(server.address) as client:
        job_id = client.stylize(content_path, style_path, **OPTIONS).id
    with Client(server.address) as client:
        result = client.job(job_id).result()
    assert max(result.size) == OPTIONS["size"]
