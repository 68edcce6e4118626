"""GetServerInfo tells what the server is, and a job that it cannot run is refused when it is made."""

import asyncio
from collections.abc import Iterator
from importlib.metadata import version

import grpc
import nats
import pytest
from gateway_support import SECONDS, file_of, pixels, refusal_of, running_gateway, tiny_spec, upload

from nst.internal.v1.job_record_pb2 import Announcement
from nst.v1.style_transfer_service_pb2 import GetServerInfoRequest, GetServerInfoResponse
from nst_calls import Calls, calls
from nst_engine.networks import NETWORKS
from nst_processes import running_nats
from nst_server.jobs.topology import PICTURES

CAFFE, TORCHVISION = "vgg16-caffe", "vgg19-torchvision"


def info_of(call: Calls) -> GetServerInfoResponse:
    return call.making.GetServerInfo(GetServerInfoRequest(), timeout=SECONDS)


def test_a_running_server_tells_of_itself(call):
    info = info_of(call)
    assert info.version == version("nst-serve")
    assert {model.name: tuple(model.taps) for model in info.models} == {
        name: network.taps for name, network in NETWORKS.items()
    }
    assert all(model.credit and model.description for model in info.models)
    assert next(model for model in info.models if model.name == CAFFE).available
    (model_server,) = info.model_servers
    assert model_server.device
    assert info.limits["max_image_side"] >= info.limits["max_size"] > info.limits["min_image_side"] > 0
    assert set(info.ranges) <= set(info.defaults.DESCRIPTOR.fields_by_name)
    for name, allowed in info.ranges.items():
        if info.defaults.HasField(name):
            assert allowed.minimum <= getattr(info.defaults, name) <= allowed.maximum, name


def test_without_a_model_server_jobs_wait_for_one(idle):
    info = info_of(idle)
    assert list(info.model_servers) == []
    assert not any(model.available for model in info.models)
    assert idle.create(tiny_spec(model=TORCHVISION))


async def announce(nats_url: str, announcement: Announcement) -> None:
    client = await nats.connect(nats_url)
    bucket = await client.jetstream().key_value("nst_model_servers")
    await bucket.put(announcement.server.name, announcement.SerializeToString())
    await client.close()


async def stored_messages(nats_url: str) -> int:
    """Of pictures."""
    client = await nats.connect(nats_url)
    info = await client.jetstream().stream_info(PICTURES.stream)
    await client.close()
    return info.state.messages


def test_a_model_whose_weights_no_model_server_has(tmp_path):
    with (
        running_nats(tmp_path) as nats_url,
        running_gateway(tmp_path, nats_url) as gateway,
        calls(gateway.address) as call,
    ):
        server = {"name": "one", "device": "a device", "running_jobs": 3}
        asyncio.run(announce(nats_url, Announcement(server=server, models=[CAFFE])))
        info = info_of(call)
        assert [(server.name, server.device, server.running_jobs) for server in info.model_servers] == [
            ("one", "a device", 3)
        ]
        assert [model.name for model in info.models if model.available] == [CAFFE]
        refused = refusal_of(lambda: call.create(tiny_spec(model=TORCHVISION)))
        assert asyncio.run(stored_messages(nats_url)) == 0
        assert call.create(tiny_spec(model=CAFFE))
        assert asyncio.run(stored_messages(nats_url)) > 0
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_UNAVAILABLE")
    assert list(refused.fields) == ["spec.options.model"]
    assert f"nst weights pull {TORCHVISION}" in refused.message


def test_faces_that_no_model_server_can_find(tmp_path):
    with (
        running_nats(tmp_path) as nats_url,
        running_gateway(tmp_path, nats_url) as gateway,
        calls(gateway.address) as call,
    ):
        servers = [
            Announcement(server={"name": "without"}, models=[CAFFE], finds_faces=False),
            Announcement(server={"name": "other"}, models=[TORCHVISION], finds_faces=True),
        ]
        for server in servers:
            asyncio.run(announce(nats_url, server))
        refused = refusal_of(lambda: call.create(tiny_spec(model=CAFFE, faces=True)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FACES_UNAVAILABLE")
        assert list(refused.fields) == ["spec.options.faces"]
        assert call.create(tiny_spec(model=CAFFE))
        assert call.create(tiny_spec(model=TORCHVISION, faces=True))
        # One of before this was told may do it.
        asyncio.run(announce(nats_url, Announcement(server={"name": "old"}, models=[CAFFE])))
        assert call.create(tiny_spec(model=CAFFE, faces=True))


def test_a_job_that_was_made_is_told_of_again_though_its_model_is_gone(tmp_path):
    """As where the answer was lost, and the only server with its weights is being restarted."""
    with (
        running_nats(tmp_path) as nats_url,
        running_gateway(tmp_path, nats_url) as gateway,
        calls(gateway.address) as call,
    ):
        spec = tiny_spec(model=TORCHVISION)
        made = call.create(spec, "request")
        (tmp_path / "other").mkdir()
        with running_gateway(tmp_path / "other", nats_url) as other, calls(other.address) as again:
            asyncio.run(announce(nats_url, Announcement(server={"name": "one"}, models=[CAFFE])))
            assert again.create(spec, "request") == made
            assert refusal_of(lambda: again.create(spec, "another")).reason == "MODEL_UNAVAILABLE"


def fill(call: Calls) -> Iterator[None]:
    """Jobs with pictures of their own, until the store refuses one."""
    for seed in range(1000):
        upload(call, file_of(pixels(seed=seed)))
        call.create(tiny_spec(seed=seed))
        yield


@pytest.mark.parametrize("limit", ["NST_MAX_PICTURE_BYTES", "NST_MAX_RECORD_BYTES", "NST_MAX_EVENT_BYTES"])
def test_a_full_store_refuses_and_goes_on_answering(tmp_path, limit):
    with (
        running_nats(tmp_path) as nats_url,
        running_gateway(tmp_path, nats_url, **{limit: "25000"}) as gateway,
        calls(gateway.address) as call,
    ):
        refused = refusal_of(lambda: fill(call))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
        name = limit.removeprefix("NST_").lower()
        assert (refused.metadata, refused.retry_seconds > 0) == ({"limit": name}, True)
        assert name in refused.message
        assert info_of(call).models
        assert gateway.logged("call failed") == []
