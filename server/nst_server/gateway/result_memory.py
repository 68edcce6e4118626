"""The memory that results hold while they are sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nst_server.config import GatewaySettings
from nst_server.gateway.errors import exhausted

RETRY_SECONDS = 2


class ResultMemory:
    """Bounds what all results that are being sent hold together, and for how long one does."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._limit = settings.max_result_bytes
        self._timeout = settings.result_timeout_seconds
        self._held = 0

    @asynccontextmanager
    async def part(self, size: int) -> AsyncIterator[None]:
        """Holds `size` bytes; the call that does is cancelled when its client has not taken them in time.

        Raises:
            Refusal: others hold so much that these do not fit. One that is alone always fits.
        """
        if self._held and self._held + size > self._limit:
            raise exhausted(
                "max_result_bytes", self._limit, "too many results are being sent: try again", RETRY_SECONDS
            )
        self._held += size
        try:
            async with asyncio.timeout(self._timeout):
                yield
        finally:
            self._held -= size
