"""Stylize: pictures in and events out on one stream, whose breaking ends the job."""

import hashlib

import pytest
from gateway_support import (
    CONTENT,
    LONG,
    SECONDS,
    assert_invalid,
    cancel,
    live_jobs,
    pixels,
    result_bytes,
    run_tiny,
    tiny_spec,
    wait_until,
)
from stylize_stream import attached, chunk, is_running, states, stylize

from nst.v1 import image_pb2, job_pb2
from nst.v1.job_service_pb2 import ListJobsRequest
from nst.v1.style_transfer_service_pb2 import GetServerInfoRequest, StylizeRequest, StylizeStart
from nst_calls import assert_gapless, samples, until

QUEUED, RUNNING, PAUSED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_PAUSED
SUCCEEDED, CANCELLED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_CANCELLED


def test_inline_pictures_become_a_result(call):
    spec = tiny_spec()
    spec.preview.interval = 1
    with stylize(call) as stream:
        stream.start(spec, request_id="inline to result")
        stream.close()
        events = list(stream)
    assert_gapless(events)
    assert states(events) == [QUEUED, RUNNING]
    previews = [event.preview for event in events if event.HasField("preview")]
    assert [preview.iteration for preview in previews] == [1, 2]
    assert all(preview.image.encoded.data.startswith(b"\x89PNG") for preview in previews)
    last = events[-1]
    assert (last.result.iterations, last.result.width, last.result.height) == (3, 32, 21)
    assert last.result.image.encoded.data == result_bytes(call, last.job_id)
    assert call.get(last.job_id).request_id == "inline to result"
    assert list(call.watch(last.job_id)) == events


def test_the_same_start_again_follows_the_same_job(call):
    both = []
    for _ in range(2):
        with stylize(call) as stream:
            stream.start(tiny_spec(seed=77), request_id="the same start")
            both.append(list(stream))
    assert both[0] == both[1]


def test_attached_pictures_come_in_interleaved_chunks(call):
    values = pixels(40, 24, seed=9)
    paint, half = values.tobytes(), values.nbytes // 2
    tensor = {"dtype": image_pb2.DATA_TYPE_UINT8, "layout": image_pb2.LAYOUT_HWC, "shape": values.shape}
    inline, spec = tiny_spec(), tiny_spec()
    inline.styles[0].image.CopyFrom(image_pb2.Image(tensor={**tensor, "data": paint}))
    spec.content.CopyFrom(attached("photo", len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()))
    spec.styles[0].image.CopyFrom(attached("paint", len(paint), tensor=tensor))
    with stylize(call) as stream:
        stream.start(spec)
        stream.send(chunk=chunk("paint", paint[:half]))
        for offset in range(0, len(CONTENT), 1000):
            stream.send(chunk=chunk("photo", CONTENT[offset : offset + 1000], offset))
        stream.send(chunk=chunk("paint", paint[half:], half))
        *_, last = stream
    assert last.job_state == SUCCEEDED
    assert last.result.reference == run_tiny(call, inline).result.reference


def test_a_stream_that_only_stops_sending_does_not_end_the_job(call):
    with stylize(call) as stream:
        stream.start(tiny_spec(iterations=20))
        stream.close()
        *_, last = stream
    assert last.job_state == SUCCEEDED


def start_with(content: image_pb2.Image, style: image_pb2.Image | None = None) -> StylizeRequest:
    spec = tiny_spec()
    spec.content.CopyFrom(content)
    if style is not None:
        spec.styles[0].image.CopyFrom(style)
    return StylizeRequest(start=StylizeStart(spec=spec))


PHOTO = attached("photo", 100)
START = start_with(PHOTO)
FORM = {"dtype": image_pb2.DATA_TYPE_UINT8, "layout": image_pb2.LAYOUT_HWC, "shape": [5, 5, 4]}


def pieces(*parts: image_pb2.ImageChunk) -> list[StylizeRequest]:
    return [StylizeRequest(chunk=part) for part in parts]


WHOLE = pieces(chunk("photo", bytes(100)))
PROTOCOL = {
    "nothing": ([], "start", "first message"),
    "an update first": ([StylizeRequest(update={"strength": 1})], "start", "first message"),
    "a chunk first": (WHOLE, "start", "first message"),
    "a cancel first": ([StylizeRequest(cancel={})], "start", "first message"),
    "an empty message first": ([StylizeRequest()], "start", "first message"),
    "no picture": ([START], "chunk", "photo"),
    "half a picture": ([START, *pieces(chunk("photo", bytes(50)))], "chunk", "photo"),
    "two starts": ([START, START], "chunk", "whole"),
    "an early update": ([START, StylizeRequest(update={"strength": 1})], "chunk", "whole"),
    "an early cancel": ([START, StylizeRequest(cancel={})], "chunk", "whole"),
    "a chunk of an unknown picture": ([START, *pieces(chunk("photos", b"x"))], "chunk.name", "'photos'"),
    "a chunk without a name": ([START, *pieces(chunk("", b"x"))], "chunk.name", "''"),
    "a gap": ([START, *pieces(chunk("photo", b"x"), chunk("photo", b"x", 2))], "chunk.offset", "1 bytes"),
    "an overlap": ([START, *pieces(chunk("photo", b"xy"), chunk("photo", b"x", 1))], "chunk.offset", "2 bytes"),
    "an empty chunk": ([START, *pieces(chunk("photo", b""))], "chunk.data", "at least one byte"),
    "too many bytes": ([START, *pieces(chunk("photo", bytes(101)))], "chunk.data", "announced 100"),
}
SPECS = {
    "the same name twice": ([start_with(PHOTO, PHOTO)], "spec.styles[0].image.attached.name", "different"),
    "no name": ([start_with(attached("", 100))], "spec.content.attached.name", "must be set"),
    "no bytes": ([start_with(attached("photo", 0))], "spec.content.attached.header.size", "no bytes"),
    "too many bytes": ([start_with(attached("photo", 2**40))], "spec.content.attached.header.size", "max_image_bytes"),
    "no digest": ([start_with(attached("photo", 9, sha256="x"))], "spec.content.attached.header.sha256", "64"),
    "another digest": (
        [start_with(attached("photo", 100, sha256="0" * 64)), *WHOLE],
        "spec.content.attached.header.sha256",
        "send them again",
    ),
    "an unknown layout": (
        [start_with(attached("photo", 100, tensor={**FORM, "layout": 9}))],
        "spec.content.attached.header.tensor.layout",
        "CHW",
    ),
    "a tensor that is too small": (
        [start_with(attached("photo", 100, tensor=FORM)), *WHOLE],
        "spec.content.attached.header.tensor.shape",
        "min_image_side",
    ),
    "no picture": ([START, *WHOLE], "spec.content.attached", "PNG, JPEG or WebP"),
    "no styles": ([StylizeRequest(start={"spec": {"content": PHOTO}}), *WHOLE], "spec.styles", "at least one"),
}


@pytest.mark.parametrize("case", PROTOCOL)
def test_messages_out_of_order_are_refused(call, case):
    messages, field, words = PROTOCOL[case]
    assert_invalid(lambda: call.making.Stylize(iter(messages), timeout=SECONDS), StylizeRequest, field, words)


@pytest.mark.parametrize("case", SPECS)
def test_bad_attached_pictures_are_refused(call, case):
    messages, field, words = SPECS[case]
    assert_invalid(lambda: call.making.Stylize(iter(messages), timeout=SECONDS), StylizeStart, field, words)


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("spec.options.strength", tiny_spec(strength=2)),
        ("spec.styles", tiny_spec(styles=9)),
        ("spec.options.model", tiny_spec(model="resnet50")),
    ],
)
def test_a_bad_option_is_refused_before_pictures_are_sent(call, field, spec):
    spec.content.CopyFrom(PHOTO)
    with stylize(call) as stream:
        stream.start(spec)
        assert_invalid(lambda: stream, StylizeStart, field)


def test_breaking_the_stream_cancels_the_job(call):
    with stylize(call) as stream:
        stream.start(tiny_spec(**LONG))
        job_id = until(iter(stream), is_running)[-1].job_id
    *_, last = call.watch(job_id)
    assert last.job_state == CANCELLED


def test_a_detached_job_goes_on_when_the_stream_breaks(call):
    with stylize(call) as stream:
        stream.start(tiny_spec(**LONG), detach=True)
        job_id = until(iter(stream), is_running)[-1].job_id
    there = call.get(job_id).progress.iteration
    until(call.watch(job_id), lambda event: event.progress.iteration > there + 10)
    cancel(call, job_id)


def open_streams(server) -> float:
    """Stylize calls that the gateway has begun and not ended."""
    counted = samples(server.status["metrics_address"])

    def total(name: str) -> float:
        return sum(sample.value for sample in counted[name] if sample.labels["grpc_method"] == "Stylize")

    return total("grpc_server_started_total") - total("grpc_server_handled_total")


def test_a_stream_broken_at_any_moment_leaves_no_job_behind(server, call):
    for number in range(48):
        with stylize(call) as stream:
            stream.start(tiny_spec(**LONG), request_id=f"broken {number}")
            # A few milliseconds each: from before the start is read, over the making of the job, to its run.
            for _ in range(number // 3):
                call.making.GetServerInfo(GetServerInfoRequest(), timeout=SECONDS)
    wait_until(lambda: not open_streams(server), "every broken stream ended")
    wait_until(lambda: not live_jobs(call), "every job of a broken stream ended")
    ended = call.jobs.ListJobs(ListJobsRequest(page_size=500, states=[CANCELLED]), timeout=SECONDS).jobs
    assert any(job.request_id.startswith("broken ") for job in ended)
