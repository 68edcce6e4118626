"""Claiming jobs: from a ticket to a lease on its job, unless there is nothing to work on."""

import contextlib
import time
from collections.abc import Callable, Set

from nats.aio.msg import Msg

from nst.internal.v1.job_record_pb2 import JobRecord, Ticket
from nst.v1 import job_pb2
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.deadlines import LastPictures, is_overdue
from nst_server.jobs.lease import Lease, Superseded
from nst_server.jobs.records import JobNotFound, Records
from nst_server.jobs.suspicion import MustRunAlone, is_quarantined, needs_server_to_itself, quarantine_error

RECORD_POLL_SECONDS = 0.2
# Two minutes and more, longer than the window in which a ticket is recognised as a repeat. Counted, because clocks of
# two hosts may differ.
RECORD_POLLS = 600


class LeftToOthers(Exception):
    """The model server cannot run the job's model, and another can."""


class _TicketEarly(Exception):
    """The record does not know of the ticket yet."""


class _TicketVoid(Exception):
    """The record names a later ticket."""


class Leases:
    """Turns tickets into leases."""

    def __init__(
        self,
        backbone: Backbone,
        server: str,
        lease_seconds: Callable[[], float],
        max_lost_attempts: int,
        progress_seconds: float = 0.0,
    ) -> None:
        """`lease_seconds` is for how long a ticket is leased by now, `progress_seconds` how much goes untold."""
        self._backbone = backbone
        self._records = Records(backbone, patience=None)
        self._last_pictures = LastPictures(backbone, patience=None)
        self._server = server
        self._lease_seconds = lease_seconds
        self._max_lost_attempts = max_lost_attempts
        self._progress_seconds = progress_seconds

    async def claim(self, message: Msg, *, alone: bool = True, without: Set[str] = frozenset()) -> Lease | None:
        """Claims the job of a ticket; None when there is nothing to work on.

        `alone` is whether the server has no other job. If one that runs beside others kills it, all of
        them have lost an attempt; one that is suspected of it is therefore not to be there then. The
        models, and the ids of jobs, in `without` are those that the server cannot run.

        Raises:
            MustRunAlone: the job is suspected, and there are others. Nothing has changed.
            LeftToOthers: the job is one of these, or has one of these models. Nothing has changed.
            StoreFull: there is no room for the job's history. It comes again in a while.
        """
        job_id = Ticket.FromString(message.data).job_id
        try:
            record = await self._records.update(job_id, lambda record: self._take(record, message, alone, without))
        except (JobNotFound, _TicketEarly):
            await self._wait_for_record(message)
            return None
        except _TicketVoid:
            await message.ack()
            return None
        except Superseded:
            return None
        lease = Lease(self._backbone, record, message, self._lease_seconds, self._progress_seconds)
        try:
            return lease if await self._starts(lease) else None
        except Superseded:
            # The ticket is the later attempt's now, so it is not ours to acknowledge.
            await lease.take_back_loss()
            return None
        except StoreFull:
            with contextlib.suppress(Superseded):
                await lease.step_back()  # it would count as lost by this server, and by the next
            raise

    def _take(self, record: JobRecord, message: Msg, alone: bool, without: Set[str]) -> None:
        """Makes this server the holder, which fences every earlier attempt, even of a job that is not to run."""
        lease, place = record.lease, message.metadata.sequence.stream
        if place > record.ticket.stream_sequence:
            raise _TicketEarly
        if place < record.ticket.stream_sequence:
            raise _TicketVoid
        if record.spec.options.model in without or record.job_id in without:
            raise LeftToOthers
        if lease.held and lease.server != self._server:
            if message.metadata.num_delivered <= lease.delivery:
                raise Superseded
            lease.lost_attempts.append(lease.attempt)
        if not alone and needs_server_to_itself(record, self._max_lost_attempts):
            raise MustRunAlone
        lease.attempt += 1
        lease.server = self._server
        lease.delivery = message.metadata.num_delivered
        lease.held = True

    async def _wait_for_record(self, message: Msg) -> None:
        """Gives the ticket's writer time to say so in the record; one that never does has died."""
        if message.metadata.num_delivered > RECORD_POLLS:
            await message.ack()
        else:
            await message.nak(delay=RECORD_POLL_SECONDS)

    async def _starts(self, lease: Lease) -> bool:
        """Opens the attempt in the job's history; False when the job is not to run."""
        record = lease.record
        await lease.read_history()
        if lease.last is not None and lease.last.final:
            await lease.close()
            return False
        if record.control.cancel:
            await lease.cancel()
            return False
        if is_overdue(record, time.time()):
            await lease.fail(await self._last_pictures.overdue_error(record))
            return False
        if record.control.paused:
            await lease.pause_or_hand_back()
            return False
        if is_quarantined(record, self._max_lost_attempts):
            await lease.fail(quarantine_error(record, lease.reached, self._max_lost_attempts))
            return False
        if record.lease.lost_attempts:
            await lease.note_reached()
        checkpoint = record.checkpoint
        reason = f"continues from iteration {checkpoint.iteration}" if checkpoint.object else "starts"
        await lease.append_state(job_pb2.JOB_STATE_RUNNING, reason, from_iteration=checkpoint.iteration)
        return True
