"""A job fills a hole in its content, and leaves the rest alone."""

import io

import numpy as np
import pytest
from gateway_support import assert_invalid, encoded, file_of, run_tiny, tiny_spec
from PIL import Image
from stylize_stream import attached, chunk, stylize

from nst.v1 import job_pb2, options_pb2
from nst.v1.style_transfer_service_pb2 import CreateJobRequest

RNG = np.random.default_rng(2)
PICTURE = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
MASK = np.zeros((32, 32), np.uint8)
MASK[8:24, 8:24] = 255


def holed_spec(styles: int) -> job_pb2.JobSpec:
    spec = tiny_spec(styles, size=32)
    spec.content.CopyFrom(encoded(file_of(PICTURE)))
    spec.hole.CopyFrom(encoded(file_of(MASK)))
    return spec


@pytest.mark.parametrize("styles", [0, 1])
def test_only_the_hole_changes(call, styles):
    last = run_tiny(call, holed_spec(styles))
    result = np.asarray(Image.open(io.BytesIO(last.result.image.encoded.data)))
    assert np.array_equal(result[MASK == 0], PICTURE[MASK == 0])
    assert (result != PICTURE)[MASK > 0].mean() > 0.5
    stored = call.get(last.job_id).spec
    assert len(stored.hole.reference.sha256) == 64
    assert len(stored.styles) == styles


def test_the_mask_can_be_attached(call):
    data, spec = file_of(MASK), holed_spec(1)
    spec.hole.CopyFrom(attached("mask", len(data)))
    with stylize(call) as stream:
        stream.start(spec)
        stream.send(chunk=chunk("mask", data))
        *_, last = stream
    assert last.result.progress.losses["content"] == 0


def test_a_hole_excludes_protection(call):
    masked, faces = holed_spec(0), holed_spec(0)
    masked.subject.CopyFrom(encoded(file_of(MASK)))
    faces.options.faces = True
    for spec in (masked, faces):
        request = CreateJobRequest(request_id="refused", spec=spec)
        assert_invalid(lambda request=request: call.making.CreateJob(request), request, "spec.hole", "subject or faces")


def test_a_hole_needs_a_style_layer(call):
    """There is no content loss in a hole: with content layers alone nothing would fill it."""
    spec = holed_spec(0)
    spec.options.style_layers.CopyFrom(options_pb2.LayerWeights(weights={"relu1_1": 0.0}))
    request = CreateJobRequest(request_id="refused", spec=spec)
    assert_invalid(lambda: call.making.CreateJob(request), request, "spec.options.style_layers", "fills a hole")
