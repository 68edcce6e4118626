"""A job store with everything that fills it or clears it, its clock the test's own."""

import asyncio
import contextlib
import hashlib
import time

from nst.v1 import image_pb2, job_pb2
from nst_server.config import StoreSettings
from nst_server.jobs.belongings import incarnation
from nst_server.jobs.blobs import BlobNotFound, PictureStore, PreviewStore
from nst_server.jobs.claims import Leases
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.keeper import Keeper
from nst_server.jobs.lease import Lease
from nst_server.jobs.tickets import TicketSource

HOUR = 3600.0
STREAMS = ("NST_TICKETS", "NST_EVENTS", "NST_PICTURES", "NST_PREVIEWS", "NST_CHECKPOINTS", "NST_NOTES", "KV_nst_jobs")
SUCCEEDED, FAILED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED


class Unlimited(StoreSettings):
    """May be told what NATS takes for no limit: what has one is given its room at once."""

    def __post_init__(self) -> None:
        pass


UNLIMITED = Unlimited(
    max_picture_bytes=-1, max_event_bytes=-1, max_preview_bytes=-1, max_checkpoint_bytes=-1, max_record_bytes=-1
)


class Bench:
    """A job store, and everything that fills it or clears it."""

    def __init__(self, backbone, settings: StoreSettings) -> None:
        self.backbone = backbone
        self.ahead = 0.0
        self.commands = JobCommands(backbone, patience=5)
        self.pictures = PictureStore(backbone, "tenant", patience=5)
        self.previews = PreviewStore(backbone, patience=5)
        self.leases = Leases(backbone, "server", lambda: settings.lease_seconds, max_lost_attempts=2)
        self.tickets = TicketSource(backbone)
        self.keeper = Keeper(backbone, settings, lambda: time.time() + self.ahead)

    async def sweep(self, ahead: float = 0.0) -> None:
        self.ahead = ahead
        await self.keeper.sweep()

    async def stored(self) -> dict[str, tuple[int, int]]:
        """Messages and bytes by stream."""
        states = {name: (await self.backbone.jetstream.stream_info(name)).state for name in STREAMS}
        return {name: (state.messages, state.bytes) for name, state in states.items()}

    async def jobs(self) -> set[str]:
        """The ids of the jobs that are there."""
        return {job_id for job_id, record in (await self.commands.records.all()).items() if record is not None}

    async def empty(self) -> None:
        """Waits until acknowledgements, which are not answered, and markers that expire have emptied all streams."""
        for _ in range(1000):
            if not any(messages for messages, _ in (await self.stored()).values()):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(await self.stored())

    async def spec(self, *pictures: bytes, **fields) -> job_pb2.JobSpec:
        """A spec with a content and a style that are stored."""
        digests = [await self.pictures.put(data) for data in pictures]
        content, style = (image_pb2.Image(reference=image_pb2.ImageReference(sha256=digest)) for digest in digests)
        priority = job_pb2.PRIORITY_INTERACTIVE
        return job_pb2.JobSpec(content=content, styles=[job_pb2.Style(image=style)], priority=priority, **fields)

    async def create(self, request_id: str, *pictures: bytes, **fields) -> str:
        spec = await self.spec(*(pictures or (b"content", b"style")), **fields)
        return (await self.commands.create(request_id, "tenant", spec, "")).job_id

    async def claim(self) -> Lease:
        lease = await self.leases.claim(await asyncio.wait_for(self.tickets.next(list), 10))
        assert lease is not None
        return lease

    async def preview(self, lease: Lease, data: bytes, iteration: int = 1) -> None:
        reference = image_pb2.ImageReference(sha256=await self.previews.put(incarnation(lease.record), data))
        preview = job_pb2.Preview(iteration=iteration, width=4, height=3, reference=reference)
        await lease.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, preview=preview))

    async def succeed(self, lease: Lease, data: bytes) -> None:
        reference = image_pb2.ImageReference(sha256=await self.pictures.put(data))
        await lease.append(job_pb2.JobEvent(job_state=SUCCEEDED, result=job_pb2.Result(reference=reference)))
        await lease.close()

    async def run(self, request_id: str, *pictures: bytes, result: bytes = b"result") -> str:
        """A job from its creation to its result."""
        job_id = await self.create(request_id, *pictures)
        lease = await self.claim()
        await self.preview(lease, b"preview of " + request_id.encode())
        await self.succeed(lease, result)
        return job_id

    async def has(self, data: bytes) -> bool:
        with contextlib.suppress(BlobNotFound):
            return await self.pictures.get(digest(data)) == data
        return False


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
