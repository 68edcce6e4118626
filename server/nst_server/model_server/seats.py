"""The jobs on a device, in the order in which they came, and who of them may compute."""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_engine import Engine, Session, SessionState, StepReport
from nst_server.jobs.tickets import Account

UNREAD_STEPS = 16
MEGAPIXEL = 10**6
# What it takes to measure the styles and the balance of a job, by the default network: a generous guess.
MAKING_BYTES_PER_PIXEL = 4000
# What is given comes in bytes, and becomes float32 before it is shrunk to what the job needs of it.
COPIES_OF_GIVEN = 8
SLOWER_TURN = 10.0  # a new scale has four times the pixels, and measures its styles first


@dataclass(frozen=True)
class Step:
    """What one iteration of a job left: always a report, at times a picture or a state to keep.

    `seconds` is how long the iteration took, `device_seconds` the job's part of it where it shared a batch.
    """

    report: StepReport
    seconds: float
    device_seconds: float
    picture: NDArray[np.uint8] | None
    state: SessionState | None
    control_version: int


@dataclass(frozen=True)
class Unchanged:
    """A state or a picture was asked for, and there is none later than what the job came with."""


@dataclass(frozen=True)
class Failure:
    """The job's session could not be made or stepped."""

    error: Exception


Item = Step | Unchanged | Failure


@dataclass(eq=False)
class Seat:
    """A job's place on the device, shared by the compute thread and the job's task.

    The thread does not turn a job whose task has `UNREAD_STEPS` items unread. `pixels` is how many its
    picture has, at most, and those of its styles count too. `make` is there when the job is admitted, and
    let go once it has made the session: it holds the pictures as they came, and the checkpoint, `given` bytes.
    `wanted_weights` are the arguments of `Session.update` for its next turn. `seconds` is the job's part of
    its last turn.
    """

    account: Account
    pixels: int
    preview_interval: int
    control_version: int
    make: Callable[[Engine], Session] | None = None
    given: int = 0
    session: Session | None = None
    held: int = 0
    evaluating: int = 0
    seconds: float = 0.0
    wanted_weights: Mapping[str, Any] | None = None
    admitted: bool = False
    dismissed: bool = False
    snapshot_wanted: bool = False
    picture_wanted: bool = False
    _outbox: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)
    _posted: int = 0
    _read: int = 0

    def take(self, session: Session) -> None:
        """Has the session that has been made for it."""
        self.session = session
        self.held, self.evaluating = session.working_memory

    def steer(self, weights: Mapping[str, Any], control_version: int) -> None:
        """Wants these weights from the next turn on, which hold all that was asked for before; an older wish is none.

        They are not taken at once: that can take longer than an iteration, which is to be the job's own time.
        """
        if control_version > self.control_version:
            self.wanted_weights, self.control_version = weights, control_version

    def obey(self) -> Exception | None:
        """Has the session take the weights that are wanted by now; returns what that raised."""
        weights, self.wanted_weights = self.wanted_weights, None
        try:
            if weights is not None and self.session is not None:
                self.session.update(**weights)
        except Exception as error:
            return error
        return None

    def leave(self) -> None:
        """Lets its session go, for good."""
        self.session, self.make, self.dismissed = None, None, True

    @property
    def batch_key(self) -> Hashable | None:
        """Of the session; making one is not shared."""
        return None if self.session is None else self.session.batch_key

    def allowed_seconds(self, stall_seconds: float) -> float:
        """How long the job's next turn may take before the device counts as stuck, but `stall_seconds` at least.

        By the size of its picture, and where it has been seen to be slow, by that.
        """
        return max(stall_seconds * self.pixels / MEGAPIXEL, SLOWER_TURN * self.seconds)

    @property
    def full(self) -> bool:
        """Whether too much is unread."""
        return self._posted - self._read >= UNREAD_STEPS

    def post(self, item: Item, loop: asyncio.AbstractEventLoop) -> None:
        """Leaves something for the task; called by the thread, and by who prepares the seat for it."""
        self._posted += 1
        loop.call_soon_threadsafe(self._outbox.put_nowait, item)

    async def next(self) -> Item:
        """The oldest unread item; called by the task."""
        item = await self._outbox.get()
        self._read += 1
        return item


class Seats:
    """Lets sessions compute as long as all that do fit into memory together.

    All of them hold something from turn to turn; what an iteration takes besides, only those take that are
    turned together, so a very large job leaves room for small ones. One that is too large for now waits at the
    door. Newer ones may pass it while it still fits beside all that have: so it waits for those that were
    there before it, and for nobody else. One that is alone always fits: the engine has refused what never would.

    Args:
        memory_limit: bytes that sessions may take together.
        memory_used: measures the bytes that they do take.
        batch: how many are turned together, at most.
        most_evaluating: bytes that no evaluation exceeds.
    """

    def __init__(self, memory_limit: int, memory_used: Callable[[], int], batch: int, most_evaluating: int) -> None:
        self._memory_limit = memory_limit
        self._memory_used = memory_used
        self._batch = batch
        self._most_evaluating = most_evaluating
        self._seats: list[Seat] = []
        self.short = False  # whether there is no memory for another session, however small; any thread may look

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._seats)

    def __len__(self) -> int:
        return len(self._seats)

    def add(self, seat: Seat) -> None:
        """One that has come, whose session is still to be made; not one that left before it came."""
        if not seat.dismissed:
            self._seats.append(seat)

    def remove(self, seat: Seat) -> None:
        """Drops a seat with its session; no error if it is gone."""
        seat.leave()
        if seat in self._seats:
            self._seats.remove(seat)

    def clear(self) -> list[Seat]:
        """Drops all; who was there."""
        gone, self._seats = self._seats, []
        for seat in gone:
            seat.leave()
        return gone

    def review(self) -> None:
        """Lets in who fits by now; to be called when a session has been made, or has gone."""
        for place, seat in enumerate(self._seats):
            if seat.session is not None and not seat.admitted:
                seat.admitted = self._fit([*self._inside(), seat]) and all(
                    self._fit([older, *self._inside(after=place), seat]) for place, older in self._waiting(place)
                )
        made = self._most_bytes(self._inside()) + self._at_the_door()
        self.short = made > 0 and max(made, self._memory_used()) >= self._memory_limit

    def ready(self) -> list[Seat]:
        """Those that can be turned now: inside, or still to be made, with room for that."""
        makeable = self._makeable()
        return [seat for seat in self._seats if not seat.full and (seat.admitted or seat in makeable)]

    def _makeable(self) -> list[Seat]:
        """As at the door, newer ones are made before one that there is no room for while they leave it room."""
        found: list[Seat] = []
        waiting: list[tuple[int, Seat]] = []
        for place, seat in enumerate(self._seats):
            if seat.session is not None:
                continue
            if self._can_make(seat) and all(self._leaves_room(seat, older, after) for after, older in waiting):
                found.append(seat)
            else:
                waiting.append((place, seat))
        return found

    def _leaves_room(self, seat: Seat, older: Seat, after: int) -> bool:
        """Whether both could be made beside all that have come after the older one's place."""
        return self._making(older) + self._making(seat) + self._held(after) <= self._memory_limit

    def _can_make(self, seat: Seat) -> bool:
        held = self._held() + self._at_the_door()
        return not self.short and (held == 0 or held + self._making(seat) <= self._memory_limit)

    def _making(self, seat: Seat) -> int:
        """Bytes that it takes to make a session, by a guess."""
        return min(MAKING_BYTES_PER_PIXEL * seat.pixels, self._most_evaluating) + COPIES_OF_GIVEN * seat.given

    def _held(self, after: int = -1) -> int:
        """Bytes that those inside hold from turn to turn."""
        return sum(seat.held for seat in self._inside(after))

    def _at_the_door(self) -> int:
        """Bytes of sessions that are made and wait."""
        return sum(seat.session.nbytes for seat in self._seats if seat.session is not None and not seat.admitted)

    def _inside(self, after: int = -1) -> list[Seat]:
        return [seat for seat in self._seats[after + 1 :] if seat.admitted]

    def _waiting(self, before: int) -> list[tuple[int, Seat]]:
        older = enumerate(self._seats[:before])
        return [(place, seat) for place, seat in older if seat.session is not None and not seat.admitted]

    def _fit(self, seats: Sequence[Seat]) -> bool:
        return len(seats) == 1 or self._most_bytes(seats) <= self._memory_limit

    def _most_bytes(self, seats: Sequence[Seat]) -> int:
        """What these take when those of them that take the most are turned together."""
        evaluating = sorted((seat.evaluating for seat in seats), reverse=True)
        return sum(seat.held for seat in seats) + sum(evaluating[: self._batch])
