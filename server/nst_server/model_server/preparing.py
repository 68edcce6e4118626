"""What jobs come with, read but not yet made into sessions: pictures, masks and checkpoints, bounded in bytes."""

import asyncio

from nst_server.model_server.seats import Seat
from nst_server.model_server.sessions import SessionSource

READ_AT_ONCE = 4
LOOK_SECONDS = 0.1


class Preparations:
    """Reads what jobs come with while there is room for it.

    What is there may exceed `max_bytes` by what `READ_AT_ONCE` jobs come with: how much that is shows when it is read.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._read: dict[Seat, int] = {}

    @property
    def full(self) -> bool:
        """Whether jobs wait with so much that no more is to be read."""
        self._read = {seat: nbytes for seat, nbytes in self._read.items() if seat.make is not None}
        return sum(self._read.values()) >= self._max_bytes

    async def prepare(self, seat: Seat, source: SessionSource) -> None:
        """Gives the seat what makes its session, once there is room."""
        async with self._reading:
            while self.full:  # noqa: ASYNC110 the thread that makes sessions wakes nobody
                await asyncio.sleep(LOOK_SECONDS)
            seat.make, seat.given = await source.maker()
            self._read[seat] = seat.given
