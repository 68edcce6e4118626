"""The SDK and the command against a whole server."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from gateway_support import running_gateway
from PIL import Image

from nst_calls import SHALLOW
from nst_client import (
    AsyncClient,
    Client,
    ImageRef,
    InvalidRequest,
    JobCancelled,
    JobState,
    NotFound,
    NstError,
    PreviewEvent,
    ProgressEvent,
    ResultEvent,
    ServerBusy,
    StateEvent,
    TensorFormat,
)
from nst_processes import Server, running_nats

TINY = {"size": 32, "iterations": 3, "scales": 1, **SHALLOW}
LONG = {"size": 32, "iterations": 5000, "scales": 1, **SHALLOW}
_random = np.random.default_rng(5)
CONTENT = _random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
STYLE = _random.integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def test_a_job_from_picture_to_picture(client: Client) -> None:
    job = client.stylize(Image.fromarray(CONTENT), [(STYLE, 2.0), Image.fromarray(STYLE)], preview_interval=1, **TINY)
    events = list(job)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert {type(event) for event in events} == {StateEvent, ProgressEvent, PreviewEvent, ResultEvent}
    last = events[-1]
    assert isinstance(last, ResultEvent)
    assert last.image is not None
    assert np.array_equal(np.asarray(job.result()), np.asarray(last.image))
    assert hashlib.sha256(last.picture.data).hexdigest() == last.reference.sha256
    assert next(event.iteration for event in events if isinstance(event, PreviewEvent)) == 1
    status = job.status()
    assert (status.state, status.options["size"], [style.weight for style in status.styles]) == (
        JobState.SUCCEEDED,
        32,
        [2.0, 1.0],
    )


def test_every_form_of_a_picture_is_understood(client: Client, tmp_path: Path) -> None:
    """All of these are one picture, so the server must hold one content: same result, pixel by pixel."""
    Image.fromarray(CONTENT).save(tmp_path / "content.png")
    unit = CONTENT.astype(np.float32) / 255
    forms = [
        tmp_path / "content.png",
        (tmp_path / "content.png").read_bytes(),
        Image.fromarray(CONTENT),
        CONTENT,
        CONTENT.transpose(2, 0, 1),
        unit,
        unit.astype(np.float64),
    ]
    style = client.upload(STYLE)
    results = [np.asarray(client.stylize(form, style, **TINY).result()) for form in forms]
    for result in results[1:]:
        assert np.array_equal(result, results[0])


def test_every_form_of_a_result_is_the_same_picture(client: Client) -> None:
    job = client.stylize(CONTENT, STYLE, result_format=TensorFormat("uint8", "HWC"), **TINY)
    pixels = job.result()
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (21, 32, 3)
    assert np.array_equal(np.asarray(job.result("png")), pixels)
    for dtype, exactness in (("float32", 0.0), ("float16", 5e-4), ("bfloat16", 4e-3)):
        values = job.result(TensorFormat(dtype, "CHW"))  # type: ignore[arg-type]
        assert np.abs(values.transpose(1, 2, 0).astype(np.float32) * 255 - pixels).max() <= exactness * 255
    assert isinstance(job.result("webp"), Image.Image)


def test_a_result_and_a_reference_can_be_used_again(client: Client) -> None:
    first = client.stylize(CONTENT, STYLE, **TINY)
    again = client.stylize(first.wait().reference, client.upload(STYLE), **TINY)
    assert again.wait().width == 32


def test_steer_pause_resume_cancel(client: Client) -> None:
    job = client.stylize(CONTENT, STYLE, preview_interval=0, strength=0.5, **LONG)
    events = iter(job)
    next(event for event in events if isinstance(event, ProgressEvent))
    job.steer(strength=0.9)
    job.pause()
    next(event for event in events if event.job_state is JobState.PAUSED)
    job.resume()
    next(event for event in events if event.job_state is JobState.RUNNING)
    job.cancel()
    assert list(events)[-1].job_state is JobState.CANCELLED
    with pytest.raises(JobCancelled):
        job.result()
    client.delete_job(job.id)
    with pytest.raises(NotFound):
        job.status()


def test_refusals_name_the_field(client: Client) -> None:
    with pytest.raises(InvalidRequest) as size:
        client.stylize(CONTENT, STYLE, size=7)
    (field,) = size.value.violations
    assert field.endswith("size")
    with pytest.raises(InvalidRequest) as picture:
        client.stylize(CONTENT, [STYLE, b"no picture"])
    assert list(picture.value.violations) == ["styles[1]"]
    with pytest.raises(NstError) as reference:
        client.stylize(ImageRef("0" * 64), STYLE)
    assert "content" in str(reference.value)
    job = client.stylize(CONTENT, STYLE, **LONG)
    with pytest.raises(InvalidRequest) as steering:
        job.steer(strength=2.0)
    job.cancel()
    assert "strength" in str(steering.value)


def test_one_request_id_is_one_job(client: Client) -> None:
    content, style = client.upload(CONTENT), client.upload(STYLE)
    jobs = [client.stylize(content, style, request_id="the-same-request", **TINY) for _ in range(2)]
    assert jobs[0].id == jobs[1].id
    jobs[0].wait()
    assert jobs[0].id in [status.job_id for status in client.jobs([JobState.SUCCEEDED])]


async def test_many_at_once_in_asyncio(server: Server) -> None:
    async with AsyncClient(server.address, tenant="acme") as client:
        content, style = await client.upload(CONTENT), await client.upload(STYLE)
        jobs = [await client.stylize(content, style, seed=seed, init="noise", **TINY) for seed in (1, 2, 1)]
        results = [np.asarray(await job.result()) for job in jobs]
        assert (await jobs[0].status()).tenant == "acme"
    assert np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], results[1])


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    """Where there is no model server, and the first job waits."""
    with (
        running_nats(tmp_path) as nats_url,
        running_gateway(tmp_path, nats_url, "--max-queued-jobs", "1") as gateway,
        Client(gateway.address) as client,
    ):
        content, style = client.upload(CONTENT), client.upload(STYLE)
        client.stylize(content, style, **TINY)
        with pytest.raises(ServerBusy) as busy:
            client.stylize(content, style, **TINY)
        assert busy.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert busy.value.retry_after > 0


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with two pictures."""
    Image.fromarray(CONTENT).save(tmp_path / "content.png")
    Image.fromarray(STYLE).save(tmp_path / "style.png")
    return tmp_path


def nst(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """The command as its user runs it."""
    command = [str(Path(sys.executable).with_name("nst")), *arguments]
    inherited = {key: value for key, value in os.environ.items() if key != "NST_SERVER"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**inherited, "NST_THREADS": "1", **environment},
    )


STYLIZE = ("stylize", "content.png", "style.png", "-o", "out.png", "--size", "32", "--option", "scales=1")


def test_the_command_saves_the_result_and_previews(server: Server, files: Path) -> None:
    arguments = (*STYLIZE, "--iterations", "3", "--json", "--previews", "previews", "--preview-interval", "1")
    process = nst(files, *arguments, NST_SERVER=server.address)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    result = events[-1]
    assert result["event"] == "result"
    saved = (files / "out.png").read_bytes()
    assert (result["bytes"], result["sha256"]) == (len(saved), hashlib.sha256(saved).hexdigest())
    previews = [event for event in events if event["event"] == "preview"]
    assert previews
    for event in previews:
        picture = (files / "previews" / f"{event['iteration']:04d}.png").read_bytes()
        assert hashlib.sha256(picture).hexdigest() == event["sha256"]
    with Client(server.address) as client:
        pixels = np.asarray(client.job(result["job_id"]).result())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(saved))), pixels)


def test_ctrl_c_cancels_the_job_on_the_server(server: Server, files: Path) -> None:
    process = nst(files, *STYLIZE, "--iterations", "5000", "--json", NST_SERVER=server.address)
    assert process.stdout is not None
    job_id = ""
    for line in process.stdout:
        job_id = json.loads(line)["job_id"]
        if json.loads(line)["event"] == "progress":
            break
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["state"] == "JOB_STATE_CANCELLED"
    with Client(server.address) as client:
        assert client.job(job_id).status().state is JobState.CANCELLED


def test_without_a_server_the_command_brings_its_own(files: Path) -> None:
    (files / "data").mkdir()
    process = nst(files, *STYLIZE, "--iterations", "3", "--json", TMPDIR=str(files / "data"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["event"] == "result"
    assert Image.open(files / "out.png").size == (32, 21)
    assert not list((files / "data").iterdir())
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(files) in " ".join(p.info["cmdline"] or ())]
