"""A watcher's stream: the feed's events with their pictures, counted and bounded."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from google.rpc import code_pb2

from nst.v1 import job_pb2
from nst.v1 import job_service_pb2 as pb
from nst.v1 import style_transfer_service_pb2 as making_pb2
from nst_server.config import GatewaySettings
from nst_server.gateway import metrics
from nst_server.gateway.errors import Refusal, exhausted
from nst_server.gateway.feeds import Draining, Feeds
from nst_server.gateway.gallery import Gallery
from nst_server.gateway.held_bytes import HeldBytes

RETRY_SECONDS = 5
HEARTBEAT = pb.WatchJobResponse(heartbeat=making_pb2.Heartbeat()).SerializeToString()


class Watching:
    """Opens watches while there is room for them."""

    def __init__(self, feeds: Feeds, gallery: Gallery, settings: GatewaySettings) -> None:
        self._feeds = feeds
        self._gallery = gallery
        self._shown = HeldBytes(settings.max_watch_bytes)
        self._limit = settings.max_open_watches
        self._open = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds one of the places for watchers.

        Raises:
            Refusal: all are taken.
        """
        if self._open >= self._limit:
            raise exhausted("max_open_watches", self._limit, "too many watchers on this gateway", RETRY_SECONDS)
        self._open += 1
        metrics.WATCHERS.inc()
        try:
            yield
        finally:
            self._open -= 1
            metrics.WATCHERS.dec()

    async def responses(self, job: job_pb2.Job, after_sequence: int, *, omit_pictures: bool) -> AsyncGenerator[bytes]:
        """The job's events as its watchers see them, with heartbeats where they are due.

        Each is a WatchJobResponse, serialised once for all watchers. A StylizeResponse has the same
        fields, and thus the same bytes. gRPC has a copy of each until its client takes it: where these hold too much,
        an event comes without its picture.

        Raises:
            Refusal: the gateway is shutting down.
        """
        async with aclosing(self._feeds.watch(job, after_sequence)) as events:
            try:
                async for item in events:
                    if item is None:
                        yield HEARTBEAT
                        continue
                    entry, stale = item
                    response = entry.response if omit_pictures else await self._gallery.shown(entry, job, stale=stale)
                    if not self._shown.fits(job.tenant, len(response)):
                        response = entry.response
                    with self._shown.holding(job.tenant, len(response)):
                        yield response
            except Draining as error:
                raise Refusal(
                    code_pb2.UNAVAILABLE,
                    "GATEWAY_DRAINING",
                    "this gateway is shutting down: watch the job again, another one answers",
                    retry_seconds=0.1,
                    metadata={"job_id": job.job_id},
                ) from error
