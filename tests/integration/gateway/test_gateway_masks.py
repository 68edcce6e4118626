"""Styles go where their masks say, through a real gateway and model server."""

import io
from typing import Any

import numpy as np
import pytest
from gateway_support import CONTENT, STYLE, assert_invalid, encoded, file_of, pixels, run_tiny, tiny_spec, upload
from numpy.typing import NDArray
from PIL import Image
from stylize_stream import attached, chunk, stylize

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst.v1.style_transfer_service_pb2 import CreateJobRequest

FLAT = file_of(np.full((40, 40, 3), (250, 20, 20), np.uint8))
# Gradient descent moves no pixel without a gradient, and the first layer sees only its neighbours.
SHALLOWEST = {
    "optimizer": options_pb2.OPTIMIZER_GRADIENT_DESCENT,
    "content_layers": {"weights": {"relu1_1": 1.0}},
    "style_layers": {"weights": {"relu1_1": 1.0}},
    "style_statistic": options_pb2.STYLE_STATISTIC_GRAM,
    "tv_weight": 0.0,
    "box_weight": 0.0,
}


def half(width: int, height: int, *, left: bool) -> bytes:
    """A picture file, white in its left or right half and black in the other."""
    values = np.zeros((height, width), np.uint8)
    values[:, slice(None, width // 2) if left else slice(width // 2, None)] = 255
    return file_of(values)


def masked_spec(**masks: image_pb2.Image) -> job_pb2.JobSpec:
    spec = tiny_spec(**SHALLOWEST)
    spec.styles[0].CopyFrom(job_pb2.Style(image=encoded(FLAT), **masks))
    return spec


def shown(event: job_pb2.JobEvent) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(event.result.image.encoded.data))).astype(int)


def still(call: Any) -> NDArray[np.int64]:
    return shown(run_tiny(call, tiny_spec(**{**SHALLOWEST, "iterations": 1, "learning_rate": 1e-6})))


def test_a_style_changes_its_region_and_nothing_else(call):
    """The masks are of different sizes, none of them that of the content."""
    untouched = still(call)
    for region, inside, outside in (
        (half(64, 20, left=True), np.s_[:, :12], np.s_[:, 20:]),
        (half(30, 90, left=False), np.s_[:, 20:], np.s_[:, :12]),
    ):
        result = shown(run_tiny(call, masked_spec(region=encoded(region))))
        assert np.abs(result[outside] - untouched[outside]).max() <= 1
        assert np.abs(result[inside] - untouched[inside]).mean() > 5


def test_only_the_marked_part_of_a_style_is_taken(call):
    """A style of two halves is, by a mask, a style of one."""
    both = np.hstack([np.full((40, 40, 3), (250, 20, 20), np.uint8), pixels(40, 40, seed=4)])
    spec = masked_spec(source_region=encoded(half(32, 16, left=True)))
    spec.styles[0].image.CopyFrom(encoded(file_of(both)))
    taken, alone, unmasked = (shown(run_tiny(call, one)) for one in (spec, masked_spec(), without_masks(spec)))
    assert np.abs(taken - alone).mean() < 0.5 * np.abs(unmasked - alone).mean()


def test_a_style_is_looked_at_in_the_size_that_is_asked_for(call):
    """The size that is not named is the whole one, and a picture is another in another size."""
    stripes = np.where(np.indices((40, 40))[1] % 8 < 4, 20, 230).astype(np.uint8)
    results = []
    for scale in (None, 1.0, 0.5):
        spec = tiny_spec()
        spec.styles[0].CopyFrom(job_pb2.Style(image=encoded(file_of(stripes)), scale=scale))
        results.append(shown(run_tiny(call, spec)))
    unset, whole, half_size = results
    assert np.array_equal(unset, whole)
    assert np.abs(half_size - whole).mean() > 1


def without_masks(spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    bare = job_pb2.JobSpec.FromString(spec.SerializeToString())
    bare.styles[0].ClearField("source_region")
    return bare


def test_masks_are_stored_as_references_and_may_be_attached(call):
    data = half(48, 32, left=True)
    spec = masked_spec(region=attached("where", len(data)))
    spec.styles[0].source_region.CopyFrom(image_pb2.Image(reference=upload(call, data).reference))
    with stylize(call) as stream:
        stream.start(spec)
        stream.send(chunk=chunk("where", data))
        *_, last = stream
    assert last.job_state == job_pb2.JOB_STATE_SUCCEEDED
    (style,) = call.get(last.job_id).spec.styles
    assert style.region == style.source_region
    assert style.region.reference == upload(call, data).reference
    assert not call.get(run_tiny(call).job_id).spec.styles[0].HasField("region")


BLACK = file_of(np.zeros((32, 48), np.uint8))
REFUSED = {
    "black": (encoded(BLACK), "", "black all over"),
    "no picture": (encoded(b"nothing"), ".encoded.data", "PNG, JPEG or WebP"),
    "tiny": (encoded(file_of(pixels(8, 8))), ".encoded.data", "min_image_side = 16"),
    "unset": (image_pb2.Image(), "", "give a tensor"),
    "attached": (image_pb2.Image(attached={"name": "mask", "header": {"size": 10}}), ".attached", "Stylize only"),
    "not finite": (
        image_pb2.Image(
            tensor=image_pb2.Tensor(
                dtype=image_pb2.DATA_TYPE_FLOAT32,
                layout=image_pb2.LAYOUT_HWC,
                shape=[16, 16, 1],
                data=np.full(256, np.nan, "<f4").tobytes(),
            )
        ),
        ".tensor.data",
        "NaN",
    ),
}


@pytest.mark.parametrize("field", ["styles[1].region", "styles[1].source_region", "subject", "hole"])
@pytest.mark.parametrize("case", REFUSED)
def test_unusable_masks_are_refused_before_there_is_a_job(call, field, case):
    image, path, words = REFUSED[case]
    spec = job_pb2.JobSpec(content=encoded(CONTENT), styles=[{"image": encoded(STYLE)}, {"image": encoded(STYLE)}])
    owner = spec if field in ("subject", "hole") else spec.styles[1]
    getattr(owner, field.rpartition(".")[2]).CopyFrom(image)
    request = CreateJobRequest(request_id="refused", spec=spec)
    assert_invalid(lambda: call.making.CreateJob(request, timeout=30), request, f"spec.{field}{path}", words)


def test_an_uploaded_black_mask_is_refused_too(call):
    spec = masked_spec(region=image_pb2.Image(reference=upload(call, BLACK).reference))
    request = CreateJobRequest(request_id="refused", spec=spec)
    assert_invalid(lambda: call.making.CreateJob(request, timeout=30), request, "spec.styles[0].region", "leave it out")
