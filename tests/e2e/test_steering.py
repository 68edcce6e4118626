"""A steered job's picture is that of an engine steered at the same iterations, whatever is killed in between."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nst.v1 import job_pb2, job_service_pb2, style_transfer_service_pb2
from nst_calls import Calls, assert_gapless, calls, inline, job_spec, metric, until
from nst_engine import Engine, Style
from nst_processes import Server, running_server
from nst_server.options import options_from_proto

# Progress is told where it must be, and no oftener: where a change is obeyed for the first time.
ENVIRONMENT = {"NST_CHECKPOINT_SECONDS": "0.2", "NST_LEASE_SECONDS": "2", "NST_PROGRESS_SECONDS": "600"}
OPTIONS = {"size": 64, "iterations": 24, "scales": 2}
CHANGES: list[dict[str, Any]] = [
    {"strength": 0.9, "style_shares": [3.0, 1.0]},
    {"style_layers": {"relu1_1": 1.0, "relu3_1": 4.0}},
    {"iterations": 30, "strength": 0.2, "content_layers": {"relu3_3": 1.0}},
]


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model server a test may kill: there will be another."""
    with running_server(tmp_path_factory.mktemp("own"), **ENVIRONMENT) as server:
        yield server


@pytest.fixture(scope="module")
def spec(content_path: Path, style_path: Path) -> job_pb2.JobSpec:
    layers = {
        "content_layers": {"weights": {"relu3_3": 1.0}},
        "style_layers": {"weights": {f"relu{block}_1": 1.0 for block in (1, 2, 3)}},
    }
    spec = job_spec(content_path, style_path, preview_interval=1, **OPTIONS, **layers)
    spec.styles.add(image=inline(content_path))
    return spec


def steer(call: Calls, job_id: str, change: dict[str, Any]) -> int:
    """Asks for a change; its number."""
    request = job_service_pb2.UpdateJobRequest(job_id=job_id, update=job_pb2.JobUpdate(**change))
    return int(call.jobs.UpdateJob(request, timeout=30).job.control_version)


def obeyed(events: list[job_pb2.JobEvent]) -> dict[int, int]:
    """By iteration the latest change that it obeyed, where that was told, without what was done in vain."""
    told: dict[int, int] = {}
    for event in events:
        if event.state.state == job_pb2.JOB_STATE_RUNNING:
            told = {
                iteration: version for iteration, version in told.items() if iteration <= event.state.from_iteration
            }
        if event.HasField("progress"):
            told[event.progress.iteration] = event.progress.control_version
    return told


def repeated(spec: job_pb2.JobSpec, told: dict[int, int], changes: dict[int, dict[str, Any]]) -> NDArray[np.uint8]:
    """What the engine makes of the same work, steered at the iterations at which the job was."""
    engine = Engine("cpu", threads=1)
    styles = [Style(pixels(style.image.encoded.data)) for style in spec.styles]
    session = engine.start(pixels(spec.content.encoded.data), styles, options_from_proto(spec.options))
    done = 0
    while not session.finished:
        version = told.get(session.iteration + 1, done)
        for number in range(done + 1, version + 1):
            session.update(**changes[number])
        done = version
        engine.step([session])
    assert done == len(changes)
    return session.image()


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def result(call: Calls, job_id: str) -> NDArray[np.uint8]:
    request = style_transfer_service_pb2.GetResultRequest(job_id=job_id)
    return pixels(b"".join(part.chunk.data for part in call.making.GetResult(request, timeout=30)))


def test_a_steered_job_makes_the_picture_of_an_engine_steered_alike(own_server, spec):
    with calls(own_server.address) as call:
        job_id = call.create(spec)
        events = call.watch(job_id)
        seen, numbered = [], {}
        for iteration, change in zip((3, 9, 15), CHANGES, strict=True):
            seen += until(events, lambda event, iteration=iteration: event.preview.iteration >= iteration)
            numbered[steer(call, job_id, change)] = change
        seen += events
        assert_gapless(seen)
        assert seen[-1].result.iterations == 30
        assert seen[-1].result.progress.control_version == 3
        assert np.array_equal(result(call, job_id), repeated(spec, obeyed(seen), numbered))


def test_a_model_server_killed_right_after_an_update_obeys_it_all_the_same(own_server, spec):
    address = own_server.status["model_metrics_address"]
    before = metric(address, "nst_checkpoint_seconds_count")
    with calls(own_server.address) as call:
        job_id = call.create(spec)
        seen = until(
            call.watch(job_id),
            lambda event: event.preview.iteration > 5 and metric(address, "nst_checkpoint_seconds_count") > before,
        )
        numbered = {steer(call, job_id, change): change for change in CHANGES}
        own_server.kill_child("model-server")
        seen += call.watch(job_id, after=seen[-1].sequence)
        assert_gapless(seen)
        assert seen[-1].attempt == 2
        starts = [event for event in seen if event.state.state == job_pb2.JOB_STATE_RUNNING]
        again = next(event.progress for event in seen if event.attempt == 2 and event.HasField("progress"))
        assert again.iteration == starts[-1].state.from_iteration + 1 > 1
        assert again.control_version == 3
        assert seen[-1].result.iterations == 30
        assert np.array_equal(result(call, job_id), repeated(spec, obeyed(seen), numbered))
