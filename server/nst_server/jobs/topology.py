"""The streams, buckets and consumers that jobs live in. Gateways keep them as their settings say."""

import time
from dataclasses import dataclass, field, fields
from urllib.parse import quote, unquote

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

# The settings that say how much a stream holds.
LIMITS = {
    TICKETS: "max_queued_jobs",
    EVENTS: "max_event_bytes",
    f"KV_{RECORDS}": "max_record_bytes",
    NOTES: "max_record_bytes",
    PICTURES.stream: "max_picture_bytes",
    PREVIEWS.stream: "max_preview_bytes",
    CHECKPOINTS.stream: "max_checkpoint_bytes",
}

TICKET_PREFIX = "nst.ticket"
# The queue's lanes, the more urgent one first.
LANES = {job_pb2.PRIORITY_INTERACTIVE: "interactive", job_pb2.PRIORITY_BATCH: "batch"}

ANNOUNCEMENT_SECONDS = 15.0
KEEPER_LOCK_SECONDS = 4.0
DUPLICATE_SECONDS = 60.0
PREVIEW_SECONDS = 24 * 3600.0
CONSUMERS_PER_PAGE = 256
# A consumer's open requests are answered in the order of their priorities, from 0 to this.
LAST_PRIORITY = 9
REQUEST_GROUP = "model-servers"


@dataclass(frozen=True)
class QueueRules:
    """What every consumer of the queue is made with; the queue's stream carries it to model servers."""

    lease_seconds: float
    max_tenant_jobs: int
    max_tenant_running_jobs: int
    max_tenant_paused_jobs: int

    def to_metadata(self) -> dict[str, str]:
        """As the stream carries it."""
        return {name: str(value) for name, value in vars(self).items()}

    @classmethod
    def of(cls, stream: api.StreamConfig) -> "QueueRules":
        """The rules that a stream carries.

        Raises:
            NotFoundError: no gateway has written any.
        """
        metadata = stream.metadata or {}
        try:
            return cls(
                lease_seconds=float(metadata["lease_seconds"]),
                max_tenant_jobs=int(metadata["max_tenant_jobs"]),
                max_tenant_running_jobs=int(metadata["max_tenant_running_jobs"]),
                max_tenant_paused_jobs=int(metadata["max_tenant_paused_jobs"]),
            )
        except KeyError as error:
            raise NotFoundError from error


def tenant_token(tenant: str) -> str:
    """The tenant's name as one token of a subject, which `tenant_of` reads."""
    return quote(tenant, safe="").replace(".", "%2E")


def tenant_of(token: str) -> str:
    """The tenant whose token it is."""
    return unquote(token)


def picture_name(tenant: str, digest: str) -> str:
    """What the tenant's picture is called in the store of pictures."""
    return f"{tenant_token(tenant)}.{digest}"


async def configure(jetstream: JetStreamContext, settings: StoreSettings) -> None:
    """Makes what is missing, and brings what is there to the settings."""
    # Records name tickets by their numbers and outlive a queue that is lost: the new one gives none of them out again.
    await _ensure_stream(jetstream, await _tickets(jetstream, settings), first_seq=int(time.time() * 1000))
    for stream in (
        _events(settings),
        _notes(settings),
        _blobs(PICTURES, settings.max_picture_bytes, settings),
        _blobs(CHECKPOINTS, settings.max_checkpoint_bytes, settings),
        _previews(settings),
    ):
        await _ensure_stream(jetstream, stream)
    await _renew_consumers(jetstream, _rules(settings))
    for bucket in (
        api.KeyValueConfig(RECORDS, direct=True, max_bytes=settings.max_record_bytes),
        api.KeyValueConfig(SERVERS, ttl=ANNOUNCEMENT_SECONDS),
        api.KeyValueConfig(KEEPER, ttl=KEEPER_LOCK_SECONDS),
    ):
        await _ensure_bucket(jetstream, bucket.evolve(replicas=settings.replicas))


@dataclass
class TicketConsumer(api.ConsumerConfig):
    """Adds what the library does not know of: whose request for a ticket comes first."""

    priority_groups: list[str] = field(default_factory=lambda: [REQUEST_GROUP])
    priority_policy: str = "prioritized"


def ticket_consumer(name: str, subject: str, rules: QueueRules) -> TicketConsumer:
    """The consumer of one tenant's tickets in one lane."""
    return TicketConsumer(
        name=name,
        durable_name=name,
        filter_subject=subject,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=rules.lease_seconds,
        max_deliver=-1,
        max_ack_pending=rules.max_tenant_running_jobs,
    )


async def ticket_consumers(jetstream: JetStreamContext) -> list[api.ConsumerInfo]:
    """Every consumer of the queue."""
    consumers: list[api.ConsumerInfo] = []
    while True:
        page = await jetstream.consumers_info(TICKETS, offset=len(consumers))
        consumers += page
        if len(page) < CONSUMERS_PER_PAGE:
            return consumers


def _rules(settings: StoreSettings) -> QueueRules:
    return QueueRules(**{rule.name: getattr(settings, rule.name) for rule in fields(QueueRules)})


async def _tickets(jetstream: JetStreamContext, settings: StoreSettings) -> api.StreamConfig:
    return api.StreamConfig(
        name=TICKETS,
        subjects=[f"{TICKET_PREFIX}.>"],
        retention=api.RetentionPolicy.WORK_QUEUE,
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        max_msgs=settings.max_queued_jobs,
        discard_new_per_subject=True,
        # A limit below what is there would remove tickets, and their jobs would wait for ever.
        max_msgs_per_subject=max(settings.max_tenant_jobs, *await _tickets_by_flow(jetstream), 1),
        duplicate_window=DUPLICATE_SECONDS,
        num_replicas=settings.replicas,
        metadata=_rules(settings).to_metadata(),
    )


async def _tickets_by_flow(jetstream: JetStreamContext) -> list[int]:
    try:
        info = await jetstream.stream_info(TICKETS, subjects_filter=">")
    except NotFoundError:
        return []
    return list((info.state.subjects or {}).values())


async def _renew_consumers(jetstream: JetStreamContext, rules: QueueRules) -> None:
    for consumer in await ticket_consumers(jetstream):
        config = ticket_consumer(consumer.name, str(consumer.config.filter_subject), rules)
        await jetstream.add_consumer(TICKETS, config=config)


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


async def _ensure_stream(jetstream: JetStreamContext, config: api.StreamConfig, first_seq: int | None = None) -> None:
    try:
        await jetstream.stream_info(str(config.name))
    except NotFoundError:
        await jetstream.add_stream(config.evolve(first_seq=first_seq))
    else:
        # Without `first_seq`: when NATS starts again it removes all that has a lower number.
        await jetstream.update_stream(config)


async def _ensure_bucket(jetstream: JetStreamContext, bucket: api.KeyValueConfig) -> None:
    try:
        await jetstream.key_value(bucket.bucket)
    except BucketNotFoundError:
        await jetstream.create_key_value(bucket)
    else:
        config = (await jetstream.stream_info(f"KV_{bucket.bucket}")).config
        limits = {"max_age": bucket.ttl, "max_bytes": bucket.max_bytes, "num_replicas": bucket.replicas}
        await jetstream.update_stream(config.evolve(allow_msg_ttl=True, **limits))
