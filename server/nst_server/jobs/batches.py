"""Many messages of a stream by one request: JetStream's batched direct get."""

import asyncio
import json

from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

BATCH_MESSAGES = 128
REQUEST_SECONDS = 5.0

END_OF_BATCH, NOT_FOUND = "204", "404"


async def next_messages(client: NatsClient, stream: str, subject: str, after: int) -> list[Msg]:
    """The next messages on a subject after a place in the stream, in order, at most `BATCH_MESSAGES`.

    Any replica may answer, also one that lags: that nothing comes says nothing about the stream's
    end. A connection that breaks on the way may leave a gap.

    Raises:
        NatsTimeoutError, NoRespondersError: no whole answer came; asking again is safe.
    """
    messages: list[Msg] = []
    status: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def received(message: Msg) -> None:
        code = (message.headers or {}).get("Status")
        if code is None:
            messages.append(message)
        elif not status.done():
            status.set_result(code)

    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=received)
    try:
        request = {"seq": after + 1, "next_by_subj": subject, "batch": BATCH_MESSAGES}
        await client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
        code = await asyncio.wait_for(status, REQUEST_SECONDS)
    except TimeoutError as error:
        raise NatsTimeoutError from error
    finally:
        await subscription.unsubscribe()
    if code not in (END_OF_BATCH, NOT_FOUND):
        raise NoRespondersError
    return messages


def sequence_of(message: Msg) -> int:
    """Where the stream keeps a message of `next_messages`."""
    return int((message.headers or {})["Nats-Sequence"])
