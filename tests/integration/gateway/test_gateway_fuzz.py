"""Whatever a client sends, in whatever order, it is answered soon, and never as if the server had failed."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import pytest
from gateway_support import ANSWERS, CONTENT, STYLE, refusal_of, run_tiny, running_gateway, tiny_spec, upload
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst.v1 import job_service_pb2 as jobs_pb2
from nst.v1 import style_transfer_service_pb2 as making_pb2
from nst_calls import Calls

SECONDS = 20
CASES = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

texts = st.sampled_from(["", "photo", "relu1_1", "relu5_1", "vgg16-caffe", "0" * 64]) | st.text(max_size=20)
files = st.sampled_from([CONTENT, STYLE, CONTENT[:200], bytes(768), b"nst-tensor/1 uint8 HWC 1,1,1\nx"]) | st.binary()
counts = st.integers(0, 70) | st.just(len(CONTENT)) | st.integers(0, 2**32 - 1)
VALUES = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: files,
    FieldDescriptor.TYPE_DOUBLE: st.sampled_from([0.0, 0.5, 1.0, 2.0]) | st.floats(),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 4) | st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-5, 70) | st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_STRING: texts,
    FieldDescriptor.TYPE_UINT32: counts,
    FieldDescriptor.TYPE_UINT64: counts | st.integers(0, 2**64 - 1),
}


def anything(message: type[Message]) -> st.SearchStrategy[Message]:
    """The message with any of its fields set to anything that they can carry; of a oneof, the last given counts."""
    fields = {field.name: values_of(field) for field in message.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: message(**given))


def values_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is None:
        single = VALUES[field.type]
    elif field.message_type.GetOptions().map_entry:
        return st.dictionaries(texts, VALUES[FieldDescriptor.TYPE_DOUBLE], max_size=3)
    else:
        single = st.deferred(lambda: anything(field.message_type._concrete_class))
    return st.lists(single, max_size=4) if field.is_repeated else single


def changed(part: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """A job that would run, but for what `part` sets."""
    spec = tiny_spec()
    spec.MergeFrom(part)
    return spec


def attaching(header: Message) -> job_pb2.JobSpec:
    """A job whose content is to come in chunks."""
    return changed(job_pb2.JobSpec(content={"attached": {"name": "photo", "header": header}}))


# Most of what is drawn at random is refused at its first field; the other specs come further.
specs = st.one_of(
    st.builds(tiny_spec),
    anything(options_pb2.StylizeOptions).map(lambda options: changed(job_pb2.JobSpec(options=options))),
    anything(job_pb2.PreviewOptions).map(lambda preview: changed(job_pb2.JobSpec(preview=preview))),
    anything(image_pb2.ImageFormat).map(lambda form: changed(job_pb2.JobSpec(result_format=form))),
    anything(image_pb2.ImageHeader).map(attaching),
    st.just(attaching(image_pb2.ImageHeader(size=len(CONTENT)))),
    anything(job_pb2.JobSpec),
)
starts = specs.map(lambda spec: making_pb2.StylizeRequest(start={"spec": spec}))
photo = making_pb2.StylizeRequest(chunk={"name": "photo", "data": CONTENT})
steps = st.just(photo) | anything(making_pb2.StylizeRequest)
conversations = st.tuples(starts, st.lists(steps, max_size=4)).map(lambda parts: [parts[0], *parts[1]])
header = making_pb2.UploadImageRequest(header={"size": len(CONTENT)})
whole = making_pb2.UploadImageRequest(chunk={"data": CONTENT})
first_messages = st.just(header) | anything(image_pb2.ImageHeader).map(
    lambda header: making_pb2.UploadImageRequest(header=header)
)
upload_steps = st.just(whole) | anything(making_pb2.UploadImageRequest)
uploads = st.tuples(first_messages, st.lists(upload_steps, max_size=3)).map(lambda parts: [parts[0], *parts[1]])


@pytest.fixture(scope="module")
def channel(server, tmp_path_factory) -> Iterator[grpc.Channel]:
    """To a gateway of the shared server that lets only tiny jobs in."""
    limits = {"NST_MAX_SIZE": "32", "NST_MAX_ITERATIONS": "3"}
    folder = tmp_path_factory.mktemp("limited")
    with (
        running_gateway(folder, server.status["nats"], **limits) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
    ):
        yield channel
        assert run_tiny(Calls(channel)).job_state == job_pb2.JOB_STATE_SUCCEEDED
        assert gateway.logged("call failed") == []


@pytest.fixture(scope="module")
def limited(channel) -> Calls:
    """Calls over the channel."""
    return Calls(channel)


def status_of(call: Callable[[], Any]) -> grpc.StatusCode:
    """How the call ends; a stream is read to its end."""
    try:
        answer = call()
        if isinstance(answer, Iterable):
            list(answer)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def converse(call: Calls, messages: list[Message]) -> Iterator[job_pb2.JobEvent]:
    """A stream's events; one that leaves its job paused is given up."""
    stream = call.making.Stylize(iter(messages), timeout=SECONDS)
    for response in stream:
        yield response.event
        if response.event.state.state == job_pb2.JOB_STATE_PAUSED:
            stream.cancel()
            return


@CASES
@given(messages=uploads | st.lists(anything(making_pb2.UploadImageRequest), max_size=2))
def test_uploads(limited, messages):
    assert status_of(lambda: limited.making.UploadImage(iter(messages), timeout=SECONDS)) in ANSWERS


@CASES
@given(spec=specs, request_id=st.uuids().map(str) | texts)
def test_jobs(limited, spec, request_id):
    request = making_pb2.CreateJobRequest(request_id=request_id, spec=spec)
    assert status_of(lambda: limited.making.CreateJob(request, timeout=SECONDS)) in ANSWERS


@CASES
@given(messages=conversations | st.lists(anything(making_pb2.StylizeRequest), max_size=2))
def test_stylize_streams(limited, messages):
    assert status_of(lambda: converse(limited, messages)) in ANSWERS


BY_JOB = [
    ("GetJob", jobs_pb2.GetJobRequest),
    ("ListJobs", jobs_pb2.ListJobsRequest),
    ("WatchJob", jobs_pb2.WatchJobRequest),
    ("UpdateJob", jobs_pb2.UpdateJobRequest),
    ("CancelJob", jobs_pb2.CancelJobRequest),
    ("GetResult", making_pb2.GetResultRequest),
]


@pytest.fixture(scope="module")
def ended(limited) -> str:
    """The id of a job with a result."""
    return run_tiny(limited).job_id


@CASES
@given(call=st.sampled_from(BY_JOB), data=st.data(), known=st.sampled_from([True, True, True, False]))
def test_calls_about_jobs(limited, ended, call, data, known):
    name, request = call
    message = data.draw(anything(request))
    if known and name != "ListJobs":
        message.job_id = ended
    method = getattr(limited.jobs, name, None) or getattr(limited.making, name)
    assert status_of(lambda: method(message, timeout=SECONDS)) in ANSWERS


@pytest.fixture(scope="module")
def request_bytes(limited) -> bytes:
    """A small CreateJob request that is in order."""
    spec = tiny_spec()
    spec.content.CopyFrom(image_pb2.Image(reference=upload(limited, CONTENT).reference))
    spec.styles[0].image.CopyFrom(image_pb2.Image(reference=upload(limited, STYLE).reference))
    return making_pb2.CreateJobRequest(request_id="damaged", spec=spec).SerializeToString()


@CASES
@given(damage=st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=3)), min_size=1, max_size=3))
def test_damaged_bytes(channel, request_bytes, damage):
    data = bytearray(request_bytes)
    for position, replacement in damage:
        data[position : position + 2] = replacement
    bare = channel.unary_unary("/nst.v1.StyleTransferService/CreateJob")
    assert status_of(lambda: bare(bytes(data), timeout=SECONDS)) in ANSWERS


@pytest.mark.parametrize("method", ["UploadImage", "Stylize"])
@pytest.mark.parametrize("sent_before", [0, 1])
def test_a_stream_whose_message_is_damaged(channel, method, sent_before):
    start = making_pb2.StylizeRequest(start={"spec": attaching(image_pb2.ImageHeader(size=len(CONTENT)))})
    whole = {"UploadImage": header, "Stylize": start}[method].SerializeToString()
    path = f"/nst.v1.StyleTransferService/{method}"
    bare = channel.stream_unary(path) if method == "UploadImage" else channel.stream_stream(path)
    refused = refusal_of(lambda: bare(iter([whole] * sent_before + [whole[:-1]]), timeout=SECONDS))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
