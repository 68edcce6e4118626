"""The job of a Stylize stream that breaks for good is cancelled."""

import asyncio
from unittest.mock import Mock

import pytest

from nst.v1 import job_pb2
from nst_server.gateway.stylize_stream import StylizeStreams
from nst_server.jobs.backbone import BackboneUnavailable


class Commands:
    """What cancels after some tries have ended with an error."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.cancelled: list[str] = []

    async def cancel(self, job_id: str) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.cancelled.append(job_id)


async def made() -> job_pb2.Job:
    return job_pb2.Job(job_id="job")


@pytest.mark.parametrize(
    ("errors", "cancelled"), [([BackboneUnavailable(), BackboneUnavailable()], ["job"]), ([KeyError()], [])]
)
async def test_it_is_tried_for_as_long_as_nats_is_away(errors, cancelled):
    commands = Commands(*errors)
    streams = StylizeStreams(commands, *[Mock()] * 7)
    streams._cancel(asyncio.create_task(made()))
    await asyncio.wait(streams._cancelling, timeout=5)
    assert commands.cancelled == cancelled
