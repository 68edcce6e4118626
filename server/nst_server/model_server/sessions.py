"""What a job's session is made from: its pictures and masks, its options, and its last checkpoint."""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from nst.v1 import image_pb2, job_pb2
from nst_engine import Engine, OptionError, Session, SessionState, Style, checkpoint
from nst_server import pictures
from nst_server.jobs.blobs import BlobNotFound, PictureStore
from nst_server.jobs.lease import Lease
from nst_server.options import options_from_proto, steering_from_proto, style_scale

log = logging.getLogger(__name__)

RETRY_BUDGET_SHARE = 4  # what ran out of memory is tried again with a quarter of it for the maps

T = TypeVar("T")


class SessionSource:
    """Loads what a leased job's session is made from.

    Attributes:
        state_lost: whether there was to be a state to resume, and none could be loaded.
    """

    def __init__(self, lease: Lease, stored: PictureStore) -> None:
        """`stored` has the pictures of the job's tenant."""
        self._lease = lease
        self._stored = stored
        self.state_lost = False

    async def maker(self) -> tuple[Callable[[Engine], Session], int]:
        """What starts the session, or resumes it from the last checkpoint, steered as its client wants by now.

        With it comes how many bytes it holds.
        """
        spec = self._lease.record.spec
        options = options_from_proto(spec.options)
        content = await self._load(spec.content, pictures.decode)
        styles = [await self._load_style(style) for style in spec.styles]
        state = await self._load_state()
        initial = subject = hole = None
        if state is None and spec.HasField("initial"):
            initial = await self._load(spec.initial, pictures.decode)
        if spec.HasField("subject"):
            subject = await self._load(spec.subject, pictures.decode_mask)
        if spec.HasField("hole"):
            hole = await self._load(spec.hole, pictures.decode_mask)
        # Read after all else: what has been asked for until now may have come while that was loaded.
        record = self._lease.record
        obeyed = 0 if state is None else record.checkpoint.control_version
        changes = steering_from_proto(record.control.weights) if record.control.version > obeyed else {}
        tiled = record.lease.alone

        def begin(engine: Engine, budget: int | None) -> Session:
            masks = {"subject": subject, "hole": hole}
            if state is None:
                return engine.start(content, styles, options, initial, **masks, memory_budget=budget)
            return engine.resume(state, content, styles, **masks, memory_budget=budget)

        def make(engine: Engine) -> Session:
            try:
                session = begin(engine, engine.memory_budget // RETRY_BUDGET_SHARE if tiled else None)
            except OptionError:
                if not tiled:
                    raise
                session = begin(engine, None)  # it cannot be worked on in tiles, but has the device to itself now
            session.update(**changes)
            return session

        given = [content, initial, subject, hole]
        given += [part for style in styles for part in (style.image, style.region, style.source_region)]
        tensors = () if state is None else state.tensors.values()
        return make, sum(one.nbytes for one in (*given, *tensors) if one is not None)

    async def _load_style(self, style: job_pb2.Style) -> Style:
        return Style(
            await self._load(style.image, pictures.decode),
            style.weight,
            await self._load(style.region, pictures.decode_mask) if style.HasField("region") else None,
            await self._load(style.source_region, pictures.decode_mask) if style.HasField("source_region") else None,
            style_scale(style),
        )

    async def _load(self, image: image_pb2.Image, decode: Callable[[bytes, pictures.PictureLimits], T]) -> T:
        data = await self._stored.get(image.reference.sha256)
        return await asyncio.to_thread(decode, data, pictures.STORED)

    async def _load_state(self) -> SessionState | None:
        if not self._lease.record.checkpoint.object:
            return None
        try:
            data = await self._lease.load_checkpoint()
            return await asyncio.to_thread(checkpoint.loads, data)
        except (BlobNotFound, checkpoint.CheckpointError):
            about = {"job_id": self._lease.job_id, "attempt": self._lease.attempt}
            log.exception("checkpoint lost, starting again", extra=about)
            self.state_lost = True
            return None
