"""What watchers are shown of the pictures that are stored."""

import numpy as np

from nst.v1 import job_pb2
from nst.v1.job_service_pb2 import WatchJobResponse
from nst_server import pictures
from nst_server.config import GatewaySettings
from nst_server.gateway.feeds import Entry
from nst_server.gateway.gallery import Gallery


class Previews:
    """Has one picture for each job."""

    async def get(self, owner: str, digest: str) -> bytes:
        return pictures.encode_png(np.full((8, 8, 3), ord(owner[0]), np.uint8))


async def test_a_stream_that_counts_again_shows_nobody_the_pictures_of_before():
    gallery = Gallery(lambda tenant: None, Previews(), GatewaySettings())
    shown = []
    for job_id in "ab":
        event = job_pb2.JobEvent(job_id=job_id, sequence=2, preview=job_pb2.Preview(iteration=1))
        response = await gallery.shown(Entry(event, stream_sequence=7), job_pb2.Job(job_id=job_id), stale=False)
        shown.append(WatchJobResponse.FromString(response).event)
    assert [event.job_id for event in shown] == ["a", "b"]
    assert shown[0].preview.image != shown[1].preview.image
