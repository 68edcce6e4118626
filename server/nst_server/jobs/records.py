"""Job records: one key each, changed by compare-and-set only."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import Header
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from nst.internal.v1.job_record_pb2 import JobRecord
from nst_server.jobs.backbone import REQUEST_SECONDS, Backbone, persistently
from nst_server.jobs.belongings import same_incarnation
from nst_server.jobs.topology import RECORDS

BATCH = 500
END_OF_BATCH, NOTHING_THERE = "204", "404"
T = TypeVar("T")


class JobNotFound(Exception):
    """There is no such job, or its record has been removed."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id!r}")
        self.job_id = job_id


class JobExists(Exception):
    """The job's record is there already."""


class Records:
    """The record of every job."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._backbone = backbone
        self._bucket: Any = backbone.records
        self._patience = patience

    async def create(self, record: JobRecord) -> None:
        """Stores a new record.

        Raises:
            JobExists: the job has a record.
        """
        data = record.SerializeToString()
        try:
            await persistently(lambda: self._bucket.create(record.job_id, data), seconds=self._patience)
        except (KeyWrongLastSequenceError, KeyNotFoundError) as error:  # the latter: removed again while looked at
            # A write whose answer was lost conflicts with itself when it is tried again.
            if not await self._is_there(record):
                raise JobExists(record.job_id) from error

    async def get(self, job_id: str) -> JobRecord:
        """The record as it stands.

        Raises:
            JobNotFound: there is none.
        """
        record, _ = await self._entry(job_id)
        return record

    async def update(self, job_id: str, change: Callable[[JobRecord], None]) -> JobRecord:
        """Applies `change` to the latest record, again if somebody else was quicker.

        What `change` raises ends the update with nothing written.

        Raises:
            JobNotFound: there is no record.
        """
        while True:
            record, revision = await self._entry(job_id)
            change(record)
            try:
                await self._write(record, revision)
            except KeyWrongLastSequenceError:
                continue
            return record

    async def remove(self, job_id: str, check: Callable[[JobRecord], Awaitable[T]]) -> tuple[JobRecord, T]:
        """Removes the record, just as `check` was given it; the record, and what `check` said of it.

        What `check` raises ends the removal with nothing removed.

        Raises:
            JobNotFound: there is no record.
        """
        while True:
            record, revision = await self._entry(job_id)
            checked = await check(record)
            # Not the bucket's own delete, which leaves a marker for ever. The server compares: what
            # was written after this revision stays.
            purge = partial(self._backbone.jetstream.purge_stream, f"KV_{RECORDS}", revision + 1)
            await persistently(partial(purge, subject=f"$KV.{RECORDS}.{job_id}"), seconds=self._patience)
            if not await self._is_there(record):
                return record, checked

    async def all(self) -> AsyncIterator[JobRecord]:
        """Every record, in no order."""
        records: dict[str, JobRecord] = {}  # a record that changes meanwhile comes again
        position: int | None = 0
        while position is not None:
            read = partial(_read_batch, self._backbone, position + 1)
            batch, position = await persistently(read, seconds=self._patience)
            for message in batch:
                record = JobRecord.FromString(message.data)
                records[record.job_id] = record
        for record in records.values():
            yield record

    async def _is_there(self, record: JobRecord) -> bool:
        try:
            return same_incarnation(await self.get(record.job_id), record)
        except JobNotFound:
            return False

    async def _entry(self, job_id: str) -> tuple[JobRecord, int]:
        try:
            entry = await persistently(lambda: self._bucket.get(job_id), seconds=self._patience)
        except KeyNotFoundError as error:
            raise JobNotFound(job_id) from error
        return JobRecord.FromString(entry.value), entry.revision

    async def _write(self, record: JobRecord, revision: int) -> None:
        data = record.SerializeToString()
        # A write whose answer was lost conflicts with itself when it is tried again, and the change
        # is then applied once more: a number may go up by two.
        await persistently(lambda: self._bucket.update(record.job_id, data, last=revision), seconds=self._patience)


async def _read_batch(backbone: Backbone, first: int) -> tuple[list[Msg], int | None]:
    """Stored values from a place in the bucket's stream on, and the place of the last if there are more."""
    messages: list[Msg] = []
    ended: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()

    async def received(message: Msg) -> None:
        headers = message.headers or {}
        if Header.STATUS.value in headers:
            if not ended.done():
                ended.set_result(headers)
        elif "KV-Operation" not in headers:
            messages.append(message)

    nats = backbone.nats
    subscription = await nats.subscribe(inbox := nats.new_inbox(), cb=received)
    try:
        request = {"seq": first, "batch": BATCH, "next_by_subj": f"$KV.{RECORDS}.>"}
        await nats.publish(f"$JS.API.DIRECT.GET.KV_{RECORDS}", json.dumps(request).encode(), reply=inbox)
        headers = await asyncio.wait_for(ended, REQUEST_SECONDS)
    except TimeoutError as error:
        raise NatsTimeoutError from error
    finally:
        await subscription.unsubscribe()
    if headers[Header.STATUS.value] not in (END_OF_BATCH, NOTHING_THERE):
        raise NoRespondersError
    more = int(headers.get("Nats-Num-Pending", 0)) > 0
    return messages, int(headers["Nats-Last-Sequence"]) if more else None
