"""The memory that results hold while they are sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.rpc import code_pb2

from nst_server.config import GatewaySettings
from nst_server.gateway.errors import Refusal, exhausted
from nst_server.gateway.held_bytes import HeldBytes

RETRY_SECONDS = 2


class ResultMemory:
    """Bounds what all results being sent hold together, those of one tenant half of it, and for how long one does."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._held = HeldBytes(settings.max_result_bytes)
        self._timeout = settings.result_timeout_seconds

    @property
    def too_slow(self) -> Refusal:
        """What a client is told whose result was dropped."""
        text = f"it was not sent and taken within result_timeout_seconds = {self._timeout:g}: ask for it again"
        return Refusal(code_pb2.DEADLINE_EXCEEDED, "RESULT_SLOW", text)

    @asynccontextmanager
    async def part(self, tenant: str, size: int) -> AsyncIterator[asyncio.Timeout]:
        """Holds `size` bytes; the call that does is cancelled when its client has not taken them in time.

        Yields:
            What tells whether that is why.

        Raises:
            Refusal: others hold so much that these do not fit. One that is alone always fits. Or the time is up
                before there is anything that the client could take.
        """
        if not self._held.fits(tenant, size):
            text = "too many results are being sent, of which a tenant's may take half: try again later"
            raise exhausted("max_result_bytes", self._held.limit, text, RETRY_SECONDS)
        try:
            with self._held.holding(tenant, size):
                async with asyncio.timeout(self._timeout) as timeout:
                    yield timeout
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise self.too_slow from error
