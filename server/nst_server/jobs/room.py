"""Room in the store that is kept for the jobs that are there already, so that they can end."""

from nst_server.jobs.backbone import Backbone, StoreFull, persistently
from nst_server.jobs.topology import LIMITS

FOR_WHAT_IS_NEW = 0.8


async def check_room(backbone: Backbone, stream: str, *, patience: float | None) -> None:
    """Refuses what is new once a stream is fuller than that; `patience` as for all that asks NATS.

    Raises:
        StoreFull: the part for what is new is used up.
    """
    info = await persistently(lambda: backbone.jetstream.stream_info(stream), seconds=patience)
    limit = info.config.max_bytes or -1
    if limit > 0 and info.state.bytes > FOR_WHAT_IS_NEW * limit:
        raise StoreFull(LIMITS[stream], "the rest is for the jobs that are there already")
