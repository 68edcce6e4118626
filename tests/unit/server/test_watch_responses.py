"""A serialised response to a watcher is the same bytes on either stream, and what all of them hold is bounded."""

from collections.abc import AsyncIterator
from typing import Any

from nst.v1 import job_pb2
from nst.v1.job_service_pb2 import WatchJobResponse
from nst.v1.style_transfer_service_pb2 import StylizeResponse
from nst_server.config import GatewaySettings
from nst_server.gateway.feeds import Entry
from nst_server.gateway.watching import HEARTBEAT, Watching

PICTURED = b"an event and its picture"


def test_both_streams_have_the_same_fields():
    fields = [
        [(field.number, field.name, field.message_type) for field in message.DESCRIPTOR.fields]
        for message in (WatchJobResponse, StylizeResponse)
    ]
    assert fields[0] == fields[1]


def test_an_event_reads_as_either():
    event = job_pb2.JobEvent(job_id="job", sequence=3, progress=job_pb2.Progress(iteration=7, losses={"tv": 1.0}))
    response = Entry(event, 9).response
    assert WatchJobResponse.FromString(response).event == event
    assert StylizeResponse.FromString(response).event == event


def test_a_heartbeat_reads_as_either():
    assert WatchJobResponse.FromString(HEARTBEAT).WhichOneof("message") == "heartbeat"
    assert StylizeResponse.FromString(HEARTBEAT).WhichOneof("message") == "heartbeat"


class Feeds:
    """Events without end."""

    async def watch(self, job: job_pb2.Job, after: int) -> AsyncIterator[tuple[Entry, bool]]:
        while True:
            yield Entry(job_pb2.JobEvent(sequence=1), 1), False


class Gallery:
    """Every event has a picture."""

    async def shown(self, entry: Entry, job: job_pb2.Job, *, stale: bool) -> bytes:
        return PICTURED


async def test_watchers_that_do_not_read_leave_others_their_events_without_pictures():
    """Of memory for four, one tenant gets what two take."""
    settings: Any = GatewaySettings(max_watch_bytes=4 * len(PICTURED))
    watching = Watching(Feeds(), Gallery(), settings)  # type: ignore[arg-type]
    bare = Entry(job_pb2.JobEvent(sequence=1), 1).response

    def watch(tenant: str) -> Any:
        return watching.responses(job_pb2.Job(tenant=tenant), 0, omit_pictures=False)

    first, second, third, other, last = (watch(tenant) for tenant in ("a", "a", "a", "b", "c"))
    taken = [await anext(one) for one in (first, second, third, other, last)]
    assert taken == [PICTURED, PICTURED, bare, PICTURED, bare], "4 bytes of the third do not leave room for the last"
    await first.aclose()
    assert await anext(third) == PICTURED
    for one in (second, third, other, last):
        await one.aclose()
    assert await anext(watch("a")) == PICTURED
