"""Pictures move in chunks, and what arrives is what was sent."""

import hashlib
import io
import time

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from PIL import Image
from scripted_server import JOB_ID, ScriptedServer, abort, result_event, result_messages
from tcp_proxy import TcpProxy

from nst.v1 import image_pb2
from nst_client import AsyncClient, ImageRef, InvalidRequest, NstError, ServerUnavailable, TensorFormat, transfer

CHUNK = 512 * 1024


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
async def test_uploads_in_chunks(server: ScriptedServer, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    async with AsyncClient(server.address) as client:
        reference = await client.upload(data)
    assert reference == ImageRef(hashlib.sha256(data).hexdigest())
    assert (reference.width, reference.height) == (4, 3)
    header, *chunks = server.received["UploadImage"][0]
    assert header.header.size == size
    assert not header.header.HasField("tensor")
    assert server.uploads[reference.sha256] == data
    assert [message.chunk.offset for message in chunks] == list(range(0, size, CHUNK))
    assert all(len(message.chunk.data) <= CHUNK for message in chunks)


async def test_a_tensors_form_goes_in_the_header(server: ScriptedServer) -> None:
    array = np.linspace(0, 1, 3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    async with AsyncClient(server.address) as client:
        await client.upload(array)
    header = server.received["UploadImage"][0][0].header
    assert header.tensor == image_pb2.TensorHeader(
        dtype=image_pb2.DATA_TYPE_FLOAT32, shape=[3, 4, 5], layout=image_pb2.LAYOUT_CHW
    )
    assert header.size == array.nbytes


async def test_a_broken_upload_starts_over(server: ScriptedServer) -> None:
    data = np.random.default_rng(0).bytes(CHUNK + 5)
    with TcpProxy(server.port) as proxy:
        server.breaks["UploadImage"].append(lambda context: proxy.reset())
        async with AsyncClient(proxy.address) as client:
            await client.server_info()
            await client.upload(data)
    assert len(server.received["UploadImage"]) == 2
    assert list(server.uploads.values()) == [data]


async def test_an_upload_whose_refusal_was_lost_is_refused_again(server: ScriptedServer) -> None:
    lost = abort(grpc.StatusCode.INTERNAL, "Internal error from Core")
    refusal = abort(grpc.StatusCode.INVALID_ARGUMENT, "too large", error_details_pb2.ErrorInfo(reason="TOO_MANY_BYTES"))
    server.breaks["UploadImage"].extend([lost, refusal])
    async with AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequest, match="too large"):
            await client.upload(b"a picture")


async def test_a_result_too_big_for_its_event_is_fetched(server: ScriptedServer) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    server.result = result_messages(png.getvalue())
    server.publish(result_event(None))
    async with AsyncClient(server.address) as client:
        result = await client.job(JOB_ID).result()
    assert len(server.result) > 2
    assert np.array_equal(np.asarray(result), pixels)
    assert not server.received["GetResult"][0].HasField("format")


async def test_a_result_in_another_form(server: ScriptedServer) -> None:
    pixels = np.random.default_rng(2).random((3, 4, 5)).astype(np.float32)
    form = image_pb2.TensorHeader(dtype=image_pb2.DATA_TYPE_FLOAT32, shape=[3, 4, 5], layout=image_pb2.LAYOUT_CHW)
    server.result = result_messages(pixels.tobytes(), chunk=7, tensor=form)
    server.publish(result_event(b"the PNG of the event"))
    async with AsyncClient(server.address) as client:
        result = await client.job(JOB_ID).result(TensorFormat("float32", "CHW"))
    assert np.array_equal(result, pixels)
    asked = server.received["GetResult"][0].format.tensor
    assert (asked.dtype, asked.layout) == (image_pb2.DATA_TYPE_FLOAT32, image_pb2.LAYOUT_CHW)


@pytest.mark.parametrize(
    "damage",
    [
        "another digest",
        "a chunk is missing",
        "the end is missing",
        "the end is missing, and there is no digest",
        "chunks change places",
    ],
)
async def test_a_damaged_result_is_noticed(server: ScriptedServer, damage: str) -> None:
    messages = result_messages(b"0123456789" * 3, chunk=10)
    match damage:
        case "another digest":
            messages = result_messages(b"0123456789", sha256="0" * 64)
        case "a chunk is missing":
            del messages[2]
        case "the end is missing":
            del messages[3]
        case "the end is missing, and there is no digest":
            messages = result_messages(b"0123456789" * 3, chunk=10, sha256="")[:-1]
        case "chunks change places":
            messages[1], messages[2] = messages[2], messages[1]
    server.result = messages
    server.publish(result_event(None))
    async with AsyncClient(server.address) as client:
        with pytest.raises(NstError, match="damaged") as caught:
            await client.job(JOB_ID).result()
    assert caught.value.code is grpc.StatusCode.DATA_LOSS


async def test_a_broken_download_starts_over(server: ScriptedServer) -> None:
    server.result = result_messages(b"0123456789" * 3, chunk=10)
    server.breaks["GetResult/chunk"].append(abort(grpc.StatusCode.UNAVAILABLE, "draining"))
    server.publish(result_event(None))
    async with AsyncClient(server.address) as client:
        picture = await client.job(JOB_ID).result_picture()
    assert picture.data == b"0123456789" * 3
    assert len(server.received["GetResult"]) == 2


async def test_what_falls_silent_starts_over(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_SILENCE_SECONDS", 0.3)
    server.result = result_messages(b"0123456789" * 3, chunk=10)
    server.publish(result_event(None))
    server.breaks["UploadImage"].append(server.stay_silent)
    server.breaks["GetResult/chunk"].append(server.stay_silent)
    async with AsyncClient(server.address) as client:
        assert (await client.upload(b"a picture")).sha256 in server.uploads
        assert (await client.job(JOB_ID).result_picture()).data == b"0123456789" * 3
    assert len(server.received["UploadImage"]) == len(server.received["GetResult"]) == 2


async def test_what_stays_silent_is_given_up(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_SILENCE_SECONDS", 0.1)
    server.breaks["UploadImage"].extend([server.stay_silent] * 10)
    async with AsyncClient(server.address, reconnect_timeout=0.1) as client:
        with pytest.raises(ServerUnavailable, match="fell silent"):
            await client.upload(b"a picture")


async def test_what_is_slow_is_not_silent(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_SILENCE_SECONDS", 1.0)
    server.result = result_messages(b"0123456789" * 3, chunk=10)
    server.publish(result_event(None))
    for place in ("GetResult", "GetResult/chunk"):
        server.breaks[place].append(lambda context: time.sleep(0.6))
    async with AsyncClient(server.address) as client:
        await client.job(JOB_ID).result_picture()
    assert len(server.received["GetResult"]) == 1
