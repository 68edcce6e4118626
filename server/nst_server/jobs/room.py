"""Room in the store that is kept for the jobs that are there already, so that they can end."""

import math
import time

from nst_server.jobs.backbone import Backbone, StoreFull, persistently
from nst_server.jobs.topology import LIMITS

FOR_WHAT_IS_NEW = 0.8
# So much more is not written in a second.
PLENTY_BYTES = 64 * 2**20
PLENTY_SECONDS = 1.0


class Room:
    """Whether streams have room for what is new."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._backbone = backbone
        self._patience = patience
        self._plenty_until: dict[str, float] = {}

    async def check(self, stream: str) -> None:
        """Refuses what is new once a stream is fuller than that.

        Raises:
            StoreFull: the part for what is new is used up.
        """
        if time.monotonic() < self._plenty_until.get(stream, 0.0):
            return
        info = await persistently(lambda: self._backbone.jetstream.stream_info(stream), seconds=self._patience)
        limit = info.config.max_bytes or -1
        left = FOR_WHAT_IS_NEW * limit - info.state.bytes if limit > 0 else math.inf
        if left < 0:
            raise StoreFull(LIMITS[stream], "the rest is for the jobs that are there already")
        if left > PLENTY_BYTES:
            self._plenty_until[stream] = time.monotonic() + PLENTY_SECONDS
