"""Every field of a job's spec is checked, and a refusal names the field and the cure."""

import math

import grpc
import pytest
from gateway_support import (
    CONTENT,
    SECONDS,
    STYLE,
    assert_invalid,
    encoded,
    refusal_of,
    tiny_spec,
    upload,
)
from google.protobuf.descriptor import FieldDescriptor

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst.v1.style_transfer_service_pb2 import (
    CreateJobRequest,
    GetServerInfoRequest,
    GetServerInfoResponse,
    StylizeRequest,
    StylizeStart,
)

NUMBERS = [
    field
    for field in options_pb2.StylizeOptions.DESCRIPTOR.fields
    if field.type in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64}
]
REALS = [field.name for field in NUMBERS if field.type == FieldDescriptor.TYPE_DOUBLE]
TENSOR_FORM = {"dtype": image_pb2.DATA_TYPE_UINT8, "layout": image_pb2.LAYOUT_HWC}


@pytest.fixture(scope="module")
def info(call) -> GetServerInfoResponse:
    return call.making.GetServerInfo(GetServerInfoRequest(), timeout=SECONDS)


def assert_refused(call, spec: job_pb2.JobSpec, field: str, *words: str) -> None:
    request = CreateJobRequest(request_id="refused", spec=spec)
    assert_invalid(lambda: call.making.CreateJob(request, timeout=SECONDS), request, field, *words)


def beyond(field: FieldDescriptor, low: float, high: float) -> list[float]:
    """Values that the field can carry and that are just outside its range."""
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    return [value for value in (int(low) - 1, int(high) + 1) if value >= 0]


@pytest.mark.parametrize("name", [field.name for field in NUMBERS])
def test_numbers_end_where_the_server_says(call, info, name):
    field = options_pb2.StylizeOptions.DESCRIPTOR.fields_by_name[name]
    allowed = info.ranges[name]
    values = beyond(field, allowed.minimum, allowed.maximum)
    assert values
    for value in values:
        end = allowed.minimum if value < allowed.minimum else allowed.maximum
        assert_refused(call, tiny_spec(**{name: value}), f"spec.options.{name}", f"{end:g}")


@pytest.mark.parametrize("end", ["minimum", "maximum"])
def test_numbers_at_the_ends_of_their_ranges_are_taken(idle, info, end):
    for field in NUMBERS:
        number = float if field.type == FieldDescriptor.TYPE_DOUBLE else int
        value = number(getattr(info.ranges[field.name], end))
        if field.name == "seed":
            value = min(value, 2**63 - 1)  # a range is told in doubles, which have no such number
        idle.create(tiny_spec(**{field.name: value}))


@pytest.mark.parametrize("name", REALS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(call, name, value):
    assert_refused(call, tiny_spec(**{name: value}), f"spec.options.{name}", "must be from")


@pytest.mark.parametrize("name", ["size", "iterations"])
def test_the_servers_own_limits(call, info, name):
    limit = info.limits[f"max_{name}"]
    assert_refused(call, tiny_spec(**{name: limit + 1}), f"spec.options.{name}", f"max_{name} = {limit}")


@pytest.mark.parametrize(
    "name", ["optimizer", "init", "color", "style_statistic", "pooling", "padding", "precision", "parametrization"]
)
@pytest.mark.parametrize("number", [0, 99, -1, 2**31 - 1])
def test_unknown_choices(call, name, number):
    assert_refused(call, tiny_spec(**{name: number}), f"spec.options.{name}", "must be one of", f"{name.upper()}_")


def test_an_unknown_model(call, info):
    assert_refused(call, tiny_spec(model="resnet50"), "spec.options.model", *(model.name for model in info.models))


@pytest.mark.parametrize("layers", ["content_layers", "style_layers"])
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"relu9_1": 1.0}, "relu5_1"),
        ({"": 1.0}, "relu5_1"),
        ({"relu4_2": -1.0}, "must be from 0"),
        ({"relu4_2": math.nan}, "must be from 0"),
        ({"relu4_2": math.inf}, "must be from 0"),
    ],
)
def test_layers(call, layers, weights, words):
    (tap,) = weights
    assert_refused(call, tiny_spec(**{layers: {"weights": weights}}), f"spec.options.{layers}.{tap}", words)


def test_taps_are_those_of_the_model(call, info):
    deep = tiny_spec(model="vgg16-caffe", style_layers={"weights": {"relu3_4": 1.0}})
    assert_refused(call, deep, "spec.options.style_layers.relu3_4", "vgg16-caffe has no such tap")
    vgg19 = next(model for model in info.models if model.name == "vgg19-torchvision")
    assert "relu3_4" in vgg19.taps


@pytest.mark.parametrize(
    ("model", "layers"),
    [("resnet50-torchvision", {"layer1.2": 1.0, "relu": 2.0}), ("densenet121-torchvision", {"denseblock2": 1.0})],
)
def test_other_networks_have_other_taps(call, idle, info, model, layers):
    job_id = idle.create(tiny_spec(model=model, style_layers={"weights": layers}))
    stored = idle.get(job_id).spec.options
    assert stored.style_layers.weights == layers
    assert {*stored.content_layers.weights} < {*next(one for one in info.models if one.name == model).taps}
    foreign = tiny_spec(model=model, style_layers={"weights": {"relu1_1": 1.0}})
    assert_refused(call, foreign, "spec.options.style_layers.relu1_1", f"{model} has no such tap", *layers)


def test_nothing_to_optimise(call):
    nothing = {"weights": {"relu1_1": 0.0}}
    spec = tiny_spec(content_layers=nothing, style_layers=nothing)
    assert_refused(call, spec, "spec.options.style_layers", "nothing to optimise")


@pytest.mark.parametrize("raw", ["content_weight", "style_weight"])
def test_strength_and_raw_weights_exclude_each_other(call, raw):
    assert_refused(call, tiny_spec(strength=0.5, **{raw: 1.0}), "spec.options.strength", raw, "not both")


def without_content() -> job_pb2.JobSpec:
    spec = tiny_spec()
    spec.ClearField("content")
    return spec


def changed(**fields) -> job_pb2.JobSpec:
    spec = tiny_spec(styles=2)
    for name, value in fields.items():
        if name in ("weight", "scale"):
            setattr(spec.styles[1], name, value)
        elif name == "priority":
            spec.priority = value
        else:
            getattr(spec, name).CopyFrom(value)
    return spec


def form(**fields) -> image_pb2.ImageFormat:
    return image_pb2.ImageFormat(**fields)


SPECS = {
    "no content": (without_content(), "spec.content", "give a tensor"),
    "an empty content": (changed(content=image_pb2.Image()), "spec.content", "give a tensor"),
    "no picture to start from": (tiny_spec(init=options_pb2.INIT_IMAGE), "spec.initial", "give the picture"),
    "a picture to start from and noise": (
        changed(initial=encoded(CONTENT), options=options_pb2.StylizeOptions(init=options_pb2.INIT_NOISE)),
        "spec.options.init",
        "must be INIT_IMAGE or unset",
    ),
    "an empty picture to start from": (changed(initial=image_pb2.Image()), "spec.initial", "give a tensor"),
    "no styles": (job_pb2.JobSpec(content=encoded(CONTENT)), "spec.styles", "at least one"),
    "a style without picture": (
        job_pb2.JobSpec(content=encoded(CONTENT), styles=[{"image": encoded(STYLE)}, {"weight": 1}]),
        "spec.styles[1].image",
        "give a tensor",
    ),
    "too many styles": (tiny_spec(styles=9), "spec.styles", "max_styles = 8"),
    "a style weight of 0": (changed(weight=0), "spec.styles[1].weight", "above 0"),
    "a negative style weight": (changed(weight=-1), "spec.styles[1].weight", "from 0 to 1e+12"),
    "a style weight that is no number": (changed(weight=math.nan), "spec.styles[1].weight", "from 0 to 1e+12"),
    "an infinite style weight": (changed(weight=math.inf), "spec.styles[1].weight", "from 0 to 1e+12"),
    "a style scale of 0": (changed(scale=0), "spec.styles[1].scale", "from 0.1 to 2"),
    "a style scale that is too large": (changed(scale=2.1), "spec.styles[1].scale", "from 0.1 to 2"),
    "a style scale that is no number": (changed(scale=math.nan), "spec.styles[1].scale", "from 0.1 to 2"),
    "an unknown priority": (changed(priority=7), "spec.priority", "INTERACTIVE or BATCH"),
    "tiny previews": (changed(preview=job_pb2.PreviewOptions(max_size=15)), "spec.preview.max_size", "at least 16"),
    "an attached picture": (
        changed(content=image_pb2.Image(attached={"name": "photo", "header": {"size": 10}})),
        "spec.content.attached",
        "Stylize only",
    ),
    "a malformed reference": (
        changed(content=image_pb2.Image(reference={"sha256": "A" * 64})),
        "spec.content.reference.sha256",
        "64 lower-case",
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_the_rest_of_the_spec(call, case):
    spec, field, words = SPECS[case]
    assert_refused(call, spec, field, words)


FORMS = {
    "an unknown codec": (form(encoded={"codec": 99}), "encoded.codec", "JPEG"),
    "quality 0": (form(encoded={"codec": image_pb2.CODEC_JPEG, "quality": 0}), "encoded.quality", "1 to 100"),
    "quality 101": (form(encoded={"codec": image_pb2.CODEC_WEBP, "quality": 101}), "encoded.quality", "1 to 100"),
    "quality of a PNG": (form(encoded={"codec": image_pb2.CODEC_PNG, "quality": 50}), "encoded.quality", "unset"),
    "no dtype": (form(tensor={**TENSOR_FORM, "dtype": 0}), "tensor.dtype", "float32"),
    "an unknown dtype": (form(tensor={**TENSOR_FORM, "dtype": 42}), "tensor.dtype", "float32"),
    "no layout": (form(tensor={**TENSOR_FORM, "layout": 0}), "tensor.layout", "HWC"),
    "an unknown layout": (form(tensor={**TENSOR_FORM, "layout": 42}), "tensor.layout", "HWC"),
}


@pytest.mark.parametrize("case", FORMS)
def test_forms_that_no_picture_can_take(call, case):
    wanted, field, words = FORMS[case]
    assert_refused(call, changed(result_format=wanted), f"spec.result_format.{field}", words)
    assert_refused(call, changed(preview=job_pb2.PreviewOptions(format=wanted)), f"spec.preview.format.{field}", words)


def test_a_picture_that_is_not_stored(call):
    spec = tiny_spec()
    spec.styles[0].image.CopyFrom(image_pb2.Image(reference={"sha256": "0" * 64}))
    refused = refusal_of(lambda: call.create(spec))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert list(refused.fields) == ["spec.styles[0].image.reference.sha256"]
    assert "upload it" in refused.message


@pytest.mark.parametrize("request_id", ["", "x" * 129])
def test_request_ids(call, request_id):
    request = CreateJobRequest(request_id=request_id, spec=tiny_spec())
    assert_invalid(lambda: call.making.CreateJob(request, timeout=SECONDS), request, "request_id", "1 to 128", "UUID")


def test_a_stylize_streams_request_id(call):
    start = StylizeStart(request_id="x" * 129, spec=tiny_spec())
    messages = [StylizeRequest(start=start)]
    assert_invalid(lambda: call.making.Stylize(iter(messages), timeout=SECONDS), StylizeStart, "request_id", "1 to 128")


@pytest.mark.parametrize("letter", ["x", "\N{GRINNING FACE}", "\n", "é"])
def test_a_long_name_is_refused_in_a_status_that_arrives(call, letter):
    name = letter * 50_000
    layers = tiny_spec(style_layers={"weights": {name: 1.0}})
    for spec, field in ((tiny_spec(model=name), "spec.options.model"), (layers, "spec.options.style_layers.")):
        refused = refusal_of(lambda spec=spec: call.create(spec))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert [path.startswith(field) for path in refused.fields] == [True]


@pytest.mark.parametrize("method", ["CreateJob", "UploadImage", "Stylize", "GetResult"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x02\xc3\x28"])
def test_bytes_that_are_no_request(server, method, data):
    kinds = {"UploadImage": "stream_unary", "Stylize": "stream_stream", "GetResult": "unary_stream"}
    kind = kinds.get(method, "unary_unary")
    with grpc.insecure_channel(server.address) as channel:
        bare = getattr(channel, kind)(f"/nst.v1.StyleTransferService/{method}")
        refused = refusal_of(lambda: bare(iter([data]) if kind.startswith("stream") else data, timeout=SECONDS))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


def test_fields_of_a_later_protocol_are_not_kept(idle):
    unknown = b"\xfa\x7f" + b"\x80\x80\x80\x05" + bytes(10 * 2**20)  # field 2047, 10 MiB
    spec = tiny_spec()
    spec.content.CopyFrom(image_pb2.Image(reference=upload(idle, CONTENT).reference))
    spec.result_format.CopyFrom(image_pb2.ImageFormat.FromString(form(encoded={}).SerializeToString() + unknown))
    job = idle.get(idle.create(spec))
    assert job.ByteSize() < 10_000


def test_unset_options_are_the_defaults(idle, info):
    spec = job_pb2.JobSpec(content=encoded(CONTENT), styles=[{"image": encoded(STYLE)}])
    stored = idle.get(idle.create(spec)).spec
    assert stored.options == info.defaults
    assert stored.preview.interval == info.preview_defaults.interval
    assert (stored.styles[0].weight, stored.styles[0].scale) == (1, 1)
    assert stored.priority == job_pb2.PRIORITY_INTERACTIVE
    assert stored.result_format.encoded.codec == image_pb2.CODEC_PNG
