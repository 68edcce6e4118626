"""What a client makes of a server's answers."""

import asyncio
import io
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from scripted_server import (
    JOB_ID,
    ScriptedServer,
    abort,
    encoded,
    out_of_time_event,
    preview_event,
    progress_event,
    result_event,
    result_messages,
    state_event,
)

from nst.v1 import image_pb2, job_pb2
from nst_client import AsyncClient, ImageRef, JobCancelled, JobFailed, JobState, NstError, ProgressEvent, ResultEvent

A, B = ImageRef("a" * 64), ImageRef("b" * 64)


def picture_file() -> bytes:
    """A PNG file, 4 x 3."""
    png = io.BytesIO()
    Image.new("RGB", (4, 3), "teal").save(png, "PNG")
    return png.getvalue()


async def test_a_change_has_a_number_that_progress_comes_to(server: ScriptedServer) -> None:
    server.publish(state_event(job_pb2.JOB_STATE_RUNNING), progress_event(1), progress_event(2, control_version=1))
    async with AsyncClient(server.address) as client:
        job = client.job(JOB_ID)
        assert [(await job.steer(strength=0.5)).control_version, (await job.pause()).control_version] == [1, 2]
        assert (await job.status()).control_version == 2
        server.publish(result_event(b"png"))
        told = [event.control_version async for event in job if isinstance(event, ProgressEvent)]
    assert told == [0, 1]


async def test_the_result_is_awaited_and_decoded(server: ScriptedServer) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    async with AsyncClient(server.address) as client:
        job = await client.stylize(A, B)
        following = asyncio.create_task(_last(job))
        server.publish(state_event(job_pb2.JOB_STATE_RUNNING), progress_event(1), result_event(png.getvalue()))
        event = await following
        assert isinstance(event, ResultEvent)
        assert np.array_equal(np.asarray(event.image), pixels)
        assert event.picture is not None
        assert event.picture.data == png.getvalue()
        assert np.array_equal(np.asarray(await job.result()), pixels)
    assert "GetResult" not in server.received


async def _last(job: Any) -> Any:
    return [event async for event in job][-1]


async def test_a_failed_job_raises_why(server: ScriptedServer) -> None:
    error = job_pb2.JobError(code=8, reason="OUT_OF_MEMORY", message="use a smaller size")
    server.publish(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_FAILED, error=error))
    async with AsyncClient(server.address) as client:
        with pytest.raises(JobFailed, match="use a smaller size") as caught:
            await client.job(JOB_ID).result()
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert caught.value.job_id == JOB_ID


async def test_a_job_out_of_time_raises_with_its_best_picture(server: ScriptedServer) -> None:
    server.publish(out_of_time_event(iterations=7))
    server.result = result_messages(picture_file())
    async with AsyncClient(server.address) as client:
        job = client.job(JOB_ID)
        with pytest.raises(JobFailed, match="the time limit passed") as caught:
            await job.result()
        with pytest.raises(JobFailed) as at_hand:
            await job.wait()
        with pytest.raises(JobFailed) as asked_for:
            await job.result("jpeg")
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert error.partial is not None
    assert error.partial.data == picture_file()
    assert isinstance(error.picture, Image.Image)
    assert error.picture.size == (4, 3)
    assert at_hand.value.picture is None, "waiting fetches no picture"
    assert asked_for.value.picture is not None
    assert server.received["GetResult"][1].format.encoded.codec == image_pb2.CODEC_JPEG


async def test_a_job_out_of_time_whose_picture_is_gone_raises_without(server: ScriptedServer) -> None:
    server.publish(out_of_time_event())
    server.breaks["GetResult"].append(abort(grpc.StatusCode.NOT_FOUND, "the result is no longer stored"))
    async with AsyncClient(server.address) as client:
        with pytest.raises(JobFailed, match="the time limit passed") as caught:
            await client.job(JOB_ID).result()
    assert caught.value.picture is None


async def test_a_cancelled_job_raises_so(server: ScriptedServer) -> None:
    server.publish(state_event(job_pb2.JOB_STATE_RUNNING))
    async with AsyncClient(server.address) as client:
        job = client.job(JOB_ID)
        assert (await job.cancel()).state is JobState.CANCELLED
        with pytest.raises(JobCancelled, match="cancelled by the client"):
            await job.result()


async def test_pictures_can_be_left_out(server: ScriptedServer) -> None:
    server.publish(preview_event(1, b"png"), result_event(b"png"))
    async with AsyncClient(server.address) as client:
        bare = [event.picture async for event in client.job(JOB_ID).events(omit_pictures=True)]
        whole = [event.picture async for event in client.job(JOB_ID).events()]
    assert bare == [None, None]
    assert [picture.data for picture in whole] == [b"png", b"png"]


async def test_large_messages_pass(server: ScriptedServer) -> None:
    server.publish(preview_event(1, bytes(20 * 2**20)), result_event(b"png"))
    async with AsyncClient(server.address) as client:
        first, _ = [event async for event in client.job(JOB_ID)]
    assert len(first.picture.data) == 20 * 2**20


async def test_an_ending_that_is_none_is_an_error(server: ScriptedServer) -> None:
    event = progress_event(1)
    event.job_state = job_pb2.JOB_STATE_SUCCEEDED
    server.publish(event)
    async with AsyncClient(server.address) as client:
        with pytest.raises(NstError, match="ends no history"):
            await client.job(JOB_ID).result()


def test_the_picture_of_an_event_is_decoded_once() -> None:
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    from nst_client.decoding import decode_event

    event = decode_event(job_pb2.JobEvent(preview=job_pb2.Preview(image=encoded(png.getvalue()))))
    assert event.image is event.image  # type: ignore[union-attr]
