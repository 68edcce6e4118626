"""Job records: one key each, changed by compare-and-set only.

A job's id begins with some digits of its tenant, and so does its record's key, as a token of its own:
a tenant's records can be read without those of others.
"""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from nats.aio.msg import Msg
from nats.js.api import Header, RawStreamMsg
from nats.js.errors import APIError, KeyWrongLastSequenceError, NotFoundError

from nst.internal.v1.job_record_pb2 import JobRecord
from nst_server.jobs.backbone import WRONG_LAST_SEQUENCE, Backbone, StoreFull, bucket_keys, persistently
from nst_server.jobs.batches import next_messages, sequence_of
from nst_server.jobs.belongings import same_incarnation
from nst_server.jobs.topology import RECORDS

TENANT_DIGITS = 8
MARKER_SECONDS = 600.0

T = TypeVar("T")
Position = tuple[int, str]


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
        revision = 0
        while True:
            with contextlib.suppress(KeyWrongLastSequenceError):
                await self._write(record, revision)
                return
            last = await self._last(record.job_id)
            if last is not None and last.data:
                # A write whose answer was lost conflicts with itself when it is tried again.
                if same_incarnation(JobRecord.FromString(last.data), record):
                    return
                raise JobExists(record.job_id)
            revision = 0 if last is None else last.seq or 0  # that of the marker that one was removed

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
            await self._mark_removed(job_id, revision)
            if not await self._is_there(record):
                return record, checked

    async def all(self) -> dict[str, JobRecord | None]:
        """Every record by job, in no order; None for one that was removed not long ago."""
        return {job_id: record async for _, job_id, record in self._versions(">")}

    def changes(self, tenant: str, after: int) -> AsyncGenerator[tuple[int, str, JobRecord | None]]:
        """As `_versions`, of the tenant's records, and of others' whose jobs' ids begin alike."""
        return self._versions(f"{tenant_digits(tenant)}.*", after)

    async def job_ids(self) -> set[str]:
        """The ids of all jobs, as the stream's leader knows them, and of those that were removed not long ago."""
        return {key.rpartition(".")[2] for key in await bucket_keys(self._backbone, RECORDS, seconds=self._patience)}

    async def _versions(self, keys: str, after: int = 0) -> AsyncGenerator[tuple[int, str, JobRecord | None]]:
        """What lies after a place in the stream: place, job and record, None for one that was removed, by their keys.

        A record that is changed while the others are read moves to the stream's end, and is met again there.
        """
        while messages := await self._next_messages(keys, after):
            for message in messages:
                headers = message.headers or {}
                job_id = headers["Nats-Subject"].rpartition(".")[2]
                record = None if "KV-Operation" in headers else JobRecord.FromString(message.data)
                yield sequence_of(message), job_id, record
            after = sequence_of(messages[-1])

    async def _next_messages(self, keys: str, after: int) -> list[Msg]:
        read = partial(next_messages, self._backbone.nats, f"KV_{RECORDS}", f"$KV.{RECORDS}.{keys}", after)
        return await persistently(read, seconds=self._patience)

    async def _mark_removed(self, job_id: str, revision: int) -> None:
        """Writes a marker over the record, unless that has changed; the marker goes by itself.

        nats-server does not keep what is purged over a SIGKILL in the minutes that follow, but what is written.
        """
        headers = {"KV-Operation": "DEL", Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        jetstream = self._backbone.jetstream
        publish = partial(jetstream.publish, _subject(job_id), msg_ttl=MARKER_SECONDS)
        try:
            await self._written(lambda: publish(headers={**headers}))
        except StoreFull:  # there is no room even for that
            purge = partial(jetstream.purge_stream, f"KV_{RECORDS}", revision + 1, subject=_subject(job_id))
            await persistently(purge, seconds=self._patience)
        except APIError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise

    async def _is_there(self, record: JobRecord) -> bool:
        try:
            return same_incarnation(await self.get(record.job_id), record)
        except JobNotFound:
            return False

    async def _entry(self, job_id: str) -> tuple[JobRecord, int]:
        message = await self._last(job_id)
        if message is None or not message.data or message.seq is None:
            raise JobNotFound(job_id)
        return JobRecord.FromString(message.data), message.seq

    async def _last(self, job_id: str) -> RawStreamMsg | None:
        """The record, or the marker that it was removed, which has no data."""
        # Not the bucket's own get, which any replica answers: the fence must not be read from one that lags.
        get = partial(self._backbone.jetstream.get_last_msg, f"KV_{RECORDS}", _subject(job_id))
        try:
            return await persistently(get, seconds=self._patience)
        except NotFoundError:
            return None

    async def _write(self, record: JobRecord, revision: int) -> None:
        data = record.SerializeToString()
        # A write whose answer was lost conflicts with itself when it is tried again, and the change
        # is then applied once more: a number may go up by two.
        await self._written(lambda: self._bucket.update(_key(record.job_id), data, last=revision))

    async def _written(self, write: Callable[[], Awaitable[object]]) -> None:
        await persistently(write, seconds=self._patience, stream=f"KV_{RECORDS}")


def tenant_digits(tenant: str) -> str:
    """What the ids of the tenant's jobs begin with; another tenant may have the same."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:TENANT_DIGITS]


def position(record: JobRecord) -> Position:
    """Sorts records by the time at which their jobs were made."""
    return record.create_time.ToNanoseconds(), record.job_id


def _key(job_id: str) -> str:
    return f"{job_id[:TENANT_DIGITS]}.{job_id}"


def _subject(job_id: str) -> str:
    return f"$KV.{RECORDS}.{_key(job_id)}"
