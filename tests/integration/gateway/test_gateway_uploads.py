"""UploadImage: chunks make a picture or a clear refusal."""

import hashlib
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from gateway_support import CONTENT, SECONDS, assert_invalid, encoded, pixels, run_tiny, tiny_spec, upload

from nst.v1 import image_pb2, job_pb2
from nst.v1.style_transfer_service_pb2 import UploadImageRequest

HALF = len(CONTENT) // 2


def header(**fields) -> UploadImageRequest:
    return UploadImageRequest(header=image_pb2.ImageHeader(**{"size": len(CONTENT), **fields}))


def chunk(first: int, end: int, offset: int | None = None) -> UploadImageRequest:
    part = image_pb2.ImageChunk(offset=first if offset is None else offset, data=CONTENT[first:end])
    return UploadImageRequest(chunk=part)


def tensor_header(**fields) -> UploadImageRequest:
    form = {"dtype": image_pb2.DATA_TYPE_UINT8, "layout": image_pb2.LAYOUT_HWC, "shape": [32, 48, 3], **fields}
    return header(size=32 * 48 * 3, tensor=image_pb2.TensorHeader(**form))


WHOLE = chunk(0, len(CONTENT))
BROKEN = {
    "nothing at all": ([], "header", "first"),
    "no header": ([WHOLE], "header", "first"),
    "an empty message first": ([UploadImageRequest()], "header", "first"),
    "two headers": ([header(), header(), WHOLE], "header", "once"),
    "a header between chunks": ([header(), chunk(0, HALF), header()], "header", "once"),
    "an empty message later": ([header(), UploadImageRequest(), WHOLE], "header", "only chunks"),
    "second half first": ([header(), chunk(HALF, 2 * HALF), chunk(0, HALF)], "chunk.offset", "0 bytes"),
    "a gap": ([header(), chunk(0, 10), chunk(11, HALF)], "chunk.offset", "10 bytes"),
    "an overlap": ([header(), chunk(0, 10), chunk(9, HALF)], "chunk.offset", "10 bytes"),
    "a chunk without bytes": ([header(), chunk(0, 0), WHOLE], "chunk.data", "at least one byte"),
    "more than announced": ([header(size=HALF), WHOLE], "chunk.data", f"announced {HALF}"),
    "one byte more": ([header(), WHOLE, chunk(0, 1, len(CONTENT))], "chunk.data", f"announced {len(CONTENT)}"),
    "less than announced": ([header(), chunk(0, HALF)], "chunk", f"{HALF} of {len(CONTENT)}"),
    "no chunk": ([header()], "chunk", f"0 of {len(CONTENT)}"),
    "another digest": ([header(sha256="0" * 64), WHOLE], "header.sha256", "send them again"),
    "no digest": ([header(sha256="ABC"), WHOLE], "header.sha256", "64 lower-case"),
    "no bytes": ([header(size=0)], "header.size", "no bytes"),
    "too many bytes": ([header(size=2**40)], "header.size", "max_image_bytes = 67108864"),
    "size beyond any": ([header(size=2**64 - 1)], "header.size", "max_image_bytes"),
    "no dtype": ([tensor_header(dtype=0)], "header.tensor.dtype", "uint8"),
    "an unknown dtype": ([tensor_header(dtype=99)], "header.tensor.dtype", "uint8"),
    "no layout": ([tensor_header(layout=0)], "header.tensor.layout", "HWC"),
    "two dimensions": ([tensor_header(shape=[32, 48])], "header.tensor.shape", "three"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_upload_is_refused(call, case):
    messages, field, words = BROKEN[case]
    assert_invalid(lambda: call.making.UploadImage(iter(messages), timeout=SECONDS), UploadImageRequest, field, words)


@pytest.mark.parametrize(
    ("shape", "field", "words"),
    [([48, 48, 2], "header.tensor.shape", "channels"), ([32, 47, 3], "chunk.data", "4512")],
)
def test_tensor_bytes_must_fit_their_header(call, shape, field, words):
    data = bytes(32 * 48 * 3)
    messages = [
        tensor_header(shape=shape),
        UploadImageRequest(chunk=image_pb2.ImageChunk(data=data)),
    ]
    assert_invalid(lambda: call.making.UploadImage(iter(messages), timeout=SECONDS), UploadImageRequest, field, words)


@pytest.mark.parametrize("size", [13, 512 * 1024])
def test_chunks_of_any_size_make_the_same_picture(call, size):
    digest = hashlib.sha256(CONTENT).hexdigest()
    answer = upload(call, CONTENT, chunk=size, sha256=digest)
    assert (answer.reference.sha256, answer.width, answer.height) == (digest, 48, 32)


def test_an_uploaded_tensor_is_known_by_its_header_and_data(call):
    values = (pixels(20, 24, seed=5) / np.float32(255)).astype("<f4")
    form = image_pb2.TensorHeader(dtype=image_pb2.DATA_TYPE_FLOAT32, layout=image_pb2.LAYOUT_HWC, shape=values.shape)
    answer = upload(call, values.tobytes(), tensor=form)
    stored = b"nst-tensor/1 float32 HWC 24,20,3\n" + values.tobytes()
    assert answer.reference.sha256 == hashlib.sha256(stored).hexdigest()
    assert (answer.width, answer.height) == (20, 24)


def test_an_uploaded_picture_is_the_one_that_a_job_uses(call):
    by_reference, inline = tiny_spec(), tiny_spec()
    by_reference.content.CopyFrom(image_pb2.Image(reference=upload(call, CONTENT, chunk=100).reference))
    inline.content.CopyFrom(encoded(CONTENT))
    first, second = run_tiny(call, by_reference), run_tiny(call, inline)
    assert first.job_state == job_pb2.JOB_STATE_SUCCEEDED
    assert first.result.reference == second.result.reference


def test_an_abandoned_upload_ends_cancelled(call):
    sent, done = threading.Event(), threading.Event()

    def messages() -> Iterator[UploadImageRequest]:
        yield header()
        yield chunk(0, HALF)
        sent.set()
        done.wait(SECONDS)

    running = call.making.UploadImage.future(messages(), timeout=SECONDS)
    assert sent.wait(SECONDS)
    running.cancel()
    done.set()
    assert running.code() is grpc.StatusCode.CANCELLED
