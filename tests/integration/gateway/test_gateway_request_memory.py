"""Messages with pictures in them share a bounded memory, and those that do not fit are refused at once."""

import threading
from collections.abc import Iterator

import grpc
import pytest
from gateway_support import SECONDS, Refused, refusal_of, running_gateway, wait_until

from nst.v1 import image_pb2, job_pb2
from nst.v1.style_transfer_service_pb2 import CreateJobRequest, StylizeRequest, StylizeStart
from nst_calls import Calls, calls


def picture(side: int) -> image_pb2.Image:
    return image_pb2.Image(
        tensor={
            "dtype": image_pb2.DATA_TYPE_UINT8,
            "layout": image_pb2.LAYOUT_HWC,
            "shape": [side, side, 3],
            "data": bytes(3 * side * side),
        }
    )


LARGE = picture(200)  # 120 kB
SMALL = picture(140)  # 59 kB, which always fits: a stream is let in, whatever else is asked for just then
TO_COME = image_pb2.Image(attached={"name": "style", "header": {"size": 10}})
NO_PICTURE = image_pb2.Image(encoded={"data": b"none"})


@pytest.fixture
def crowded(server, tmp_path) -> Iterator[Calls]:
    """A gateway with little memory."""
    little = {"NST_MAX_UPLOAD_BYTES": "300000"}
    with running_gateway(tmp_path, server.status["nats"], **little) as gateway, calls(gateway.address) as call:
        yield call


def spec(content: image_pb2.Image, style: image_pb2.Image) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(content=content, styles=[job_pb2.Style(image=style)])


def refused(call: Calls, reason: str) -> Refused:
    """How a job is refused, once it is for this reason."""
    request = CreateJobRequest(request_id="request", spec=spec(LARGE, NO_PICTURE))
    refusals: list[Refused] = []

    def asked() -> bool:
        refusals.append(refusal_of(lambda: call.making.CreateJob(request, timeout=SECONDS)))
        return refusals[-1].reason == reason

    wait_until(asked, reason)
    return refusals[-1]


def test_requests_that_do_not_fit_beside_others_are_refused_until_those_have_left(crowded):
    """The others are streams, each with a picture, whose second picture never comes."""
    over = threading.Event()

    def messages() -> Iterator[StylizeRequest]:
        yield StylizeRequest(start=StylizeStart(spec=spec(SMALL, TO_COME)))
        over.wait(SECONDS)

    looked_at = refused(crowded, "NOT_AN_IMAGE")
    streams = [crowded.making.Stylize(messages(), timeout=SECONDS) for _ in range(4)]
    refusal = refused(crowded, "LIMIT_REACHED")
    assert (refusal.code, refusal.metadata) == (grpc.StatusCode.RESOURCE_EXHAUSTED, {"limit": "max_upload_bytes"})
    assert refusal.retry_seconds
    for stream in streams:
        stream.cancel()
    over.set()
    assert refused(crowded, "NOT_AN_IMAGE") == looked_at
