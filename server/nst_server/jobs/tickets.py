"""The work queue: one ticket for each job that waits or runs, pulled by model servers."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.api import Header
from nats.js.errors import APIError

from nst.internal.v1.job_record_pb2 import Ticket
from nst.v1 import job_pb2
from nst_server.jobs.backbone import START_SECONDS, TRANSIENT, Backbone, StoreFull, persistently
from nst_server.jobs.topology import LANES, TICKETS

WAKE_SUBJECT = "nst.wake"
POLL_SECONDS = 0.02
IDLE_SECONDS = 1.0


class QueueFull(Exception):
    """As many jobs wait or run as the queue holds."""


class TicketQueue:
    """The gateway's end: puts tickets in, and takes back those of jobs that need not run."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._nats = backbone.nats
        self._jetstream = backbone.jetstream
        self._patience = patience

    async def put(self, job_id: str, priority: "job_pb2.Priority.ValueType") -> Ticket:
        """Queues a new ticket.

        Raises:
            QueueFull: there is no room.
        """
        ticket = Ticket(job_id=job_id)
        headers = {Header.MSG_ID.value: uuid4().hex}
        publish = partial(self._jetstream.publish, f"nst.ticket.{LANES[priority]}", ticket.SerializeToString())
        try:
            ack = await persistently(lambda: publish(headers={**headers}), seconds=self._patience)
        except StoreFull as error:
            raise QueueFull from error
        ticket.stream_sequence = ack.seq
        return ticket

    async def wake(self) -> None:
        """Tells idle model servers to look."""
        with suppress(*TRANSIENT):
            await self._nats.publish(WAKE_SUBJECT, b"")

    async def remove(self, ticket: Ticket) -> None:
        """Takes a ticket back; no error if it is gone."""
        delete = partial(self._jetstream.delete_msg, TICKETS, ticket.stream_sequence)
        try:
            await persistently(delete, seconds=self._patience)
        except APIError:
            return

    async def depth(self) -> dict[str, int]:
        """Tickets that wait, by lane."""
        depths = {}
        for lane in LANES.values():
            try:
                info = await self._jetstream.consumer_info(TICKETS, lane)
            except (APIError, *TRANSIENT):
                continue
            depths[lane] = info.num_pending or 0
        return depths


class TicketSource:
    """The model server's end: hands out tickets, interactive ones first."""

    def __init__(self, backbone: Backbone) -> None:
        self.lease_seconds = 0.0
        self._nats = backbone.nats
        self._jetstream = backbone.jetstream
        self._subscriptions: list[JetStreamContext.PullSubscription] = []
        self._woken = asyncio.Event()

    async def open(self) -> None:
        """Binds to the lanes, and learns for how long the queue waits for a silent holder."""
        for lane in LANES.values():
            info = await persistently(partial(self._jetstream.consumer_info, TICKETS, lane), seconds=START_SECONDS)
            self.lease_seconds = float(info.config.ack_wait or 0)
            bind = partial(self._jetstream.pull_subscribe_bind, durable=lane, stream=TICKETS)
            self._subscriptions.append(await persistently(bind, seconds=START_SECONDS))
        await self._nats.subscribe(WAKE_SUBJECT, cb=self._on_wake)

    async def next(self) -> Msg:
        """Waits for the next ticket's message."""
        while True:
            self._woken.clear()
            for subscription in self._subscriptions:
                try:
                    return (await subscription.fetch(1, timeout=POLL_SECONDS))[0]
                except (NatsTimeoutError, *TRANSIENT, APIError):
                    continue
            try:
                await asyncio.wait_for(self._woken.wait(), IDLE_SECONDS)
            except TimeoutError:
                continue

    async def _on_wake(self, message: Msg) -> None:
        self._woken.set()


def ticket_age(message: Msg) -> float:
    """Seconds since the ticket was queued."""
    queued: datetime = message.metadata.timestamp
    return (datetime.now(UTC) - queued.astimezone(UTC)).total_seconds()
