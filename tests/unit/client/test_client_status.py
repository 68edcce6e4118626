"""A job's status tells what the job was made of."""

from nst.v1 import image_pb2, job_pb2
from nst_client import EncodedFormat, ImageRef, TensorFormat
from nst_client.decoding import decode_status


def reference(digit: str) -> image_pb2.Image:
    return ImageRef(digit * 64).to_proto()


def test_what_is_unset_is_none() -> None:
    status = decode_status(
        job_pb2.Job(spec=job_pb2.JobSpec(content=reference("a"), styles=[{"image": reference("b")}]))
    )
    assert (status.initial, status.subject, status.hole, status.time_limit, status.preview_max_size) == (None,) * 5
    (style,) = status.styles
    assert (style.image, style.region, style.source_region) == (ImageRef("b" * 64), None, None)


def test_masks_and_forms_are_told() -> None:
    spec = job_pb2.JobSpec(
        content=reference("a"),
        styles=[{"image": reference("b"), "region": reference("c"), "source_region": reference("d")}],
        initial=reference("e"),
        subject=reference("f"),
        hole=reference("0"),
        result_format=EncodedFormat("jpeg", 90).to_proto(),
        preview={"interval": 5, "max_size": 64, "format": TensorFormat("float16", "CHW").to_proto()},
    )
    status = decode_status(job_pb2.Job(spec=spec))
    (style,) = status.styles
    masks = style.region, style.source_region, status.initial, status.subject, status.hole
    assert masks == tuple(ImageRef(digit * 64) for digit in "cdef0")
    assert status.result_format == EncodedFormat("jpeg", 90)
    assert status.preview_format == TensorFormat("float16", "CHW")
    assert (status.preview_interval, status.preview_max_size) == (5, 64)


def test_what_it_was_steered_to_is_told_as_steer_takes_it() -> None:
    changes = {"strength": 0.25, "style_shares": [1.0, 3.0], "style_layers": {"relu1_1": 2.0}, "iterations": 7}
    status = decode_status(job_pb2.Job(changes=job_pb2.JobUpdate(**changes)))
    assert status.changes == changes
    assert decode_status(job_pb2.Job()).changes == {}


def test_a_form_of_a_later_version_is_no_error() -> None:
    form = image_pb2.ImageFormat(tensor=image_pb2.TensorFormat(dtype=99, layout=99))  # type: ignore[arg-type]
    status = decode_status(job_pb2.Job(spec=job_pb2.JobSpec(result_format=form)))
    assert (status.result_format, status.preview_format) == (None, None)
