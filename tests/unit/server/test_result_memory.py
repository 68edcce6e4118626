"""What results hold while they are sent."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from nst.v1 import image_pb2
from nst_server import pictures
from nst_server.config import GatewaySettings
from nst_server.gateway.errors import Refusal
from nst_server.gateway.result_memory import ResultMemory


@pytest.fixture
def memory() -> ResultMemory:
    return ResultMemory(GatewaySettings(max_result_bytes=100, result_timeout_seconds=0.05))


async def test_a_tenant_gets_half_and_all_get_no_more_than_there_is(memory):
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(memory.part("a", 40))
        for tenant, size in (("a", 20), ("b", 70)):
            with pytest.raises(Refusal, match="max_result_bytes"):
                await stack.enter_async_context(memory.part(tenant, size))
        await stack.enter_async_context(memory.part("b", 50))
    async with memory.part("a", 1000):  # one that is alone always fits
        pass


async def test_what_nobody_takes_is_dropped_and_its_memory_is_free(memory):
    async def hold() -> None:
        async with memory.part("a", 100):
            await asyncio.Event().wait()

    with pytest.raises(Refusal, match="result_timeout_seconds"):
        await hold()
    async with memory.part("a", 30), memory.part("a", 20):
        pass


@pytest.mark.parametrize(
    ("form", "size"),
    [
        (image_pb2.ImageFormat(encoded={"codec": image_pb2.CODEC_PNG}), 300),
        (image_pb2.ImageFormat(tensor={"dtype": image_pb2.DATA_TYPE_UINT8}), 300),
        (image_pb2.ImageFormat(tensor={"dtype": image_pb2.DATA_TYPE_BFLOAT16}), 600),
        (image_pb2.ImageFormat(tensor={"dtype": image_pb2.DATA_TYPE_FLOAT32}), 1200),
    ],
)
def test_the_size_of_a_result_follows_from_its_form(form, size):
    assert pictures.most_bytes(20, 5, form) == size
