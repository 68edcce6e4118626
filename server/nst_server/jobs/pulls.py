"""Open requests for tickets, each to the consumer of one flow.

The library's own `fetch` waits on one consumer at a time and loses what comes after it gave up.
Here the answers to all requests come to one inbox. When nobody listens to it any more, the server
drops the requests that are still open, and what it has sent until then goes back to the queue.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import Header

from nst_server.jobs.backbone import TRANSIENT
from nst_server.jobs.topology import REQUEST_GROUP, TICKETS

ANSWER_SECONDS = 0.02
OPEN_SECONDS = 30.0
CLOSE_SECONDS = 2.0
NO_CONSUMER = "503"
FULL = "full"
OVER = ("404", "408")  # nothing there; the request has waited for long enough, or stands behind others


class Pulls:
    """The requests of one wait for a ticket. An asynchronous context manager."""

    def __init__(self, nats: NatsClient, on_change: Callable[[], None], priority: int = 0) -> None:
        """`on_change` is called when a ticket comes, or a request that was left open ends.

        Of all open requests of a consumer those of the lowest `priority`, from 0 to `LAST_PRIORITY`, come first.
        """
        self.priority = priority
        self._nats = nats
        self._on_change = on_change
        self._inbox = nats.new_inbox()
        self._open: dict[str, float] = {}  # when to count the request as lost, by consumer
        self._answers: dict[str, asyncio.Future[str]] = {}
        self._messages: deque[Msg] = deque()
        self._taken: list[Msg] = []
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._nats.subscribe(f"{self._inbox}.*", cb=self._heard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        closing = asyncio.create_task(self._close())
        try:
            # It goes on when this is cancelled: the library's reader dies of a flush that is cancelled.
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        except asyncio.CancelledError:
            self._messages.extend(self._taken)  # nobody is left to work on it
            if closing.done():
                await self._give_back()
            raise

    async def _close(self) -> None:
        assert self._subscription is not None
        with suppress(TimeoutError, *TRANSIENT):
            if self._nats.is_connected:
                # Returns when the server has sent all that it is going to send here.
                await self._subscription.drain()  # type: ignore[no-untyped-call]
            else:
                await self._subscription.unsubscribe()
        await self._give_back()

    async def _give_back(self) -> None:
        while self._messages:
            with suppress(*TRANSIENT):
                await self._messages.popleft().nak()

    @property
    def ready(self) -> bool:
        """True when a ticket has come."""
        return bool(self._messages)

    def take(self) -> Msg | None:
        """A ticket that has come, to be worked on; it goes back when the requests cannot be closed."""
        if not self._messages:
            return None
        self._taken.append(self._messages.popleft())
        return self._taken[-1]

    def open_consumers(self) -> set[str]:
        """The consumers with a request that may still be answered."""
        now = asyncio.get_running_loop().time()
        self._open = {consumer: end for consumer, end in self._open.items() if end > now}
        return set(self._open)

    async def ask(self, consumer: str) -> str:
        """Asks for a ticket that is there now: the status of the refusal, empty when one has come.

        A request without an answer stays open, and the status is `FULL`: the flow has tickets, but
        as many of them are leased as its tenant may run at once.
        """
        answer = self._answers[consumer] = asyncio.get_running_loop().create_future()
        await self._request(consumer, {"batch": 1, "no_wait": True})
        try:
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError:
            return FULL
        finally:
            del self._answers[consumer]

    async def wait(self, consumer: str) -> None:
        """Leaves a request open for the next ticket that comes free."""
        await self._request(consumer, {"batch": 1, "expires": int(OPEN_SECONDS * 1e9)})

    async def _request(self, consumer: str, request: dict[str, object]) -> None:
        self._open[consumer] = asyncio.get_running_loop().time() + OPEN_SECONDS
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{TICKETS}.{consumer}"
        data = json.dumps({**request, "group": REQUEST_GROUP, "priority": self.priority}).encode()
        await self._nats.publish(subject, data, reply=f"{self._inbox}.{consumer}")

    async def _heard(self, message: Msg) -> None:
        status = (message.headers or {}).get(Header.STATUS.value)
        if status is None:
            consumer = message.metadata.consumer
            self._messages.append(message)
        else:
            consumer = message.subject.removeprefix(f"{self._inbox}.")
        self._open.pop(consumer, None)
        answer = self._answers.get(consumer)
        if answer is not None and not answer.done():
            answer.set_result(status or "")
        elif status is None or status in OVER:
            self._on_change()
