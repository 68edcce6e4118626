"""The compute thread: owns the device and turns every admitted session one iteration at a time."""

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_engine import Engine, Session, SessionState, StepReport
from nst_server import metrics

log = logging.getLogger(__name__)

UNREAD_STEPS = 16
BLOCKED_POLL_SECONDS = 0.02
# Memory that jobs have freed is kept for the next one so long: to have it anew from the system takes
# 130,000 page faults in a job of 512 px, and 4 per cent of its time.
IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class Step:
    """What one iteration of a job left: always a report, at times a picture or a state to keep."""

    report: StepReport
    seconds: float
    picture: NDArray[np.uint8] | None
    state: SessionState | None
    control_version: int


@dataclass(frozen=True)
class Failure:
    """The job's session could not be made or stepped."""

    error: Exception


@dataclass(eq=False)
class Seat:
    """A job's place on the device, shared by the compute thread and the job's task.

    The thread stops turning a job whose task has `UNREAD_STEPS` steps unread. `make` is let go once it
    has made the session: it holds the pictures as they came, and the checkpoint.
    """

    make: Callable[[Engine], Session] | None
    preview_interval: int
    control_version: int
    outbox: asyncio.Queue[Step | Failure] = field(default_factory=asyncio.Queue)
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(UNREAD_STEPS))
    session: Session | None = None
    snapshot_wanted: bool = False

    async def next(self) -> Step | Failure:
        """The oldest unread step, or what went wrong."""
        item = await self.outbox.get()
        self.room.release()
        return item


class Runner:
    """Runs sessions on one engine, in one thread.

    The engine is made in that thread too. OpenMP keeps a team of workers for every thread that has
    computed; once the teams outnumber the processors, workers sleep between operations instead of
    spinning, and every iteration takes longer.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._make_engine = make_engine
        self._engine: Engine
        self._loop = asyncio.get_running_loop()
        self._started: concurrent.futures.Future[Engine] = concurrent.futures.Future()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._seats: list[Seat] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    async def start(self) -> Engine:
        """Starts the thread; the engine it has made, or what was raised on the way to it."""
        self._started.set_running_or_notify_cancel()  # the thread's outcome stands, whoever still waits for it
        self._thread.start()
        return await asyncio.wrap_future(self._started)

    async def stop(self) -> None:
        """Ends the thread after the iteration in hand."""

        def order() -> None:
            self._stopped = True

        self._orders.put(order)
        await asyncio.to_thread(self._thread.join)

    def admit(self, seat: Seat) -> None:
        """Makes the seat's session and turns it until it finishes, fails or is dismissed."""

        def order() -> None:
            make, seat.make = seat.make, None
            assert make is not None
            try:
                seat.session = make(self._engine)
            except Exception as error:
                self._post(seat, Failure(error))
                return
            self._seats.append(seat)

        self._orders.put(order)

    def dismiss(self, seat: Seat) -> None:
        """Stops turning the seat's session and lets its memory go."""

        def order() -> None:
            if seat in self._seats:
                self._seats.remove(seat)
            seat.session = None

        self._orders.put(order)

    def steer(self, seat: Seat, weights: dict[str, Any], control_version: int) -> None:
        """Applies weights (the arguments of `Session.update`) before the next iteration."""

        def order() -> None:
            if seat.session is None:
                return
            try:
                seat.session.update(**weights)
            except Exception as error:
                self._fail(seat, error)
                return
            seat.control_version = control_version

        self._orders.put(order)

    def snapshot(self, seat: Seat) -> None:
        """Asks for a state with the next step."""

        def order() -> None:
            seat.snapshot_wanted = True

        self._orders.put(order)

    def _run(self) -> None:
        try:
            self._engine = self._make_engine()
        except Exception as error:
            self._started.set_exception(error)
            return
        self._started.set_result(self._engine)
        while not self._stopped:
            turnable = [seat for seat in self._seats if seat.room.acquire(blocking=False)]
            self._obey(wait=not turnable)
            for seat in turnable:
                if seat.session is None or seat not in self._seats:
                    continue
                self._turn(seat)

    def _obey(self, *, wait: bool) -> None:
        """Carries out the orders that have come in; with nothing to turn, waits for one."""
        try:
            if wait:
                self._next_order()()
            while True:
                self._orders.get_nowait()()
        except queue.Empty:
            return

    def _next_order(self) -> Callable[[], None]:
        if self._seats:
            return self._orders.get(timeout=BLOCKED_POLL_SECONDS)
        try:
            return self._orders.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            self._engine.release_memory()
            return self._orders.get()

    def _turn(self, seat: Seat) -> None:
        session = seat.session
        assert session is not None
        started = time.monotonic()
        try:
            (report,) = self._engine.step([session])
            if isinstance(report, Exception):
                raise report
            step = self._step(seat, session, report, time.monotonic() - started)
        except Exception as error:
            self._fail(seat, error)
            return
        metrics.ITERATION_SECONDS.observe(step.seconds)
        metrics.ITERATIONS.inc()
        metrics.BATCH_SIZE.observe(1)
        if report.finished:
            self._seats.remove(seat)
        self._post(seat, step)

    def _step(self, seat: Seat, session: Session, report: StepReport, seconds: float) -> Step:
        first_or_due = report.iteration == 1 or (
            seat.preview_interval > 0 and report.iteration % seat.preview_interval == 0
        )
        shown = report.finished or (seat.preview_interval > 0 and first_or_due)
        state = session.state_dict() if seat.snapshot_wanted else None
        seat.snapshot_wanted = False
        return Step(report, seconds, session.image() if shown else None, state, seat.control_version)

    def _fail(self, seat: Seat, error: Exception) -> None:
        if seat in self._seats:
            self._seats.remove(seat)
        seat.session = None
        self._post(seat, Failure(error))

    def _post(self, seat: Seat, item: Step | Failure) -> None:
        self._loop.call_soon_threadsafe(seat.outbox.put_nowait, item)
