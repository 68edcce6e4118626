"""The memory that uploads hold while they arrive, and requests that bring their pictures along."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from nst_server.config import GatewaySettings
from nst_server.gateway.errors import exhausted

RETRY_SECONDS = 2
SMALL_BYTES = 64 * 1024  # what is no larger always fits: calls without pictures are not to suffer


class UploadMemory:
    """What all uploads in flight hold together; the part of each grows with what has arrived.

    Uploads that each hold a part and wait for more could wait for one another for ever. So half of
    the memory is shared, and the other half is for one upload at a time, which can then be finished
    whatever the others hold.
    """

    def __init__(self, settings: GatewaySettings, messages: "RequestMemory") -> None:
        """`messages` is for chunks that wait until there is memory for them."""
        self._messages = messages
        self._limit = settings.max_upload_bytes
        self._half = settings.max_upload_bytes // 2
        self._timeout = settings.upload_timeout_seconds
        self._shared = 0
        self._finishing: Part | None = None
        self._freed = asyncio.Event()

    @contextmanager
    def part(self, size: int) -> Iterator["Part"]:
        """The part of an upload of `size` bytes, empty at first; all of it is free again after the block.

        Raises:
            Refusal: so much never fits.
        """
        if size > self._half:
            text = f"these {size} bytes never fit, for one upload gets at most half of the memory: send less at once"
            raise exhausted("max_upload_bytes", self._limit, text, None)
        part = Part(self)
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
        if self._shared + size <= self._half:
            self._shared += size
            part.shared += size
        elif self._finishing in (None, part):
            self._finishing = part
        else:
            return False
        return True

    def _release(self, part: "Part") -> None:
        self._shared -= part.shared
        if self._finishing is part:
            self._finishing = None
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
    """What one upload holds."""

    def __init__(self, memory: UploadMemory) -> None:
        self.shared = 0
        self._memory = memory

    async def grow(self, size: int) -> None:
        """See `UploadMemory.wait_for_room`."""
        await self._memory.wait_for_room(self, size)
