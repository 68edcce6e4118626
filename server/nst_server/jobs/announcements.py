"""What the model servers that are alive tell of themselves."""

import contextlib
from functools import partial

from nats.js.errors import KeyNotFoundError

from nst.internal.v1.job_record_pb2 import Announcement
from nst_server.jobs.backbone import Backbone, bucket_keys, persistently
from nst_server.jobs.topology import SERVERS


async def announcements(backbone: Backbone, *, patience: float | None) -> list[Announcement]:
    """Of each model server that is alive, its latest; by name.

    `patience` is how long to keep trying while NATS is away, in seconds; None is for ever.
    """
    found = []
    for name in sorted(await bucket_keys(backbone, SERVERS, seconds=patience)):
        with contextlib.suppress(KeyNotFoundError):
            entry = await persistently(partial(backbone.servers.get, name), seconds=patience)
            found.append(Announcement.FromString(entry.value or b""))
    return found


def may_find_faces(server: Announcement) -> bool:
    """Whether a model server can find faces, as far as it tells."""
    return server.finds_faces or not server.HasField("finds_faces")
