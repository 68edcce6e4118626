"""The compute thread: owns the device, and turns the jobs that the scheduler chooses one iteration at a time."""

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from nst_engine import Engine, StepReport
from nst_server.config import ModelServerSettings, parse_weights
from nst_server.model_server import memory, metrics
from nst_server.model_server.failures import DeviceLost, is_device_failure, is_out_of_memory
from nst_server.model_server.scheduler import Scheduler
from nst_server.model_server.seats import Failure, Seat, Seats, Step, Unchanged

log = logging.getLogger(__name__)

BLOCKED_POLL_SECONDS = 0.02
REVIEW_SECONDS = 1.0
# Memory that jobs have freed is kept for the next one so long: to have it anew from the system takes
# 130,000 page faults in a job of 512 px, and 4 per cent of its time.
IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class _Turn:
    """When a turn began, on the monotonic clock, and for how long it may take."""

    started: float
    allowed_seconds: float


class Runner:
    """Runs sessions on one engine, in one thread.

    The engine is made in that thread too. OpenMP keeps a team of workers for every thread that has
    computed; once the teams outnumber the processors, workers sleep between operations instead of
    spinning, and every iteration takes longer.
    """

    def __init__(self, make_engine: Callable[[], Engine], settings: ModelServerSettings) -> None:
        self._make_engine = make_engine
        self._settings = settings
        self._engine: Engine
        self._meter: memory.Meter
        self._seats: Seats
        self._scheduler: Scheduler[Seat]
        self._loop = asyncio.get_running_loop()
        self._started: concurrent.futures.Future[Engine] = concurrent.futures.Future()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._turn: _Turn | None = None
        self._stopped = False
        self._lost = False
        self._reviewed = 0.0
        self._seats_changed = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self.device_lost = asyncio.Event()

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

    @property
    def stuck_after(self) -> float | None:
        """How long the turn in hand was allowed, in seconds, if it takes longer; None while all is well."""
        turn = self._turn
        if turn is None or time.monotonic() - turn.started <= turn.allowed_seconds:
            return None
        return turn.allowed_seconds

    @property
    def short_of_memory(self) -> bool:
        """Whether there is no memory for another session."""
        return self._seats.short

    def admit(self, seat: Seat) -> None:
        """Makes the seat's session and turns it until it finishes, fails or is dismissed."""

        def order() -> None:
            if self._lost:
                seat.post(Failure(DeviceLost()), self._loop)
            else:
                self._seats.add(seat)

        self._orders.put(order)

    def dismiss(self, seat: Seat) -> None:
        """Stops turning the seat's session and lets its memory go."""
        self._orders.put(lambda: self._remove(seat))

    def steer(self, seat: Seat, weights: dict[str, Any], control_version: int) -> None:
        """Applies weights (the arguments of `Session.update`) before the next iteration.

        A seat that is still to be admitted will come with them.
        """

        def order() -> None:
            if seat in self._seats:
                seat.steer(weights, control_version)

        self._orders.put(order)

    def snapshot(self, seat: Seat, *, picture: bool = False) -> None:
        """Asks for a state, and its picture: with the next step, or for word at once that there is none to be had."""
        self._ask(seat, state=True, picture=picture)

    def show(self, seat: Seat) -> None:
        """Asks for a picture: with the next step, or for word at once that there is none to be had."""
        self._ask(seat, picture=True)

    def _ask(self, seat: Seat, *, state: bool = False, picture: bool = False) -> None:
        def order() -> None:
            if not seat.admitted:
                seat.post(Unchanged(), self._loop)
            seat.snapshot_wanted |= seat.admitted and state
            seat.picture_wanted |= seat.admitted and picture

        self._orders.put(order)

    def _run(self) -> None:
        try:
            self._set_up()
        except Exception as error:
            self._started.set_exception(error)
            return
        self._started.set_result(self._engine)
        while not self._stopped:
            try:
                self._review()
                self._obey(wait=not self._seats.ready())
                if not self._stopped and (ready := self._seats.ready()):
                    self._take_turn(ready)
            except Exception:
                log.critical("the compute thread has failed", exc_info=True)
                self._give_up()

    def _review(self) -> None:
        """Lets in who fits by now, once a session has come or gone.

        Where memory is short, what the engine keeps of ended sessions is given back first. Now and then it is looked at
        again: what had it may be gone, with no job gone.
        """
        now = time.monotonic()
        again = self._seats.short and now - self._reviewed >= REVIEW_SECONDS
        if self._seats_changed or again:
            if self._seats_changed and self._seats and self._meter.is_short:
                self._engine.release_memory()
            self._reviewed, self._seats_changed = now, False
            self._seats.review()

    def _set_up(self) -> None:
        self._engine = engine = self._make_engine()
        settings = self._settings
        limit = settings.memory_limit_bytes or memory.default_limit(engine.device)
        batch = settings.max_batch or memory.default_batch(engine.device)
        self._meter = memory.Meter(engine, limit)
        self._seats = Seats(limit, self._meter, batch, memory.most_evaluating(engine))
        self._scheduler = Scheduler(parse_weights(settings.tenant_weights), batch)

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

    def _take_turn(self, ready: Sequence[Seat]) -> None:
        """The scheduler chooses, the engine computes, the jobs are billed and told."""
        seats = self._scheduler.choose(ready)
        stall = self._settings.stall_seconds
        started = time.monotonic()
        self._turn = _Turn(started, max(stall, sum(seat.allowed_seconds(stall) for seat in seats)))
        if seats[0].session is None:
            items: Sequence[Step | Failure | None] = [self._make(seats[0])]
        else:
            items = self._iterate(seats)
        self._bill(seats, time.monotonic() - started)
        for seat, item in zip(seats, items, strict=True):
            if isinstance(item, Step):
                if item.report.finished:
                    self._remove(seat)
                seat.post(item, self._loop)
        self._fail([(seat, item.error) for seat, item in zip(seats, items, strict=True) if isinstance(item, Failure)])
        self._turn = None

    def _make(self, seat: Seat) -> Failure | None:
        """The first turn of a job: its session."""
        make, seat.make = seat.make, None
        assert make is not None
        try:
            seat.take(make(self._engine))
        except Exception as error:
            return Failure(error)
        self._seats_changed = True
        return None

    def _iterate(self, seats: Sequence[Seat]) -> list[Step | Failure]:
        """One iteration of a batch, each of its jobs steered before as is wanted."""
        started = time.monotonic()
        found: dict[Seat, StepReport | Exception] = {seat: error for seat in seats if (error := seat.obey())}
        turned = [seat for seat in seats if seat not in found]
        try:
            outcomes = self._engine.step([seat.session for seat in turned if seat.session is not None])
        except Exception as error:
            outcomes = [error] * len(turned)
        found |= zip(turned, outcomes, strict=True)
        seconds = time.monotonic() - started
        metrics.ITERATION_SECONDS.observe(seconds)
        metrics.BATCH_SIZE.observe(len(seats))
        metrics.ITERATIONS.inc(len(seats))
        return [self._told(seat, found[seat], seconds, seconds / len(seats)) for seat in seats]

    def _told(self, seat: Seat, outcome: StepReport | Exception, seconds: float, share: float) -> Step | Failure:
        if isinstance(outcome, Exception):
            return Failure(outcome)
        session = seat.session
        assert session is not None
        every = seat.preview_interval
        due = every > 0 and (outcome.iteration == 1 or outcome.iteration % every == 0)
        try:
            state = session.state_dict() if seat.snapshot_wanted else None
            picture = session.image() if due or outcome.finished or seat.picture_wanted else None
        except Exception as error:
            return Failure(error)
        seat.snapshot_wanted = seat.picture_wanted = False
        return Step(outcome, seconds, share, picture, state, seat.control_version)

    def _bill(self, seats: Sequence[Seat], seconds: float) -> None:
        self._scheduler.charge(seats, seconds)
        for seat in seats:
            seat.seconds = seconds / len(seats)
            metrics.device_seconds(seat.account.tenant).inc(seconds / len(seats))

    def _fail(self, failed: Sequence[tuple[Seat, Exception]]) -> None:
        """Lets failed jobs go, and all the others too if the device failed with them."""
        for seat, error in failed:
            release_frames(error)
            self._remove(seat)
            seat.post(Failure(error), self._loop)
        if any(is_out_of_memory(error) for _, error in failed):
            self._engine.release_memory()
        if any(is_device_failure(error) for _, error in failed):
            self._give_up()

    def _give_up(self) -> None:
        """Turns no job any more, and says so to all."""
        self._turn, self._lost = None, True
        for seat in self._seats.clear():
            seat.post(Failure(DeviceLost()), self._loop)
        self._loop.call_soon_threadsafe(self.device_lost.set)

    def _remove(self, seat: Seat) -> None:
        self._seats.remove(seat)
        self._scheduler.forget(seat)
        self._seats_changed = True


def release_frames(error: BaseException | None) -> None:
    """Empties the finished frames that an error keeps, its callers' among them: they hold the session's memory."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            frame: FrameType | None = trace.tb_frame
            while frame is not None:
                with suppress(RuntimeError):  # it is not finished
                    frame.clear()
                frame = frame.f_back
            trace = trace.tb_next
        error = error.__context__
