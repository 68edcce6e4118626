"""The nudge that makes a model server look at a job's record now. The record itself is the truth."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nst_server.jobs.backbone import TRANSIENT, Backbone


def control_subject(job_id: str) -> str:
    """Where a job's nudges go."""
    return f"nst.control.{job_id}"


async def nudge(backbone: Backbone, job_id: str) -> None:
    """Tells whoever works on the job to look; lost nudges are made up for by polling."""
    with suppress(*TRANSIENT):
        await backbone.nats.publish(control_subject(job_id), b"")


async def on_nudge(backbone: Backbone, job_id: str, look: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    """Calls `look` at each nudge, until the returned function is awaited."""

    async def received(message: Msg) -> None:
        look()

    subscription: Subscription = await backbone.nats.subscribe(control_subject(job_id), cb=received)
    return subscription.unsubscribe
