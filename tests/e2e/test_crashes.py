"""Every part is killed while a job runs, and the job ends as if nothing had happened."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import nats
import psutil
import pytest

from nst.v1 import job_pb2, job_service_pb2
from nst_calls import SHALLOW_MESSAGES, Calls, assert_gapless, calls, job_spec, metric, until
from nst_processes import Server, running_server

ENVIRONMENT = {"NST_CHECKPOINT_SECONDS": "0.2", "NST_LEASE_SECONDS": "2", "NST_MAX_RUNNING_JOBS": "1"}
OPTIONS = {"size": 64, "iterations": 90, "scales": 2, **SHALLOW_MESSAGES}


class Crashing:
    """A server that tests may hurt, and end: the next one goes on with its jobs."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._stack = ExitStack()
        self.start()

    def start(self) -> Server:
        """One on the same data, which those before have left."""
        self.close()
        self.server = self._stack.enter_context(running_server(self._data_dir, **ENVIRONMENT))
        return self.server

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashing]:
    with closing(Crashing(tmp_path_factory.mktemp("crashing"))) as crashing:
        yield crashing


@pytest.fixture
def own_server(crashing: Crashing) -> Server:
    """A server that a test may hurt; if the last one has left none that runs, another."""
    return crashing.server if crashing.server.popen.poll() is None else crashing.start()


@pytest.fixture(scope="module")
def spec(content_path: Path, style_path: Path) -> job_pb2.JobSpec:
    return job_spec(content_path, style_path, preview_interval=5, **OPTIONS)


@pytest.fixture(scope="module")
def uncut(spec: job_pb2.JobSpec, crashing: Crashing) -> str:
    """The digest of the picture that an undisturbed run makes."""
    with calls(crashing.server.address) as call:
        events = list(call.watch(call.create(spec)))
    assert_gapless(events)
    assert events[-1].attempt == 1
    return str(events[-1].result.reference.sha256)


def run_to_checkpoint(server: Server, job_id: str) -> list[job_pb2.JobEvent]:
    """Follows the job until it has a checkpoint and is in the middle of its work."""
    address = server.status["model_metrics_address"]
    before = metric(address, "nst_checkpoint_seconds_count")
    with calls(server.address) as call:
        return until(
            call.watch(job_id),
            lambda event: event.progress.iteration > 8 and metric(address, "nst_checkpoint_seconds_count") > before,
        )


def without_pictures(events: list[job_pb2.JobEvent]) -> list[job_pb2.JobEvent]:
    """A live watcher that falls behind is spared the pictures of previews; a replay has them all."""
    for event in events:
        if event.HasField("preview"):
            event.preview.ClearField("image")
    return events


def assert_resumed(events: list[job_pb2.JobEvent], uncut: str) -> None:
    assert_gapless(events)
    starts = [event for event in events if event.state.state == job_pb2.JOB_STATE_RUNNING]
    assert [event.attempt for event in starts] == [1, 2]
    assert starts[1].state.from_iteration > 0
    assert events[-1].result.reference.sha256 == uncut


def test_a_killed_model_server_costs_seconds_and_no_pixel(own_server, spec, uncut):
    with calls(own_server.address) as call:
        job_id = call.create(spec)
        seen = run_to_checkpoint(own_server, job_id)
        own_server.kill_child("model-server")
        events = seen + list(call.watch(job_id, after=seen[-1].sequence))
        assert_resumed(events, uncut)
        assert without_pictures(events) == without_pictures(list(call.watch(job_id)))


def test_a_job_whose_checkpoint_is_lost_says_that_it_starts_again(own_server, spec, uncut):
    with calls(own_server.address) as call:
        job_id = call.create(spec)
        watching = call.watch(job_id)
        events = until(watching, lambda event: event.progress.iteration > 8)
        pause(call, job_id, paused=True)
        events += until(watching, lambda event: event.job_state == job_pb2.JOB_STATE_PAUSED)
        asyncio.run(lose_checkpoints(own_server.status["nats"]))
        pause(call, job_id, paused=False)
        events += watching
    assert_gapless(events)
    starts = [event for event in events if event.state.state == job_pb2.JOB_STATE_RUNNING]
    assert [(event.attempt, event.state.from_iteration > 0) for event in starts] == [(1, False), (2, True), (2, False)]
    assert "checkpoint is lost" in starts[-1].state.reason
    assert events[-1].result.reference.sha256 == uncut


def pause(call: Calls, job_id: str, *, paused: bool) -> None:
    """Holds the job, which leaves a checkpoint, or lets it go on."""
    change = job_pb2.JobUpdate(paused=paused)
    call.jobs.UpdateJob(job_service_pb2.UpdateJobRequest(job_id=job_id, update=change), timeout=30)


async def lose_checkpoints(url: str) -> None:
    async with await nats.connect(url) as connection:
        await connection.jetstream().purge_stream("NST_CHECKPOINTS")


def test_a_killed_nats_server_comes_back_with_the_whole_history(own_server, spec, uncut):
    with calls(own_server.address) as call:
        job_id = call.create(spec)
        watching = call.watch(job_id)
        seen = until(watching, lambda event: event.progress.iteration > 8)
        own_server.kill_child("nats-server")
        events = seen + list(watching)
        assert_gapless(events)
        assert events[-1].result.reference.sha256 == uncut
        assert without_pictures(events) == without_pictures(list(call.watch(job_id)))
        assert_gapless(list(call.watch(call.create(tiny(spec)))))


def tiny(spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """The same work, in no time."""
    small = job_pb2.JobSpec()
    small.CopyFrom(spec)
    small.options.size, small.options.iterations = 32, 2
    return small


def test_a_killed_supervisor_takes_its_children_along_and_goes_on_where_it_was(crashing, own_server, spec, uncut):
    try:
        with calls(own_server.address) as call:
            job_id = call.create(spec)
        seen = run_to_checkpoint(own_server, job_id)
        children = [psutil.Process(pid) for pid in own_server.status["pids"].values()]
    finally:
        own_server.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "children outlived their supervisor"
    (own_server.data_dir / "server.json").unlink()
    with calls(crashing.start().address) as call:
        events = list(call.watch(job_id))
        assert without_pictures(events[: len(seen)]) == without_pictures(seen)
        assert_resumed(events, uncut)


def test_sigterm_hands_running_jobs_over_at_once(crashing, own_server, spec, uncut):
    with calls(own_server.address) as call:
        job_id = call.create(spec)
        seen = until(call.watch(job_id), lambda event: event.progress.iteration > 8)
        assert own_server.stop() == 0
    with calls(crashing.start().address) as call:
        events = list(call.watch(job_id))
    assert without_pictures(events[: len(seen)]) == without_pictures(seen)
    assert_resumed(events, uncut)
    handed_back = [event for event in events if event.state.state == job_pb2.JOB_STATE_QUEUED][-1]
    resumed = [event for event in events if event.state.state == job_pb2.JOB_STATE_RUNNING][-1]
    assert resumed.state.from_iteration == handed_back.latest_progress.iteration
