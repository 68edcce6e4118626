"""A job protects the subject that it is given a mask of."""

import numpy as np
from gateway_support import CONTENT, encoded, file_of, run_tiny, tiny_spec
from stylize_stream import attached, chunk, stylize

MASK = np.zeros((21, 32), np.uint8)
MASK[:, 16:] = 255


def test_a_mask_is_stored_and_protects(call):
    spec = tiny_spec()
    spec.subject.CopyFrom(encoded(file_of(MASK)))
    last = run_tiny(call, spec)
    assert last.result.progress.losses["detail"] > 0
    stored = call.get(last.job_id).spec
    assert len(stored.subject.reference.sha256) == 64
    assert stored.options.protection == 0.5
    assert not stored.options.faces


def test_it_can_be_attached(call):
    data, spec = file_of(MASK), tiny_spec()
    spec.content.CopyFrom(encoded(CONTENT))
    spec.subject.CopyFrom(attached("mask", len(data)))
    with stylize(call) as stream:
        stream.start(spec)
        stream.send(chunk=chunk("mask", data))
        *_, last = stream
    assert last.result.progress.losses["detail"] > 0


def test_faces_need_no_mask(call):
    """A picture without any is stylised as it would be."""
    last = run_tiny(call, tiny_spec(faces=True))
    assert "detail" not in last.result.progress.losses
    assert call.get(last.job_id).spec.options.faces
