"""Where model servers get their tickets: one flow of them for each lane and tenant.

Model servers choose which flow is served next. Which flows have tickets they read off the stream,
which counts leased tickets too; whether one is to be had only the flow's consumer knows. A look
asks the consumers of interest, best first. When none has a ticket, a request is left open with
each, so that a ticket that comes free, by a lease that ran out above all, comes by itself.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import NamedTuple

from nats.aio.msg import Msg
from nats.js.api import StreamInfo
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from nst_server.jobs.backbone import REQUEST_SECONDS, START_SECONDS, TRANSIENT, Backbone, persistently
from nst_server.jobs.pulls import NO_CONSUMER, Pulls
from nst_server.jobs.topology import TICKET_PREFIX, TICKETS, QueueRules, tenant_of, tenant_token, ticket_consumer

WAKE_SUBJECT = "nst.wake"
IDLE_SECONDS = 1.0
# A flow without a free ticket is asked again after this long, but of many only so many in one look.
DRY_SECONDS = 1.0
DRY_FLOWS_ASKED = 16


class Flow(NamedTuple):
    """The tickets of one tenant in one lane. Tickets of before there were tenants' flows have no tenant."""

    lane: str
    tenant: str

    @classmethod
    def of(cls, subject: str) -> "Flow":
        """The flow of a ticket's subject."""
        lane, _, token = subject.removeprefix(f"{TICKET_PREFIX}.").partition(".")
        return cls(lane, tenant_of(token))

    @property
    def subject(self) -> str:
        """Where its tickets are published."""
        return ".".join([TICKET_PREFIX, self.lane, *filter(None, [tenant_token(self.tenant)])])

    @property
    def consumer(self) -> str:
        """The consumer that hands its tickets out."""
        return "-".join([self.lane, *filter(None, [tenant_token(self.tenant)])])


Rank = Callable[[Sequence[Flow]], Sequence[Flow]]


class TicketSource:
    """Hands out tickets to a model server, one call at a time."""

    def __init__(self, backbone: Backbone) -> None:
        self.lease_seconds = 0.0
        self._backbone = backbone
        self._nats = backbone.nats
        self._stirred = asyncio.Event()
        self._dry: dict[Flow, tuple[int, float]] = {}  # how many tickets it had, and when it was asked
        self._reconnects = 0

    async def open(self) -> None:
        """Listens for new tickets, and learns for how long the queue waits for a silent holder."""
        self.lease_seconds = (await persistently(self._rules, seconds=START_SECONDS)).lease_seconds
        await self._nats.subscribe(WAKE_SUBJECT, cb=self._on_wake)

    async def next(self, rank: Rank) -> Msg:
        """Waits for the next ticket.

        Whenever something may have changed, `rank` gets the flows that have tickets, leased ones
        among them, and returns those that may be served now, in the order to look into them.
        """
        while True:
            async with Pulls(self._nats, self._stirred.set) as pulls:
                await self._wait(pulls, rank)
                message = pulls.take()
            if message is not None:
                return message

    def nudge(self) -> None:
        """Makes a waiting `next` look again at once."""
        self._stirred.set()

    async def _wait(self, pulls: Pulls, rank: Rank) -> None:
        """Returns when a ticket has come, or when what was asked for is not what is wanted any more."""
        while True:
            self._stirred.clear()
            with suppress(APIError, *TRANSIENT):
                if await self._look(pulls, rank):
                    return
            try:
                await asyncio.wait_for(self._stirred.wait(), IDLE_SECONDS)
            except TimeoutError:
                continue

    async def _look(self, pulls: Pulls, rank: Rank) -> bool:
        if pulls.ready or self._reconnected():
            return True
        info = await self._info()
        counts = {Flow.of(subject): count for subject, count in (info.state.subjects or {}).items()}
        self._dry = {flow: asked for flow, asked in self._dry.items() if flow in counts}
        wanted = {flow.consumer: flow for flow in rank(list(counts))}
        open_consumers = pulls.open_consumers()
        if not open_consumers <= wanted.keys():
            return True
        unasked = [flow for consumer, flow in wanted.items() if consumer not in open_consumers]
        for flow in self._worth_asking(unasked, counts):
            self._dry[flow] = counts[flow], monotonic()
            await self._ask(pulls, flow, info)
            if pulls.ready:
                self._dry.pop(flow, None)
                return True
        for consumer in [flow.consumer for flow in unasked]:
            if consumer not in pulls.open_consumers():
                await pulls.wait(consumer)
        return False

    def _worth_asking(self, flows: Sequence[Flow], counts: Mapping[Flow, int]) -> list[Flow]:
        """The flows that can have a free ticket, in their order."""
        before = monotonic() - DRY_SECONDS
        dry = {flow: self._dry[flow][1] for flow in flows if self._dry.get(flow, (None,))[0] == counts[flow]}
        again = sorted((flow for flow, asked in dry.items() if asked < before), key=lambda flow: dry[flow])
        left_out = dry.keys() - again[:DRY_FLOWS_ASKED]
        return [flow for flow in flows if flow not in left_out]

    async def _ask(self, pulls: Pulls, flow: Flow, queue: StreamInfo) -> None:
        if await pulls.ask(flow.consumer) == NO_CONSUMER:
            await make_consumer(self._backbone, flow, QueueRules.of(queue.config), seconds=REQUEST_SECONDS)
            await pulls.ask(flow.consumer)

    async def _info(self) -> StreamInfo:
        return await self._backbone.jetstream.stream_info(TICKETS, subjects_filter=f"{TICKET_PREFIX}.>")

    async def _rules(self) -> QueueRules:
        try:
            return QueueRules.of((await self._info()).config)
        except NotFoundError as error:
            raise NoStreamResponseError from error  # not there yet: try again

    def _reconnected(self) -> bool:
        """True once after each break of the connection, in which requests and wakes may have been lost."""
        before, self._reconnects = self._reconnects, self._nats.stats["reconnects"]
        if before == self._reconnects:
            return False
        self._dry.clear()
        return True

    async def _on_wake(self, message: Msg) -> None:
        self._dry.pop(Flow.of(message.data.decode()), None)
        self._stirred.set()


async def make_consumer(backbone: Backbone, flow: Flow, rules: QueueRules, *, seconds: float | None) -> None:
    """Makes the flow's consumer, or brings the one that is there to the rules."""
    config = ticket_consumer(flow.consumer, flow.subject, rules)
    await persistently(partial(backbone.jetstream.add_consumer, TICKETS, config=config), seconds=seconds)


async def wake(backbone: Backbone, flow: Flow) -> None:
    """Tells model servers that the flow may have a free ticket."""
    with suppress(*TRANSIENT):
        await backbone.nats.publish(WAKE_SUBJECT, flow.subject.encode())


def ticket_age(message: Msg) -> float:
    """Seconds since the ticket was queued."""
    queued: datetime = message.metadata.timestamp
    return (datetime.now(UTC) - queued.astimezone(UTC)).total_seconds()
