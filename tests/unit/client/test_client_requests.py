"""What a client asks of a server."""

from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from scripted_server import JOB_ID, ScriptedServer, abort, result_event

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst_client import AsyncClient, EncodedFormat, ImageRef, ServerUnavailable, Style, TensorFormat

A, B = ImageRef("a" * 64), ImageRef("b" * 64)
WRONG = {
    "unknown option": ({"sise": 3}, ValueError, "sise: no such option"),
    "unknown choice": ({"optimizer": "sgd"}, ValueError, "optimizer: must be one of lbfgs, adam"),
    "text for a number": ({"size": "big"}, TypeError, "size: must be a whole number"),
    "a flag for a number": ({"strength": True}, TypeError, "strength: must be a number, not True"),
    "a flag for a whole number": ({"size": True}, TypeError, "size: must be a whole number, not True"),
    "fraction for a whole number": ({"size": 2.5}, TypeError, "size: must be a whole number"),
    "negative": ({"size": -1}, ValueError, "size: -1 is out of range"),
    "layers that are no mapping": ({"style_layers": 3}, TypeError, "style_layers: must be weights by tap"),
    "layer weight that is no number": (
        {"style_layers": {"relu1_1": "x"}},
        TypeError,
        r"style_layers\.relu1_1: must be",
    ),
    "a tap that is no text": ({"style_layers": {3: 1.0}}, TypeError, "style_layers: taps must be text, not 3"),
    "negative interval": ({"preview_interval": -1}, ValueError, "preview_interval: -1 is out of range"),
    "text for a size": ({"preview_max_size": "big"}, TypeError, "preview_max_size: must be a whole number"),
    "no style": ({"styles": []}, ValueError, "styles: give at least one"),
    "style weight": ({"styles": [A, (B, 0)]}, ValueError, r"styles\[1\].weight: must be above 0"),
    "weight of a style with a place": (
        {"styles": Style(B, -1.0, A)},
        ValueError,
        r"styles\[0\].weight: must be above 0",
    ),
    "text for a weight": ({"styles": Style(B, weight="3")}, TypeError, r"styles\[0\].weight: must be a number"),
    "a mask that is no picture": ({"styles": [Style(B, region=3)]}, TypeError, r"styles\[0\].region: give a path"),
    "codec": ({"result_format": "gif"}, ValueError, "result_format.codec: must be one of png"),
    "quality": ({"preview_format": EncodedFormat("jpeg", 101)}, ValueError, "preview_format.quality: must be from 1"),
    "text for a quality": (
        {"result_format": EncodedFormat("jpeg", "90")},  # type: ignore[arg-type]
        TypeError,
        "result_format.quality: must be a whole number, not '90'",
    ),
    "no format": ({"result_format": 3}, TypeError, "result_format: must be"),
    "a number for an id": ({"request_id": 7}, TypeError, "request_id: must be text, not 7"),
    "priority": ({"priority": "urgent"}, ValueError, "priority: must be one of interactive, batch"),
}


async def created(server: ScriptedServer, *args: Any, **kwargs: Any) -> job_pb2.JobSpec:
    """The spec that `stylize` with these arguments sends."""
    async with AsyncClient(server.address) as client:
        await client.stylize(*args, **kwargs)
    spec: job_pb2.JobSpec = server.received["CreateJob"][-1].spec
    return spec


async def test_nothing_is_set_that_was_not_asked_for(server: ScriptedServer) -> None:
    spec = await created(server, A, B)
    expected = job_pb2.JobSpec(
        content=image_pb2.Image(reference=image_pb2.ImageReference(sha256=A.sha256)),
        options=options_pb2.StylizeOptions(),
        preview=job_pb2.PreviewOptions(),
    )
    expected.styles.add(image=image_pb2.Image(reference=image_pb2.ImageReference(sha256=B.sha256)))
    assert spec == expected


async def test_a_picture_to_start_from_travels_by_reference(server: ScriptedServer) -> None:
    spec = await created(server, A, A, initial=B)
    assert spec.initial.reference.sha256 == B.sha256
    spec = await created(server, A, A, initial=b"a start")
    assert server.uploads[spec.initial.reference.sha256] == b"a start"
    assert not spec.options.HasField("init")


async def test_styles_have_a_place(server: ScriptedServer) -> None:
    """Masks travel as pictures do; arrays of one channel are grey."""
    mask = np.eye(4, dtype=np.uint8)
    spec = await created(server, A, [Style(A, 2.0, region=B), Style(B, source_region=mask, scale=0.5), A])
    assert [style.image.reference.sha256[0] for style in spec.styles] == ["a", "b", "a"]
    assert [style.HasField("weight") for style in spec.styles] == [True, False, False]
    assert [style.HasField("scale") for style in spec.styles] == [False, True, False]
    assert spec.styles[1].scale == 0.5
    assert spec.styles[0].region.reference.sha256 == B.sha256
    assert server.uploads[spec.styles[1].source_region.reference.sha256] == mask.tobytes()
    assert [style.HasField("region") for style in spec.styles] == [True, False, False]
    assert [style.HasField("source_region") for style in spec.styles] == [False, True, False]
    spec = await created(server, A, Style(B, region=A))
    assert [style.region.reference.sha256 for style in spec.styles] == [A.sha256]


async def test_a_mask_of_the_subject_travels_by_reference(server: ScriptedServer) -> None:
    spec = await created(server, A, A, subject=b"a mask", faces=True, protection=0.75)
    assert server.uploads[spec.subject.reference.sha256] == b"a mask"
    assert (spec.options.faces, spec.options.protection) == (True, 0.75)


async def test_a_hole_needs_no_style(server: ScriptedServer) -> None:
    spec = await created(server, A, hole=b"a mask")
    assert server.uploads[spec.hole.reference.sha256] == b"a mask"
    assert not spec.styles
    spec = await created(server, A, B, hole=b"a mask")
    assert [style.image.reference.sha256 for style in spec.styles] == [B.sha256]
    with pytest.raises(ValueError, match="or a hole"):
        await created(server, A)


async def test_every_argument_has_its_place(server: ScriptedServer) -> None:
    spec = await created(
        server,
        A,
        [B, (A, 2.5)],
        size=256,
        iterations=30,
        strength=0.25,
        preview_interval=0,
        preview_max_size=128,
        result_format=EncodedFormat("jpeg", quality=90),
        preview_format=TensorFormat("uint8", "CHW"),
        priority="batch",
        optimizer="adam",
        style_layers={"relu1_1": 2, "relu2_1": 0.5},
        seed=7,
        model="vgg19",
    )
    assert [style.image.reference.sha256[0] for style in spec.styles] == ["b", "a"]
    assert [(style.HasField("weight"), style.weight) for style in spec.styles] == [(False, 0.0), (True, 2.5)]
    assert spec.options == options_pb2.StylizeOptions(
        size=256,
        iterations=30,
        strength=0.25,
        optimizer=options_pb2.OPTIMIZER_ADAM,
        style_layers=options_pb2.LayerWeights(weights={"relu1_1": 2.0, "relu2_1": 0.5}),
        seed=7,
        model="vgg19",
    )
    assert spec.preview == job_pb2.PreviewOptions(
        interval=0,
        max_size=128,
        format=image_pb2.ImageFormat(
            tensor=image_pb2.TensorFormat(dtype=image_pb2.DATA_TYPE_UINT8, layout=image_pb2.LAYOUT_CHW)
        ),
    )
    assert spec.result_format.encoded == image_pb2.EncodedFormat(codec=image_pb2.CODEC_JPEG, quality=90)
    assert spec.priority == job_pb2.PRIORITY_BATCH


@pytest.mark.parametrize(("arguments", "error", "text"), WRONG.values(), ids=WRONG)
async def test_wrong_arguments_are_named_before_anything_is_sent(
    server: ScriptedServer, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(error, match=text):
            await client.stylize(A, **{"styles": B, **arguments})
    assert not server.received


async def test_one_style_may_be_a_pair_and_many_a_tuple(server: ScriptedServer) -> None:
    assert [s.weight for s in (await created(server, A, (B, np.float32(2)))).styles] == [2.0]
    assert len((await created(server, A, (B, A))).styles) == 2
    assert len((await created(server, A, b"the bytes of one file")).styles) == 1


async def test_create_is_repeated_under_one_request_id(server: ScriptedServer) -> None:
    server.breaks["CreateJob"].extend([None, abort(grpc.StatusCode.UNAVAILABLE, "restarting"), None])
    async with AsyncClient(server.address) as client:
        await client.stylize(A, B)
        job = await client.stylize(A, B)
    first, second, third = (request.request_id for request in server.received["CreateJob"])
    assert first != second == third
    assert job.id == JOB_ID


async def test_a_given_request_id_is_used(server: ScriptedServer) -> None:
    await created(server, A, B, request_id="mine")
    assert server.received["CreateJob"][0].request_id == "mine"


async def test_deleting_is_tried_once(server: ScriptedServer) -> None:
    server.breaks["DeleteJob"].append(abort(grpc.StatusCode.UNAVAILABLE, "restarting"))
    async with AsyncClient(server.address) as client:
        await client.server_info()
        with pytest.raises(ServerUnavailable):
            await client.delete_job(JOB_ID)
        await client.delete_job(JOB_ID)
    assert [request.job_id for request in server.received["DeleteJob"]] == [JOB_ID, JOB_ID]


async def test_steering_changes_only_what_is_named(server: ScriptedServer) -> None:
    async with AsyncClient(server.address) as client:
        job = client.job(JOB_ID)
        await job.steer(strength=0.0, style_shares=[1, 2])
        await job.steer(content_weight=1, style_weight=2, tv_weight=3, priority="interactive")
        await job.steer(content_layers={"relu4_2": 1}, style_layers={"relu1_1": 2.5}, iterations=70)
        await job.pause()
        await job.resume()
    assert [request.update for request in server.received["UpdateJob"]] == [
        job_pb2.JobUpdate(strength=0.0, style_shares=[1, 2]),
        job_pb2.JobUpdate(content_weight=1, style_weight=2, tv_weight=3, priority=job_pb2.PRIORITY_INTERACTIVE),
        job_pb2.JobUpdate(content_layers={"relu4_2": 1}, style_layers={"relu1_1": 2.5}, iterations=70),
        job_pb2.JobUpdate(paused=True),
        job_pb2.JobUpdate(paused=False),
    ]


@pytest.mark.parametrize("name", ["strength", "content_weight", "style_weight", "tv_weight", "iterations"])
async def test_steering_names_what_cannot_be_sent(server: ScriptedServer, name: str) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(TypeError, match=f"{name}: must be"):
            await client.job(JOB_ID).steer(**{name: "x"})  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"{name}: must be"):
            await client.job(JOB_ID).steer(**{name: True})  # type: ignore[arg-type]
    assert not server.received


@pytest.mark.parametrize("changes", [{}, {"strength": None}, {"style_layers": {}}])
async def test_steering_nowhere_is_refused(server: ScriptedServer, changes: dict[str, Any]) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(ValueError, match="give something to change"):
            await client.job(JOB_ID).steer(**changes)
    assert not server.received


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("style_shares", "ab"),
        ("style_shares", 0.5),
        ("style_layers", {"relu1_1": "x"}),
        ("style_layers", {"\udc80": 1.0}),
        ("content_layers", "x"),
    ],
)
async def test_steering_names_the_shares_and_layers_that_cannot_be_sent(
    server: ScriptedServer, name: str, value: object
) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            await client.job(JOB_ID).steer(**{name: value})  # type: ignore[arg-type]
    assert not server.received


async def test_a_time_limit_is_sent_as_it_was_given(server: ScriptedServer) -> None:
    assert not (await created(server, A, B)).HasField("time_limit")
    for limit in (2.5, np.float16(2.5), np.float32(2.5)):
        assert (await created(server, A, B, time_limit=limit)).time_limit.ToNanoseconds() == 2_500_000_000
    assert (await created(server, A, B, time_limit=np.float32(100))).time_limit.ToNanoseconds() == 100_000_000_000
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="time_limit"):
            await created(server, A, B, time_limit=wrong)
    with pytest.raises(TypeError, match="time_limit"):
        await created(server, A, B, time_limit="2")


async def test_tenant_and_trace_travel_with_every_call(server: ScriptedServer) -> None:
    server.publish(result_event(b"png"))
    tracer = TracerProvider().get_tracer("test")
    async with AsyncClient(server.address, tenant="acme") as client:
        with tracer.start_as_current_span("caller") as span:
            job = await client.stylize(b"content", B)
            assert [event async for event in job]
            trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    assert {*server.received} >= {"UploadImage", "CreateJob", "WatchJob"}
    for metadata in server.metadata:
        assert metadata["x-nst-tenant"] == "acme"
        assert str(metadata["traceparent"]).split("-")[1] == trace_id


@pytest.mark.parametrize("tenant", ["", "Müller", "a b", "a/b", "x" * 65])
def test_what_is_no_name_of_a_tenant_is_refused(tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant: must have 1 to 64 letters"):
        AsyncClient("127.0.0.1:1", tenant=tenant)


async def test_a_trace_with_capital_letters_travels(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of AWS X-Ray, whose header gRPC takes in small letters alone."""
    monkeypatch.setattr("opentelemetry.propagate.inject", lambda headers: headers.update({"X-Amzn-Trace-Id": "Root=1"}))
    async with AsyncClient(server.address) as client:
        await client.server_info()
    assert server.metadata[0]["x-amzn-trace-id"] == "Root=1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_proxy_is_asked_for_this_machine(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with AsyncClient(f"{host}:{server.port}") as client:
        assert (await client.server_info()).version == "scripted"


async def test_without_a_trace_or_tenant_nothing_is_added(server: ScriptedServer) -> None:
    async with AsyncClient(server.address) as client:
        await client.server_info()
    assert not {"x-nst-tenant", "traceparent"} & server.metadata[0].keys()
