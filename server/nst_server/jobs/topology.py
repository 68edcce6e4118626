"""The streams, buckets and consumers that jobs live in. Gateways keep them as their settings say."""

from dataclasses import dataclass

from nats.js import JetStreamContext, api
from nats.js.errors import BucketNotFoundError, NotFoundError

from nst.v1 import job_pb2
from nst_server.config import StoreSettings

TICKETS = "NST_TICKETS"
EVENTS = "NST_EVENTS"
RECORDS = "nst_jobs"
SERVERS = "nst_model_servers"
NOTES = "NST_NOTES"
KEEPER = "nst_keeper"


@dataclass(frozen=True)
class Blobs:
    """A stream of large values, and the subject that all of its subjects begin with."""

    stream: str
    prefix: str


PICTURES = Blobs("NST_PICTURES", "nst.picture")
PREVIEWS = Blobs("NST_PREVIEWS", "nst.preview")
CHECKPOINTS = Blobs("NST_CHECKPOINTS", "nst.checkpoint")

# The queue's lanes, in the order in which model servers look into them.
LANES = {job_pb2.PRIORITY_INTERACTIVE: "interactive", job_pb2.PRIORITY_BATCH: "batch"}

ANNOUNCEMENT_SECONDS = 15.0
KEEPER_LOCK_SECONDS = 4.0
DUPLICATE_SECONDS = 60.0
PREVIEW_SECONDS = 24 * 3600.0


async def configure(jetstream: JetStreamContext, settings: StoreSettings) -> None:
    """Makes what is missing, and brings what is there to the settings."""
    for stream in (
        _tickets(settings),
        _events(settings),
        _notes(settings),
        _blobs(PICTURES, settings.max_picture_bytes, settings),
        _blobs(CHECKPOINTS, settings.max_checkpoint_bytes, settings),
        _previews(settings),
    ):
        await _ensure_stream(jetstream, stream)
    for lane in LANES.values():
        await jetstream.add_consumer(TICKETS, config=_lane_consumer(lane, settings))
    await _ensure_records(jetstream, settings)
    await _ensure_bucket(jetstream, SERVERS, ANNOUNCEMENT_SECONDS, settings)
    await _ensure_bucket(jetstream, KEEPER, KEEPER_LOCK_SECONDS, settings)


def _tickets(settings: StoreSettings) -> api.StreamConfig:
    return api.StreamConfig(
        name=TICKETS,
        subjects=["nst.ticket.*"],
        retention=api.RetentionPolicy.WORK_QUEUE,
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        max_msgs=settings.max_queued_jobs,
        duplicate_window=DUPLICATE_SECONDS,
        num_replicas=settings.replicas,
    )


def _lane_consumer(lane: str, settings: StoreSettings) -> api.ConsumerConfig:
    return api.ConsumerConfig(
        name=lane,
        durable_name=lane,
        filter_subject=f"nst.ticket.{lane}",
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=settings.lease_seconds,
        max_deliver=-1,
        max_ack_pending=settings.max_queued_jobs,
    )


def _events(settings: StoreSettings) -> api.StreamConfig:
    return api.StreamConfig(
        name=EVENTS,
        subjects=["nst.event.*"],
        storage=api.StorageType.FILE,
        # A full store refuses new events rather than cut a running job's history.
        discard=api.DiscardPolicy.NEW,
        max_bytes=settings.max_event_bytes,
        duplicate_window=DUPLICATE_SECONDS,
        allow_direct=True,
        # Watchers listen here: only what was stored is republished, so a fenced write is never seen.
        republish=api.RePublish(src="nst.event.*", dest="nst.stored.{{wildcard(1)}}"),
        num_replicas=settings.replicas,
    )


def _notes(settings: StoreSettings) -> api.StreamConfig:
    return api.StreamConfig(
        name=NOTES,
        subjects=["nst.note.>"],
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        max_msgs_per_subject=1,
        max_bytes=settings.max_record_bytes,
        num_replicas=settings.replicas,
    )


def _blobs(blobs: Blobs, max_bytes: int, settings: StoreSettings) -> api.StreamConfig:
    return api.StreamConfig(
        name=blobs.stream,
        subjects=[f"{blobs.prefix}.>"],
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        max_msgs_per_subject=1,
        max_bytes=max_bytes,
        allow_direct=True,
        num_replicas=settings.replicas,
    )


def _previews(settings: StoreSettings) -> api.StreamConfig:
    age = min(PREVIEW_SECONDS, settings.retention_hours * 3600.0)
    stream = _blobs(PREVIEWS, settings.max_preview_bytes, settings)
    return stream.evolve(discard=api.DiscardPolicy.OLD, max_age=age)


async def _ensure_stream(jetstream: JetStreamContext, config: api.StreamConfig) -> None:
    try:
        await jetstream.stream_info(str(config.name))
    except NotFoundError:
        await jetstream.add_stream(config)
    else:
        await jetstream.update_stream(config)


async def _ensure_records(jetstream: JetStreamContext, settings: StoreSettings) -> None:
    try:
        await jetstream.key_value(RECORDS)
    except BucketNotFoundError:
        await jetstream.create_key_value(
            bucket=RECORDS,
            direct=True,
            replicas=settings.replicas,
            max_bytes=settings.max_record_bytes,
        )
    else:
        config = (await jetstream.stream_info(f"KV_{RECORDS}")).config
        limits = {"max_bytes": settings.max_record_bytes, "num_replicas": settings.replicas}
        await jetstream.update_stream(config.evolve(max_age=0, **limits))


async def _ensure_bucket(jetstream: JetStreamContext, bucket: str, ttl: float, settings: StoreSettings) -> None:
    try:
        await jetstream.key_value(bucket)
    except BucketNotFoundError:
        await jetstream.create_key_value(bucket=bucket, ttl=ttl, replicas=settings.replicas)
