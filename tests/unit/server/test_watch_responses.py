"""A serialised response to a watcher is the same bytes on either stream."""

from nst.v1 import job_pb2
from nst.v1.job_service_pb2 import WatchJobResponse
from nst.v1.style_transfer_service_pb2 import StylizeResponse
from nst_server.gateway.feeds import Entry
from nst_server.gateway.watching import HEARTBEAT


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
