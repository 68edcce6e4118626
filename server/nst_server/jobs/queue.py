"""The gateway's end of the work queue: one ticket for each job that waits or runs."""

from collections import Counter, OrderedDict
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

from nats.js.api import ConsumerInfo, Header
from nats.js.errors import APIError, NotFoundError

from nst.internal.v1.job_record_pb2 import Ticket
from nst_server.jobs.announcements import announcements
from nst_server.jobs.backbone import TRANSIENT, Backbone, BackboneUnavailable, StoreFull, persistently
from nst_server.jobs.tickets import Flow, make_consumer, wake
from nst_server.jobs.topology import (
    LANES,
    TICKET_PREFIX,
    TICKETS,
    QueueRules,
    tenant_token,
    ticket_consumers,
)
from nst_server.shared_tasks import SharedTasks

KNOWN_CONSUMERS = 4096
# Consumers of flows without tickets: those unused for so long go, and of the others so many stay.
IDLE_CONSUMER_SECONDS = 600.0
IDLE_CONSUMERS = 256
PAUSE_SECONDS = 30.0


class QueueFull(Exception):
    """As many jobs wait or run as the queue holds."""


class TenantQueueFull(Exception):
    """As many jobs of the tenant wait or run as one may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the tenant has max_tenant_jobs = {limit} jobs in the queue")
        self.limit = limit


class TicketQueue:
    """Puts tickets in, and takes back those of jobs that need not run."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._backbone = backbone
        self._jetstream = backbone.jetstream
        self._patience = patience
        self._made: OrderedDict[Flow, None] = OrderedDict()
        self._looks = SharedTasks[QueueRules]()

    async def check_room(self, tenant: str) -> None:
        """Refuses what there is no room for; who asks while another does shares the answer.

        Raises:
            QueueFull: there is no room for any.
            TenantQueueFull: there is none for the tenant.
        """
        await self._looks.run(tenant, partial(self._rules, tenant))

    async def _rules(self, tenant: str) -> QueueRules:
        """The queue's rules, when there is room for another job of the tenant; raises as `check_room` does."""
        subjects = f"{TICKET_PREFIX}.*.{tenant_token(tenant)}"
        stream_info = partial(self._jetstream.stream_info, TICKETS, subjects_filter=subjects)
        info = await persistently(stream_info, seconds=self._patience)
        if info.state.messages >= (info.config.max_msgs or 0):
            raise QueueFull
        rules = QueueRules.of(info.config)
        if sum((info.state.subjects or {}).values()) >= rules.max_tenant_jobs:
            raise TenantQueueFull(rules.max_tenant_jobs)
        return rules

    async def put(self, job_id: str, flow: Flow) -> Ticket:
        """Queues a new ticket.

        Two that are put at once may both find the tenant's last place free; the stream then holds
        each flow to the limit.

        Raises:
            QueueFull: there is no room.
            TenantQueueFull: there is none for the tenant.
        """
        rules = await self._rules(flow.tenant)
        await self._make(flow, rules)
        ticket = Ticket(job_id=job_id)
        headers = {Header.MSG_ID.value: uuid4().hex}
        publish = partial(self._jetstream.publish, flow.subject, ticket.SerializeToString())
        try:
            ack = await persistently(lambda: publish(headers={**headers}), seconds=self._patience, stream=TICKETS)
        except StoreFull as error:
            raise TenantQueueFull(rules.max_tenant_jobs) if "per subject" in str(error) else QueueFull from error
        ticket.stream_sequence = ack.seq
        return ticket

    async def wake(self, flow: Flow) -> None:
        """Tells model servers of a ticket that can be claimed now."""
        await wake(self._backbone, flow)

    async def remove(self, ticket: Ticket) -> None:
        """Takes a ticket back; no error if it is gone."""
        delete = partial(self._jetstream.delete_msg, TICKETS, ticket.stream_sequence)
        try:
            await persistently(delete, seconds=self._patience)
        except APIError:
            return

    async def has(self, ticket: Ticket) -> bool:
        """Whether the ticket is there, leased or not."""
        if not ticket.stream_sequence:
            return False  # a record of which it was taken away
        get = partial(self._jetstream.get_msg, TICKETS, ticket.stream_sequence)
        try:
            await persistently(get, seconds=self._patience)
        except NotFoundError:
            return False
        return True

    async def depths(self) -> dict[str, int]:
        """How many tickets wait, by lane; nothing while NATS is away.

        Those are all whose jobs no model server says that it works on: what was handed back, or left behind by a server
        that died, has been given out before.
        """
        waiting: Counter[str] = Counter()
        with suppress(APIError, BackboneUnavailable, *TRANSIENT):
            for consumer in await ticket_consumers(self._jetstream):
                waiting[_flow(consumer).lane] += (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
            for server in await announcements(self._backbone, patience=self._patience):
                waiting.subtract(server.running)
            return {lane: max(0, waiting[lane]) for lane in LANES.values()}
        return {}

    async def unneeded_consumers(self) -> list[ConsumerInfo]:
        """The consumers that can be removed."""
        return _unneeded(await ticket_consumers(self._jetstream))

    async def remove_consumer(self, consumer: ConsumerInfo) -> None:
        """Removes a consumer unless it has tickets, leased ones above all: it counts their deliveries.

        A paused consumer gives nothing out, and the pause outlasts the requests made under it, so one
        that has nothing leased is gone before it can have. A ticket that is queued in the meantime,
        by a gateway that remembers the consumer, is found all the same: it is the stream that tells
        model servers of tickets, and who asks in vain for the consumer makes it again.

        One process at a time may do this, which the keeper's lock sees to: another could resume the
        consumer in the moment before it goes.
        """
        until = (datetime.now(UTC) + timedelta(seconds=PAUSE_SECONDS)).isoformat()
        await self._jetstream.pause_consumer(TICKETS, consumer.name, until)
        now = await self._jetstream.consumer_info(TICKETS, consumer.name)
        if now.paused and not now.num_ack_pending and not now.num_pending:
            await self._jetstream.delete_consumer(TICKETS, consumer.name)
        else:
            await self._jetstream.resume_consumer(TICKETS, consumer.name)

    async def _make(self, flow: Flow, rules: QueueRules) -> None:
        if flow not in self._made:
            await persistently(partial(make_consumer, self._backbone, flow, rules), seconds=self._patience)
        self._made[flow] = None
        self._made.move_to_end(flow)
        if len(self._made) > KNOWN_CONSUMERS:
            self._made.popitem(last=False)


def _flow(consumer: ConsumerInfo) -> Flow:
    return Flow.of(str(consumer.config.filter_subject))


def _unneeded(consumers: list[ConsumerInfo]) -> list[ConsumerInfo]:
    """Those without tickets that have been so for long, or are too many; longest unused first."""
    idle = [one for one in consumers if not (one.num_pending or one.num_ack_pending or one.paused)]
    idle.sort(key=_last_used)
    long_ago = datetime.now(UTC) - timedelta(seconds=IDLE_CONSUMER_SECONDS)
    return [
        consumer
        for index, consumer in enumerate(idle)
        if _last_used(consumer) < long_ago or index < len(idle) - IDLE_CONSUMERS
    ]


def _last_used(consumer: ConsumerInfo) -> datetime:
    known = (consumer.delivered, consumer.ack_floor)
    times = [consumer.created, *(info.last_active for info in known if info is not None and info.last_active)]
    return max(time.astimezone(UTC) for time in times)
