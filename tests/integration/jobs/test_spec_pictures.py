"""What pictures cost whoever makes jobs of them, on a real nats-server."""

import asyncio
from functools import partial

import pytest

from nst.v1 import image_pb2, job_pb2
from nst_server import pictures
from nst_server.config import GatewaySettings
from nst_server.gateway import specs as specs_module
from nst_server.gateway.errors import Refusal
from nst_server.gateway.quotas import PictureQuota, whole_chunks
from nst_server.gateway.specs import SpecReader
from nst_server.jobs.blobs import PictureStore


@pytest.fixture
def stored(backbone):
    return partial(PictureStore, backbone, patience=5)


def reader(stored, **changed) -> SpecReader:
    settings = GatewaySettings(**changed)
    return SpecReader(stored, PictureQuota(stored, settings), settings, pictures.PictureLimits(2**26, 10**7))


def grey(level: int, side: int = 16) -> image_pb2.Image:
    """A flat picture."""
    tensor = image_pb2.Tensor(
        dtype=image_pb2.DATA_TYPE_UINT8,
        shape=[side, side, 3],
        layout=image_pb2.LAYOUT_HWC,
        data=bytes([level]) * (3 * side * side),
    )
    return image_pb2.Image(tensor=tensor)


def masked(level: int) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(content=grey(100), styles=[job_pb2.Style(image=grey(50), region=grey(level))])


async def completed(specs: SpecReader, spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    return await specs.complete("tenant", spec, specs.check(spec), {})


async def test_a_mask_is_decoded_for_the_first_job_alone(stored, monkeypatch):
    decoded = []
    check = pictures.check_mask

    def counted(*given):
        decoded.append(given)
        return check(*given)

    monkeypatch.setattr(pictures, "check_mask", counted)
    monkeypatch.setattr(specs_module, "KNOWN_MASKS", 2)
    specs = reader(stored)
    for level in (101, 102, 101, 102):
        await completed(specs, masked(level))
    assert len(decoded) == 2
    for level in (103, 101):  # no more than so many are known
        await completed(specs, masked(level))
    assert len(decoded) == 4
    for _ in range(2):  # one that marks nothing never is
        with pytest.raises(Refusal, match="black all over"):
            await completed(specs, masked(0))


async def test_pictures_that_come_together_do_not_pass_the_quota_together(stored):
    room = 3 * whole_chunks(1)
    specs = reader(stored, max_tenant_bytes=room)
    wanted = [job_pb2.JobSpec(content=grey(level), styles=[job_pb2.Style(image=grey(0))]) for level in range(1, 9)]
    completing = (completed(specs, spec) for spec in wanted)
    outcomes = await asyncio.gather(*completing, return_exceptions=True)
    assert sum(isinstance(outcome, Refusal) for outcome in outcomes) >= 5
    assert await stored("tenant").size() <= room
