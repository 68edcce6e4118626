"""GetResult and result events give one picture in every form."""

import hashlib
import io

import grpc
import numpy as np
import pytest
import torch
from gateway_support import (
    SECONDS,
    assert_invalid,
    cancel,
    code_of,
    delete,
    encoded,
    file_of,
    pixels,
    refusal_of,
    result_bytes,
    run_tiny,
    running_gateway,
    tiny_spec,
    wait_until,
)
from PIL import Image

from nst.v1 import image_pb2, job_pb2
from nst.v1.style_transfer_service_pb2 import GetResultRequest, GetResultResponse
from nst.v1.style_transfer_service_pb2_grpc import StyleTransferServiceStub
from nst_calls import calls

WIDTH, HEIGHT = 320, 240  # its float tensors take several chunks


@pytest.fixture(scope="module")
def result(call) -> job_pb2.JobEvent:
    """The last event of a job whose result is asked for as it is made: PNG."""
    spec = tiny_spec(size=WIDTH, iterations=1)
    spec.content.CopyFrom(encoded(file_of(pixels(WIDTH, HEIGHT, seed=3))))
    last = run_tiny(call, spec)
    assert (last.result.width, last.result.height) == (WIDTH, HEIGHT)
    return last


@pytest.fixture(scope="module")
def shown(result) -> np.ndarray:
    """The result's pixels, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(result.result.image.encoded.data)))


def responses(call, job_id: str, form: image_pb2.ImageFormat | None) -> list[GetResultResponse]:
    return list(call.making.GetResult(GetResultRequest(job_id=job_id, format=form), timeout=SECONDS))


def encoded_form(**fields) -> image_pb2.ImageFormat:
    return image_pb2.ImageFormat(encoded=image_pb2.EncodedFormat(**fields))


def tensor_form(dtype: int, layout: int = image_pb2.LAYOUT_HWC) -> image_pb2.ImageFormat:
    return image_pb2.ImageFormat(tensor=image_pb2.TensorFormat(dtype=dtype, layout=layout))


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()


EXPECTED = {
    image_pb2.DATA_TYPE_UINT8: lambda values: values,
    image_pb2.DATA_TYPE_FLOAT32: lambda values: values / np.float32(255),
    image_pb2.DATA_TYPE_FLOAT16: lambda values: (values / np.float32(255)).astype(np.float16),
    image_pb2.DATA_TYPE_BFLOAT16: lambda values: as_bfloat16(values / np.float32(255)),
}


@pytest.mark.parametrize("dtype", EXPECTED)
@pytest.mark.parametrize("layout", [image_pb2.LAYOUT_HWC, image_pb2.LAYOUT_CHW])
def test_tensors_hold_the_pixels_of_the_png(call, result, shown, dtype, layout):
    header, *chunks = responses(call, result.job_id, tensor_form(dtype, layout))
    form = header.header.image.tensor
    shape = (HEIGHT, WIDTH, 3) if layout == image_pb2.LAYOUT_HWC else (3, HEIGHT, WIDTH)
    assert (form.dtype, form.layout, tuple(form.shape)) == (dtype, layout, shape)
    ordered = shown if layout == image_pb2.LAYOUT_HWC else shown.transpose(2, 0, 1)
    data = b"".join(response.chunk.data for response in chunks)
    assert data == EXPECTED[dtype](np.ascontiguousarray(ordered)).tobytes()


@pytest.mark.parametrize("form", [None, encoded_form(), tensor_form(image_pb2.DATA_TYPE_FLOAT32)])
def test_a_result_comes_with_a_header_and_ordered_chunks(call, result, form):
    header, *chunks = responses(call, result.job_id, form)
    assert (header.header.width, header.header.height) == (WIDTH, HEIGHT)
    data, image = b"", header.header.image
    for response in chunks:
        assert response.chunk.offset == len(data)
        assert 0 < len(response.chunk.data) <= 512 * 1024
        data += response.chunk.data
    assert (image.size, image.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert len(chunks) == -(-len(data) // (512 * 1024))
    assert image.HasField("tensor") == (form is not None and form.HasField("tensor"))


def test_a_png_is_the_stored_picture(call, result):
    data = result_bytes(call, result.job_id, encoded_form(codec=image_pb2.CODEC_PNG))
    assert hashlib.sha256(data).hexdigest() == result.result.reference.sha256
    assert data == result.result.image.encoded.data == result_bytes(call, result.job_id)


@pytest.mark.parametrize(("codec", "name"), [(image_pb2.CODEC_JPEG, "JPEG"), (image_pb2.CODEC_WEBP, "WEBP")])
def test_lossy_files_are_close_and_smaller_at_less_quality(call, result, shown, codec, name):
    files = [result_bytes(call, result.job_id, encoded_form(codec=codec, quality=quality)) for quality in (100, 90, 1)]
    pictures = [Image.open(io.BytesIO(data)) for data in files]
    assert {picture.format for picture in pictures} == {name}
    assert len(files[0]) > len(files[1]) > len(files[2])
    assert files[1] == result_bytes(call, result.job_id, encoded_form(codec=codec))
    # Noise is the worst that a codec can meet; half its colour goes with the subsampling.
    grey = [np.asarray(picture.convert("L"), float) for picture in (pictures[0], Image.fromarray(shown))]
    assert np.abs(grey[0] - grey[1]).mean() < 4


def test_a_job_brings_its_result_in_the_form_it_asked_for(call):
    spec = tiny_spec()
    spec.result_format.CopyFrom(tensor_form(image_pb2.DATA_TYPE_FLOAT32, image_pb2.LAYOUT_CHW))
    last = run_tiny(call, spec)
    data = result_bytes(call, last.job_id)
    assert last.result.image.tensor.data == data
    png = np.asarray(Image.open(io.BytesIO(result_bytes(call, last.job_id, encoded_form()))))
    assert (np.frombuffer(data, "<f4").reshape(3, 21, 32) == png.transpose(2, 0, 1) / np.float32(255)).all()


def test_a_result_is_a_picture_for_the_next_job(call, result):
    spec = tiny_spec()
    spec.content.CopyFrom(image_pb2.Image(reference=result.result.reference))
    assert run_tiny(call, spec).job_state == job_pb2.JOB_STATE_SUCCEEDED


BAD_FORMS = {
    "an unknown codec": (encoded_form(codec=9), "format.encoded.codec", "JPEG"),
    "quality 0": (encoded_form(codec=image_pb2.CODEC_JPEG, quality=0), "format.encoded.quality", "1 to 100"),
    "quality of a PNG": (encoded_form(quality=5), "format.encoded.quality", "unset"),
    "no dtype": (tensor_form(0), "format.tensor.dtype", "uint8"),
    "an unknown layout": (tensor_form(image_pb2.DATA_TYPE_UINT8, 9), "format.tensor.layout", "CHW"),
}


@pytest.mark.parametrize("case", BAD_FORMS)
def test_forms_that_no_picture_can_take(call, result, case):
    form, field, words = BAD_FORMS[case]
    assert_invalid(lambda: responses(call, result.job_id, form), GetResultRequest, field, words)


def test_a_running_job_has_no_result_yet(call):
    job_id = call.create(tiny_spec(iterations=5000))
    refused = refusal_of(lambda: responses(call, job_id, None))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_RESULT")
    cancel(call, job_id)
    list(call.watch(job_id))
    delete(call, job_id)


def test_results_that_nobody_takes_hold_bounded_memory_for_a_bounded_time(server, result, tmp_path):
    limits = {"NST_MAX_RESULT_BYTES": "1000000", "NST_RESULT_TIMEOUT_SECONDS": "2"}
    form = tensor_form(image_pb2.DATA_TYPE_FLOAT32)
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    with (
        running_gateway(tmp_path, server.status["nats"], **limits) as gateway,
        calls(gateway.address) as call,
        grpc.insecure_channel(gateway.address, options=narrow) as channel,
    ):
        request = GetResultRequest(job_id=result.job_id, format=form)
        silent = StyleTransferServiceStub(channel).GetResult(request, timeout=SECONDS)
        assert next(silent).HasField("header")
        refused = refusal_of(lambda: responses(call, result.job_id, form))
        assert (refused.code, refused.metadata) == (grpc.StatusCode.RESOURCE_EXHAUSTED, {"limit": "max_result_bytes"})
        assert refused.retry_seconds > 0
        wait_until(lambda: code_of(lambda: responses(call, result.job_id, form)) is grpc.StatusCode.OK, "memory")
        dropped = refusal_of(lambda: silent)
        assert (dropped.code, dropped.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "RESULT_SLOW")
        assert "result_timeout_seconds = 2" in dropped.message
        assert gateway.logged("call failed") == []
