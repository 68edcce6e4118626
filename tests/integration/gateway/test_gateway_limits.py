"""A gateway with low limits names the one that is reached, and what it held is free again."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway_support import (
    CONTENT,
    SECONDS,
    STYLE,
    assert_invalid,
    cancel,
    encoded,
    file_of,
    pixels,
    read_status,
    refusal_of,
    running_gateway,
    tiny_spec,
    upload,
    upload_messages,
)
from google.protobuf.message import Message

from nst.v1 import image_pb2, job_pb2
from nst.v1.job_service_pb2 import WatchJobRequest
from nst.v1.style_transfer_service_pb2 import (
    CreateJobRequest,
    GetServerInfoRequest,
    StylizeRequest,
    StylizeStart,
    UploadImageRequest,
)
from nst_calls import Calls, calls

LIMITS = {
    "max_message_bytes": 256 * 1024,
    "max_image_bytes": 40_000,
    "max_image_pixels": 10_000,
    "max_upload_bytes": 80_000,
    "max_styles": 2,
    "max_size": 64,
    "max_iterations": 5000,
    # As many as the streams of one test: when those that a client broke are over, it does not learn.
    "max_open_watches": 5,
}


@pytest.fixture(scope="module")
def small(server, tmp_path_factory) -> Iterator[Calls]:
    """Calls to a second gateway of the shared server, with low limits."""
    environment = {f"NST_{name.upper()}": str(value) for name, value in LIMITS.items()}
    folder = tmp_path_factory.mktemp("small")
    with running_gateway(folder, server.status["nats"], **environment) as gateway:
        with calls(gateway.address) as call:
            yield call
        assert gateway.logged("call failed") == []


def test_the_limits_are_told(small):
    told = small.making.GetServerInfo(GetServerInfoRequest(), timeout=SECONDS)
    assert {name: told.limits[name] for name in LIMITS} == LIMITS
    assert told.defaults.size == LIMITS["max_size"]


def test_unset_options_stay_within_the_limits(small):
    job = create(small, with_content(CONTENT)).job
    cancel(small, job.job_id)
    assert job.spec.options.size == LIMITS["max_size"]


def create(call: Calls, spec: job_pb2.JobSpec):
    return call.making.CreateJob(CreateJobRequest(request_id="limits", spec=spec), timeout=SECONDS)


def with_content(data: bytes) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(content=encoded(data), styles=[{"image": encoded(STYLE)}])


def test_pictures_over_the_limits(small):
    many_bytes, many_pixels = file_of(pixels(115, 116)), file_of(pixels(101, 100) // 255)
    for data, words in ((many_bytes, "max_image_bytes = 40000"), (many_pixels, "max_image_pixels = 10000")):
        assert_invalid(
            lambda data=data: create(small, with_content(data)), CreateJobRequest, "spec.content.encoded.data", words
        )
    for data, field in ((many_bytes, "header.size"), (many_pixels, "chunk.data")):
        assert_invalid(lambda data=data: upload(small, data), UploadImageRequest, field, "max_image_")
    assert upload(small, file_of(pixels(100, 100))).width == 100


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (tiny_spec(styles=3), "spec.styles", "max_styles = 2"),
        (tiny_spec(size=65), "spec.options.size", "max_size = 64"),
        (tiny_spec(iterations=5001), "spec.options.iterations", "max_iterations = 5000"),
    ],
)
def test_jobs_over_the_limits(small, spec, field, words):
    assert_invalid(lambda: create(small, spec), CreateJobRequest, field, words)


def too_long_calls(call: Calls) -> dict[str, object]:
    content = encoded(bytes(LIMITS["max_message_bytes"]))
    start = StylizeStart(spec=job_pb2.JobSpec(content=content))
    chunk = image_pb2.ImageChunk(data=bytes(LIMITS["max_message_bytes"]))
    return {
        "CreateJob": lambda: create(call, job_pb2.JobSpec(content=content)),
        "UploadImage": lambda: call.making.UploadImage(iter([UploadImageRequest(chunk=chunk)]), timeout=SECONDS),
        "Stylize": lambda: list(call.making.Stylize(iter([StylizeRequest(start=start)]), timeout=SECONDS)),
    }


@pytest.mark.parametrize("method", ["CreateJob", "UploadImage", "Stylize"])
def test_a_message_over_the_limit(small, method):
    with pytest.raises(grpc.RpcError) as caught:
        too_long_calls(small)[method]()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMITS["max_message_bytes"]) in caught.value.details()


def announced(size: int) -> UploadImageRequest:
    return UploadImageRequest(header=image_pb2.ImageHeader(size=size))


@contextmanager
def stalled(method: Callable[..., Any], *messages: Message) -> Iterator[None]:
    """A call that has sent its messages, and is then silent until it is abandoned."""
    leave, sent = threading.Event(), threading.Event()

    def requests() -> Iterator[Message]:
        yield from messages
        sent.set()
        leave.wait(SECONDS)

    running = method(requests(), timeout=SECONDS)
    try:
        assert sent.wait(SECONDS)
        yield
    finally:
        running.cancel()
        leave.set()


def first_bytes(count: int, name: str = "") -> image_pb2.ImageChunk:
    return image_pb2.ImageChunk(name=name, data=bytes(count))


LARGEST = file_of(pixels(100, 100))


def test_what_is_only_announced_holds_no_memory(small):
    with ExitStack() as waiting:
        for _ in range(5):
            waiting.enter_context(stalled(small.making.UploadImage.future, announced(40_000)))
        assert upload(small, LARGEST).width == 100


def test_uploads_that_fill_the_memory_do_not_keep_each_other_from_ending(small):
    answers = [
        small.making.UploadImage.future(upload_messages(LARGEST, chunk=1000), timeout=SECONDS) for _ in range(20)
    ]
    assert [answer.result().width for answer in answers] == [100] * 20


def test_the_memory_of_abandoned_uploads_is_free_again(small):
    half = UploadImageRequest(chunk=first_bytes(20_000))
    for _ in range(5):
        with ExitStack() as waiting:
            for _ in range(5):
                waiting.enter_context(stalled(small.making.UploadImage.future, announced(40_000), half))
    assert upload(small, LARGEST).width == 100


def test_the_memory_of_a_broken_stylize_stream_is_free_again(small):
    start = StylizeRequest(start=attached(20_000, 19_000))
    part = StylizeRequest(chunk=first_bytes(20_000, "picture 20000"))
    for _ in range(5):
        with stalled(small.making.Stylize, start, part):
            pass
    assert upload(small, LARGEST).width == 100


def attached(*sizes: int) -> StylizeStart:
    """A start whose pictures, content first, are to come in chunks."""
    images = [image_pb2.Image(attached={"name": f"picture {size}", "header": {"size": size}}) for size in sizes]
    return StylizeStart(spec=job_pb2.JobSpec(content=images[0], styles=[{"image": image} for image in images[1:]]))


@pytest.mark.parametrize(
    ("gateway", "sizes", "limit"),
    [("small", (20_000, 20_001), 80_000), ("call", range(64 * 2**20 - 8, 64 * 2**20 + 1), 512 * 2**20)],
)
def test_attached_pictures_that_never_fit_are_not_asked_for_again(request, gateway, sizes, limit):
    messages = iter([StylizeRequest(start=attached(*sizes))])
    making = request.getfixturevalue(gateway).making
    refused = refusal_of(lambda: making.Stylize(messages, timeout=SECONDS))
    assert (refused.code, refused.metadata) == (grpc.StatusCode.RESOURCE_EXHAUSTED, {"limit": "max_upload_bytes"})
    assert f"max_upload_bytes = {limit}" in refused.message
    assert refused.retry_seconds is None


def test_watchers_have_a_limited_number_of_places(small):
    job_id = small.create(tiny_spec(iterations=LIMITS["max_iterations"]))
    watches = [
        small.jobs.WatchJob(WatchJobRequest(job_id=job_id), timeout=SECONDS) for _ in range(LIMITS["max_open_watches"])
    ]
    for watch in watches:
        next(watch)
    start = StylizeRequest(start=StylizeStart(spec=tiny_spec()))
    for call in (lambda: small.watch(job_id), lambda: small.making.Stylize(iter([start]), timeout=SECONDS)):
        refused = refusal_of(call)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.metadata == {"limit": "max_open_watches"}
        assert refused.retry_seconds > 0
    watches[0].cancel()
    cancel(small, job_id)
    for watch in watches[1:]:
        *_, last = watch
        assert last.event.job_state == job_pb2.JOB_STATE_CANCELLED
    # All places are free again, and go on being so.
    for _ in range(LIMITS["max_open_watches"] + 1):
        assert list(small.watch(job_id))[-1].job_state == job_pb2.JOB_STATE_CANCELLED


@contextmanager
def impatient(server, folder: Path) -> Iterator[Calls]:
    """Calls to a gateway that waits for an upload for 0.3 s and asks for 1 MB/s from then on."""
    environment = {"NST_UPLOAD_TIMEOUT_SECONDS": "0.3", "NST_MIN_UPLOAD_BYTES_PER_SECOND": "1000000"}
    with running_gateway(folder, server.status["nats"], **environment) as gateway, calls(gateway.address) as call:
        yield call


def test_a_silent_upload_is_dropped(server, tmp_path):
    leave = threading.Event()

    def requests() -> Iterator[UploadImageRequest]:
        yield announced(1000)
        leave.wait(SECONDS)

    with impatient(server, tmp_path) as call:
        refused = read_status(call.making.UploadImage.future(requests(), timeout=SECONDS).exception(SECONDS))
        leave.set()
    assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_SILENT")
    assert "upload_timeout_seconds = 0.3" in refused.message


@pytest.mark.parametrize("method", ["UploadImage", "Stylize"])
def test_an_upload_that_trickles_is_dropped(server, tmp_path, method):
    leave = threading.Event()

    def requests() -> Iterator[Message]:
        kind = UploadImageRequest if method == "UploadImage" else StylizeRequest
        start = attached(40_000)
        start.spec.styles.add(image=encoded(STYLE))
        yield announced(40_000) if method == "UploadImage" else StylizeRequest(start=start)
        name = "" if method == "UploadImage" else "picture 40000"
        for offset in range(40_000):
            yield kind(chunk=image_pb2.ImageChunk(name=name, offset=offset, data=b"x"))
            if leave.wait(0.05):
                return

    with impatient(server, tmp_path) as call:
        refused = refusal_of(lambda: getattr(call.making, method)(requests(), timeout=SECONDS))
        leave.set()
    assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_SLOW")
    assert "min_upload_bytes_per_second = 1000000" in refused.message


def test_an_upload_may_be_slow_where_no_pace_is_asked_for(server, tmp_path):
    def requests() -> Iterator[UploadImageRequest]:
        header, *chunks = upload_messages(CONTENT, chunk=1000)
        yield header
        for chunk in chunks:
            time.sleep(0.1)
            yield chunk

    environment = {"NST_UPLOAD_TIMEOUT_SECONDS": "0.3", "NST_MIN_UPLOAD_BYTES_PER_SECOND": "0"}
    with running_gateway(tmp_path, server.status["nats"], **environment) as gateway, calls(gateway.address) as call:
        assert call.making.UploadImage(requests(), timeout=SECONDS).width == 48


def test_a_silent_watch_beats(idle):
    watch = idle.jobs.WatchJob(WatchJobRequest(job_id=idle.create(tiny_spec())), timeout=SECONDS)
    assert next(watch).event.job_state == job_pb2.JOB_STATE_QUEUED
    assert [next(watch).WhichOneof("message") for _ in range(2)] == ["heartbeat", "heartbeat"]
    watch.cancel()
