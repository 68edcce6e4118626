"""Job records: one key each, changed by compare-and-set only."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from nats.aio.msg import Msg
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

from nst.internal.v1.job_record_pb2 import JobRecord
from nst_server.jobs.backbone import Backbone, persistently
from nst_server.jobs.batches import next_messages, sequence_of
from nst_server.jobs.belongings import same_incarnation
from nst_server.jobs.topology import RECORDS

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
            await self._written(lambda: self._bucket.create(record.job_id, data))
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
        # A record that is changed while the others are read moves to the stream's end, and is met again there.
        latest: dict[str, JobRecord | None] = {}
        position = 0
        while messages := await self._next_messages(position):
            for message in messages:
                headers = message.headers or {}
                removed = "KV-Operation" in headers
                latest[headers["Nats-Subject"]] = None if removed else JobRecord.FromString(message.data)
            position = sequence_of(messages[-1])
        for record in latest.values():
            if record is not None:
                yield record

    async def _next_messages(self, after: int) -> list[Msg]:
        read = partial(next_messages, self._backbone.nats, f"KV_{RECORDS}", f"$KV.{RECORDS}.>", after)
        return await persistently(read, seconds=self._patience)

    async def _is_there(self, record: JobRecord) -> bool:
        try:
            return same_incarnation(await self.get(record.job_id), record)
        except JobNotFound:
            return False

    async def _entry(self, job_id: str) -> tuple[JobRecord, int]:
        # Not the bucket's own get, which any replica answers: the fence must not be read from one that lags.
        get = partial(self._backbone.jetstream.get_last_msg, f"KV_{RECORDS}", f"$KV.{RECORDS}.{job_id}")
        try:
            message = await persistently(get, seconds=self._patience)
        except NotFoundError as error:
            raise JobNotFound(job_id) from error
        if not message.data or message.seq is None:
            raise JobNotFound(job_id)
        return JobRecord.FromString(message.data), message.seq

    async def _write(self, record: JobRecord, revision: int) -> None:
        data = record.SerializeToString()
        # A write whose answer was lost conflicts with itself when it is tried again, and the change
        # is then applied once more: a number may go up by two.
        await self._written(lambda: self._bucket.update(record.job_id, data, last=revision))

    async def _written(self, write: Callable[[], Awaitable[int]]) -> None:
        await persistently(write, seconds=self._patience, stream=f"KV_{RECORDS}")
