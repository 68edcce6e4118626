"""The connection to NATS, and the streams and buckets that jobs live in."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import nats
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServerError, ServiceUnavailableError
from nats.js.kv import KeyValue
from nats.js.object_store import ObjectStore

from nst_server.config import StoreSettings

log = logging.getLogger(__name__)

TICKETS = "NST_TICKETS"
EVENTS = "NST_EVENTS"
RECORDS = "nst_jobs"
SERVERS = "nst_model_servers"
PICTURES = "nst_pictures"
CHECKPOINTS = "nst_checkpoints"

WRONG_LAST_SEQUENCE = 10071
STORE_FULL = (10047, 10077)  # no storage left; a stream at its limit of messages or bytes

SERVER_ANNOUNCEMENT_SECONDS = 15.0
RETRY_PAUSE_SECONDS = 0.2

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


@dataclass(frozen=True)
class Backbone:
    """An open connection with every stream and bucket in place."""

    nats: NatsClient
    jetstream: JetStreamContext
    records: KeyValue
    servers: KeyValue
    pictures: ObjectStore
    checkpoints: ObjectStore


async def persistently(operation: Callable[[], Awaitable[T]], *, seconds: float | None) -> T:
    """The operation's answer, trying again while NATS is away; it must be safe to repeat.

    `seconds` bounds the trying; None never gives up.

    Raises:
        BackboneUnavailable: the bound has passed.
    """
    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.time() + seconds
    while True:
        try:
            return await operation()
        except (*TRANSIENT, ServerError) as error:
            if isinstance(error, APIError) and error.err_code in STORE_FULL:
                raise
            if deadline is not None and loop.time() > deadline:
                raise BackboneUnavailable(f"the job store did not answer within {seconds:g} s") from error
            log.debug("job store away, trying again", extra={"error": repr(error)})
        await asyncio.sleep(RETRY_PAUSE_SECONDS)


@asynccontextmanager
async def connect(url: str, name: str, settings: StoreSettings) -> AsyncIterator[Backbone]:
    """Connects for as long as the block runs; reconnects by itself for ever."""

    async def on_error(error: Exception) -> None:
        log.warning("nats error", extra={"error": repr(error)})

    async def on_disconnected() -> None:
        log.warning("nats connection lost")

    async def on_reconnected() -> None:
        log.info("nats connection back")

    client = await nats.connect(
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
    try:
        yield await persistently(lambda: _open(client, settings), seconds=60)
    finally:
        await client.close()


async def _open(client: NatsClient, settings: StoreSettings) -> Backbone:
    jetstream = client.jetstream(timeout=settings.store_timeout_seconds)
    await _ensure_stream(jetstream, _tickets_config(settings))
    await _ensure_stream(jetstream, _events_config(settings))
    retention = settings.retention_hours * 3600.0
    replicas = settings.replicas
    return Backbone(
        nats=client,
        jetstream=jetstream,
        records=await jetstream.create_key_value(
            bucket=RECORDS, ttl=retention, max_bytes=settings.max_record_bytes, direct=True, replicas=replicas
        ),
        servers=await jetstream.create_key_value(
            bucket=SERVERS, ttl=SERVER_ANNOUNCEMENT_SECONDS, storage=api.StorageType.MEMORY, replicas=replicas
        ),
        pictures=await _object_store(jetstream, PICTURES, retention, settings.max_picture_bytes, replicas),
        checkpoints=await _object_store(jetstream, CHECKPOINTS, retention, settings.max_checkpoint_bytes, replicas),
    )


async def _object_store(
    jetstream: JetStreamContext, bucket: str, ttl: float, max_bytes: int, replicas: int
) -> ObjectStore:
    # An existing bucket is opened, not configured anew: another process may run with other settings.
    try:
        return await jetstream.object_store(bucket)
    except NotFoundError:
        config = api.ObjectStoreConfig(ttl=ttl, max_bytes=max_bytes, storage=api.StorageType.FILE, replicas=replicas)
        return await jetstream.create_object_store(bucket, config=config)


def _tickets_config(settings: StoreSettings) -> api.StreamConfig:
    return api.StreamConfig(
        name=TICKETS,
        subjects=["nst.ticket.*"],
        retention=api.RetentionPolicy.WORK_QUEUE,
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        max_msgs=settings.max_queued_jobs,
        duplicate_window=60,
        num_replicas=settings.replicas,
    )


def _events_config(settings: StoreSettings) -> api.StreamConfig:
    return api.StreamConfig(
        name=EVENTS,
        subjects=["nst.event.*"],
        storage=api.StorageType.FILE,
        # A full store refuses new events rather than cut a running job's history.
        discard=api.DiscardPolicy.NEW,
        max_bytes=settings.max_event_bytes,
        max_age=settings.retention_hours * 3600.0,
        duplicate_window=60,
        allow_direct=True,
        # Watchers listen here: only what was stored is republished, so a fenced write is never seen.
        republish=api.RePublish(src="nst.event.*", dest="nst.stored.{{wildcard(1)}}"),
        num_replicas=settings.replicas,
    )


async def _ensure_stream(jetstream: JetStreamContext, config: api.StreamConfig) -> None:
    try:
        await jetstream.add_stream(config)
    except APIError as error:
        if error.err_code != 10058:  # name in use with a different configuration: keep what is there
            raise
