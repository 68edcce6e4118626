"""The connection to NATS, and the streams and buckets that jobs live in."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import nats
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext
from nats.js.errors import (
    APIError,
    NoStreamResponseError,
    NotFoundError,
    ServiceUnavailableError,
)
from nats.js.kv import KeyValue

from nst_server.config import StoreSettings
from nst_server.jobs.topology import KEEPER, LIMITS, RECORDS, SERVERS, configure

log = logging.getLogger(__name__)

WRONG_LAST_SEQUENCE = 10071
NO_STORAGE = (10023, 10047)  # for a message; for a stream
STREAM_FULL = 10077  # a stream at its limit of messages or bytes
STREAM_GONE = 10059
STREAM_THERE = 10058  # made meanwhile by a gateway that has other settings
# Of a stream with replicas: an earlier try of the same write, or another write to the same subject, is not settled yet.
IN_FLIGHT = (10158, 10164)
STORAGE_LIMIT = "max_file_store"  # NATS's own setting, for all that it stores

REQUEST_SECONDS = 5.0
START_SECONDS = 60.0
RETRY_PAUSE_SECONDS = 0.2
PAGE_OVERLAP = 1000

TRANSIENT = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    NoStreamResponseError,
    ServiceUnavailableError,
    ConnectionError,
)

T = TypeVar("T")


class BackboneUnavailable(Exception):
    """NATS did not answer in time."""


class StoreFull(Exception):
    """There is no room left for what was to be written."""

    def __init__(self, limit: str, description: str) -> None:
        """`limit` is the name of the setting that was reached."""
        super().__init__(f"{limit}: {description}")
        self.limit = limit


@dataclass(frozen=True)
class Backbone:
    """An open connection with every stream and bucket in place."""

    nats: NatsClient
    jetstream: JetStreamContext
    records: KeyValue
    servers: KeyValue
    keeper: KeyValue


async def persistently(operation: Callable[[], Awaitable[T]], *, seconds: float | None, stream: str = "") -> T:
    """The operation's answer, trying again while NATS is away; it must be safe to repeat.

    `seconds` bounds the trying; None never gives up. `stream` is the one that is written to, if any.

    Raises:
        BackboneUnavailable: the bound has passed.
        StoreFull: there is no room for what was to be written.
    """
    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.time() + seconds
    while True:
        try:
            return await cancellable(operation)
        except (APIError, *TRANSIENT) as error:
            code = getattr(error, "err_code", None)  # some of the library's own have none
            if code in (*NO_STORAGE, STREAM_FULL):
                limit = LIMITS[stream] if code == STREAM_FULL else STORAGE_LIMIT
                raise StoreFull(limit, str(getattr(error, "description", ""))) from error
            if not (isinstance(error, TRANSIENT) or code in (STREAM_GONE, STREAM_THERE, *IN_FLIGHT)):
                raise
            if deadline is not None and loop.time() > deadline:
                raise BackboneUnavailable(f"the job store did not answer within {seconds:g} s") from error
            log.debug("job store away, trying again", extra={"error": repr(error)})
        await asyncio.sleep(RETRY_PAUSE_SECONDS)


async def cancellable(operation: Callable[[], Awaitable[T]]) -> T:
    """The operation's outcome, unless the task has been cancelled.

    Where the library waits, a cancellation is swallowed that comes together with the answer (by `asyncio.wait_for`,
    until Python 3.12), or while much is still to be sent. What goes on for ever would then never end.
    """
    try:
        return await operation()
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


@asynccontextmanager
async def connect(url: str, name: str, settings: StoreSettings | None) -> AsyncIterator[Backbone]:
    """Connects for as long as the block runs; reconnects by itself for ever.

    With settings (a gateway) it sets the job store up, or changes it to them; without (a model
    server) it waits until a gateway has done so.

    Raises:
        BackboneUnavailable: the job store was not there, or not set up, in `START_SECONDS`.
    """
    try:
        client = await asyncio.wait_for(_connected(url, name), START_SECONDS)
    except TimeoutError as error:
        raise BackboneUnavailable(f"no NATS server answers at {url}") from error
    try:
        jetstream = client.jetstream(timeout=REQUEST_SECONDS)
        if settings is not None:
            await persistently(lambda: configure(jetstream, settings), seconds=START_SECONDS)
        yield await persistently(lambda: _open(client, jetstream), seconds=START_SECONDS)
    finally:
        with suppress(*TRANSIENT):  # NATS may be gone already
            await client.close()


async def bucket_keys(backbone: Backbone, bucket: str, *, seconds: float | None) -> list[str]:
    """The keys of a key-value bucket, those of removed values among them.

    From the stream's own list of subjects: the library's `keys` takes a bucket for empty when the
    server answers faster than it looks.
    """
    subjects = await stored_subjects(backbone, f"KV_{bucket}", ">", seconds=seconds)
    return [subject.removeprefix(f"$KV.{bucket}.") for subject in subjects]


async def stored_subjects(backbone: Backbone, stream: str, pattern: str, *, seconds: float | None) -> set[str]:
    """The subjects of a stream's messages that fit the pattern.

    Asked for page by page, which the library's `stream_info` does not.
    """
    subjects: set[str] = set()
    offset = 0
    while True:
        request = json.dumps({"subjects_filter": pattern, "offset": offset}).encode()
        answer = await persistently(partial(_stream_info, backbone.nats, stream, request), seconds=seconds)
        page = answer["state"].get("subjects") or {}
        subjects.update(page)
        if offset + len(page) >= answer.get("total", 0):
            return subjects
        # Pages overlap: what is removed between two of them moves the rest up.
        offset += max(len(page) - PAGE_OVERLAP, 1)


async def _stream_info(client: NatsClient, stream: str, request: bytes) -> dict[str, Any]:
    message = await client.request(f"$JS.API.STREAM.INFO.{stream}", request, timeout=REQUEST_SECONDS)
    answer: dict[str, Any] = json.loads(message.data)
    if "error" in answer:
        APIError.from_error(answer["error"])
    return answer


async def _connected(url: str, name: str) -> NatsClient:
    async def on_error(error: Exception) -> None:
        log.warning("nats error", extra={"error": repr(error)})

    async def on_disconnected() -> None:
        log.warning("nats connection lost")

    async def on_reconnected() -> None:
        log.info("nats connection back")

    return await nats.connect(
        url,
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.2,
        ping_interval=5,
        max_outstanding_pings=2,
        error_cb=on_error,
        disconnected_cb=on_disconnected,
        reconnected_cb=on_reconnected,
    )


async def _open(client: NatsClient, jetstream: JetStreamContext) -> Backbone:
    try:
        return Backbone(
            nats=client,
            jetstream=jetstream,
            records=await jetstream.key_value(RECORDS),
            servers=await jetstream.key_value(SERVERS),
            keeper=await jetstream.key_value(KEEPER),
        )
    except NotFoundError as error:
        raise NoStreamResponseError from error  # not there yet: try again
