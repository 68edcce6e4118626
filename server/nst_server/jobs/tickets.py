"""Where model servers get their tickets: one flow of them for each lane, tenant and size of picture.

Model servers choose which flow is served next. Which flows have tickets they read off the stream,
which counts leased tickets too; whether one is to be had only the flow's consumer knows. A look
asks the consumers of interest, best first. When none has a ticket, a request is left open with
each, so that a ticket that comes free, by a lease that ran out above all, comes by itself.

Who has jobs already stands behind those that have fewer: its open requests are answered after theirs,
and when a new ticket is announced it looks a moment later.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import NamedTuple

from nats.aio.msg import Msg
from nats.js.api import StreamInfo
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from nst.v1 import job_pb2
from nst_server.jobs.backbone import START_SECONDS, TRANSIENT, Backbone, cancellable, persistently
from nst_server.jobs.pulls import FULL, NO_CONSUMER, Pulls
from nst_server.jobs.topology import (
    LANES,
    LAST_PRIORITY,
    TICKET_PREFIX,
    TICKETS,
    QueueRules,
    tenant_of,
    tenant_token,
    ticket_consumer,
)

# Pictures with a longer side are large: on a CPU, jobs of minutes and hours.
LARGE_SIDE = 1024
LARGE = "_large"
WAKE_SUBJECT = "nst.wake"
IDLE_SECONDS = 1.0
# A flow without a free ticket is asked again after this long, but of many only so many in one look,
# and of those that do not answer one: a seat that is free must not wait for them.
DRY_SECONDS = 1.0
DRY_FLOWS_ASKED = 16
# For each job that a server has, up to `LAST_PRIORITY`: longer than an idle one takes to ask.
YIELD_SECONDS = 0.02


class Account(NamedTuple):
    """Whom device time is billed to: one tenant in one lane."""

    lane: str
    tenant: str


class Flow(NamedTuple):
    """The tickets of one tenant in one lane. Tickets of before there were tenants' flows have no tenant.

    Those of large pictures flow apart, so that small ones need not wait until a model server has room for
    another large one.
    """

    lane: str
    tenant: str
    large: bool = False

    @classmethod
    def of(cls, subject: str) -> "Flow":
        """The flow of a ticket's subject."""
        lane, _, token = subject.removeprefix(f"{TICKET_PREFIX}.").partition(".")
        return cls(lane.removesuffix(LARGE), tenant_of(token), lane.endswith(LARGE))

    @classmethod
    def of_job(cls, tenant: str, spec: job_pb2.JobSpec) -> "Flow":
        """The flow of a job's tickets."""
        return cls(LANES[spec.priority], tenant, spec.options.size > LARGE_SIDE)

    @property
    def account(self) -> Account:
        """Whom its jobs are billed to."""
        return Account(self.lane, self.tenant)

    @property
    def subject(self) -> str:
        """Where its tickets are published."""
        return ".".join([TICKET_PREFIX, *self._tokens])

    @property
    def consumer(self) -> str:
        """The consumer that hands its tickets out."""
        return "-".join(self._tokens)

    @property
    def _tokens(self) -> list[str]:
        return [self.lane + LARGE * self.large, *filter(None, [tenant_token(self.tenant)])]


class _Dry(NamedTuple):
    """A flow that had no free ticket."""

    tickets: int
    asked_at: float
    full: bool  # it has tickets, but its tenant may run no more of them

    def lasts(self, tickets: int) -> bool:
        """Whether that is still so, as far as the number of its tickets tells: what ends makes room."""
        return tickets >= self.tickets if self.full else tickets == self.tickets


Rank = Callable[[Sequence[Flow]], Sequence[Flow]]


class TicketSource:
    """Hands out tickets to a model server, one call at a time."""

    def __init__(self, backbone: Backbone, load: Callable[[], int] = lambda: 0) -> None:
        """`load` says how many jobs the model server has now."""
        self.lease_seconds = 0.0
        self._backbone = backbone
        self._load = load
        self._nats = backbone.nats
        self._stirred = asyncio.Event()
        self._dry: dict[Flow, _Dry] = {}
        self._reconnects = 0

    async def open(self) -> None:
        """Listens for new tickets, and learns for how long the queue waits for a silent holder.

        `next` keeps that up to date.
        """
        self.lease_seconds = (await persistently(self._rules, seconds=START_SECONDS)).lease_seconds
        await self._nats.subscribe(WAKE_SUBJECT, cb=self._on_wake)

    async def next(self, rank: Rank) -> Msg:
        """Waits for the next ticket.

        Whenever something may have changed, `rank` gets the flows that have tickets, leased ones
        among them, and returns those that may be served now, in the order to look into them.
        """
        while True:
            async with Pulls(self._nats, self._stirred.set, self._priority()) as pulls:
                await self._wait(pulls, rank)
                message = pulls.take()
            if message is not None:
                self._dry.pop(Flow.of(message.subject), None)
                return message

    def nudge(self) -> None:
        """Makes a waiting `next` look again at once."""
        self._stirred.set()

    async def _wait(self, pulls: Pulls, rank: Rank) -> None:
        """Returns when a ticket has come, or when what was asked for is not what is wanted any more."""
        while True:
            self._stirred.clear()
            with suppress(APIError, *TRANSIENT):
                if await cancellable(partial(self._look, pulls, rank)):
                    return
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._stirred.wait()
            except TimeoutError:
                continue
            if not pulls.ready:
                await asyncio.sleep(YIELD_SECONDS * pulls.priority)

    async def _look(self, pulls: Pulls, rank: Rank) -> bool:
        if pulls.ready or self._reconnected() or pulls.priority != self._priority():
            return True
        info = await self._info()
        with suppress(NotFoundError):  # an older gateway has written it, and knows of other rules
            self.lease_seconds = QueueRules.of(info.config).lease_seconds
        counts = {Flow.of(subject): count for subject, count in (info.state.subjects or {}).items()}
        self._dry = {flow: dry for flow, dry in self._dry.items() if dry.lasts(counts.get(flow, -1))}
        wanted = {flow.consumer: flow for flow in rank(list(counts))}
        open_consumers = pulls.open_consumers()
        if not open_consumers <= wanted.keys():
            return True
        unasked = [flow for consumer, flow in wanted.items() if consumer not in open_consumers]
        for flow in self._worth_asking(unasked):
            status = await self._ask(pulls, flow, info)
            if pulls.ready:
                return True
            self._dry[flow] = _Dry(counts[flow], monotonic(), status == FULL)
        for consumer in [flow.consumer for flow in unasked]:
            if consumer not in pulls.open_consumers():
                await pulls.wait(consumer)
        return False

    def _worth_asking(self, flows: Sequence[Flow]) -> list[Flow]:
        """The flows that can have a free ticket, in their order."""
        before = monotonic() - DRY_SECONDS
        dry = [flow for flow in flows if flow in self._dry]
        dry.sort(key=lambda flow: self._dry[flow].asked_at)
        again = [flow for flow in dry if self._dry[flow].asked_at < before]
        full = [flow for flow in again if self._dry[flow].full]
        left_out = set(dry) - {*again[:DRY_FLOWS_ASKED]} | {*full[1:]}
        return [flow for flow in flows if flow not in left_out]

    async def _ask(self, pulls: Pulls, flow: Flow, queue: StreamInfo) -> str:
        status = await pulls.ask(flow.consumer)
        if status == NO_CONSUMER:
            with suppress(APIError, *TRANSIENT):  # the other flows are not to suffer
                await make_consumer(self._backbone, flow, QueueRules.of(queue.config))
                status = await pulls.ask(flow.consumer)
        return status

    def _priority(self) -> int:
        return min(self._load(), LAST_PRIORITY)

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
        flow = Flow.of(message.data.decode())
        if (dry := self._dry.get(flow)) is not None and not dry.full:
            del self._dry[flow]
        self._stirred.set()


async def make_consumer(backbone: Backbone, flow: Flow, rules: QueueRules) -> None:
    """Makes the flow's consumer, or brings the one that is there to the rules."""
    await backbone.jetstream.add_consumer(TICKETS, config=ticket_consumer(flow.consumer, flow.subject, rules))


async def wake(backbone: Backbone, flow: Flow) -> None:
    """Tells model servers that the flow may have a free ticket."""
    with suppress(*TRANSIENT):
        await backbone.nats.publish(WAKE_SUBJECT, flow.subject.encode())
