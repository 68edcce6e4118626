"""The memory that uploads hold while they arrive, and requests that bring their pictures along."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from nst_server.config import GatewaySettings
from nst_server.gateway.errors import exhausted

RETRY_SECONDS = 2
SMALL_BYTES = 64 * 1024  # what is no larger always fits: calls without pictures are not to suffer


class UploadMemory:
    """What all uploads in flight hold together; the part of each grows with what has arrived.

    Uploads that each hold a part and wait for more could wait for one another for ever. So half of
    the memory is shared, and in the other half room is kept for all that is still to come of some, which
    can then be finished whatever the others hold.

    They may be slow. So a tenant gets half of what is shared, and one of its uploads at a time is finished.
    """

    def __init__(self, settings: GatewaySettings, messages: "RequestMemory") -> None:
        """`messages` is for chunks that wait until there is memory for them."""
        self._messages = messages
        self._limit = settings.max_upload_bytes
        self._half = settings.max_upload_bytes // 2
        self._timeout = settings.upload_timeout_seconds
        self._shared: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._freed = asyncio.Event()

    @contextmanager
    def part(self, tenant: str, size: int) -> Iterator["Part"]:
        """The part of an upload of `size` bytes, empty at first; all of it is free again after the block.

        Raises:
            Refusal: so much never fits.
        """
        if size > self._half:
            text = f"these {size} bytes never fit, for one upload gets at most half of the memory: send less at once"
            raise exhausted("max_upload_bytes", self._limit, text, None)
        part = Part(self, tenant, size)
        try:
            yield part
        finally:
            self._release(part)

    async def wait_for_room(self, part: "Part", size: int) -> None:
        """Waits until the part has grown by `size` bytes.

        Raises:
            Refusal: there was no room for `upload_timeout_seconds`, or too much waits already.
        """
        if self._grown(part, size):
            return
        try:
            with self._messages.part(size):
                async with asyncio.timeout(self._timeout):
                    while not self._grown(part, size):
                        await self._freed.wait()
        except TimeoutError as error:
            text = "too many uploads are in flight: try again later"
            raise exhausted("max_upload_bytes", self._limit, text, RETRY_SECONDS) from error

    def _grown(self, part: "Part", size: int) -> bool:
        if part.kept:
            return True
        own = self._shared[part.tenant] + size
        if own <= self._half // 2 and self._shared.total() + size <= self._half:
            self._shared[part.tenant] = own
            part.shared += size
            return True
        return self._keep_room(part)

    def _keep_room(self, part: "Part") -> bool:
        """Keeps room for the rest of the upload, if there is any; whether there was."""
        rest = part.size - part.shared
        if self._kept[part.tenant] or self._kept.total() + rest > self._half:
            return False
        self._kept[part.tenant] = part.kept = rest
        return True

    def _release(self, part: "Part") -> None:
        self._shared[part.tenant] -= part.shared
        self._kept[part.tenant] -= part.kept
        self._shared, self._kept = +self._shared, +self._kept  # only tenants that hold something stay
        self._freed.set()
        self._freed = asyncio.Event()


class RequestMemory:
    """What messages with pictures in them hold together: they are here at once, so what does not fit is refused."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._limit = settings.max_upload_bytes
        self._held = 0

    @contextmanager
    def part(self, size: int) -> Iterator[None]:
        """Holds a message of `size` bytes.

        Raises:
            Refusal: others hold so much that it does not fit. One that is alone always fits.
        """
        if size > SMALL_BYTES and self._held and self._held + size > self._limit:
            text = "too many pictures come at once: try again later"
            raise exhausted("max_upload_bytes", self._limit, text, RETRY_SECONDS)
        self._held += size
        try:
            yield
        finally:
            self._held -= size


class Part:
    """What one upload holds: of the shared memory what it has come to, and what is kept for the rest of it."""

    def __init__(self, memory: UploadMemory, tenant: str, size: int) -> None:
        self.tenant = tenant
        self.size = size
        self.shared = 0
        self.kept = 0
        self._memory = memory

    async def grow(self, size: int) -> None:
        """See `UploadMemory.wait_for_room`."""
        await self._memory.wait_for_room(self, size)
