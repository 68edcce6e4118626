"""A job starts from the picture that it is given."""

import io

import numpy as np
from gateway_support import STYLE, encoded, file_of, pixels, run_tiny, tiny_spec
from PIL import Image
from stylize_stream import attached, chunk, stylize

from nst.v1 import job_pb2, options_pb2

INITIAL = pixels(32, 21, seed=11)  # of the working size


def still_spec(**options) -> job_pb2.JobSpec:
    """A job that hardly leaves its start."""
    return tiny_spec(iterations=1, learning_rate=1e-6, **options)


def shown(result: job_pb2.Result) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(result.image.encoded.data)))


def test_the_start_is_the_picture_given(call):
    spec = still_spec()
    spec.initial.CopyFrom(encoded(file_of(INITIAL)))
    last = run_tiny(call, spec)
    assert np.array_equal(shown(last.result), INITIAL)
    stored = call.get(last.job_id).spec
    assert stored.options.init == options_pb2.INIT_IMAGE
    assert len(stored.initial.reference.sha256) == 64


def test_it_can_be_attached(call):
    data, spec = file_of(INITIAL), still_spec(init=options_pb2.INIT_IMAGE)
    spec.styles[0].image.CopyFrom(encoded(STYLE))
    spec.initial.CopyFrom(attached("start", len(data)))
    with stylize(call) as stream:
        stream.start(spec)
        stream.send(chunk=chunk("start", data))
        *_, last = stream
    assert np.array_equal(shown(last.result), INITIAL)
