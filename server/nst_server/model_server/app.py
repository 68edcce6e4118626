"""The model server's process: warms the engine, pulls tickets, runs jobs, drains on SIGTERM."""

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from uuid import uuid4

from nats.aio.msg import Msg

from nst.internal.v1.job_record_pb2 import Ticket
from nst_engine import Engine, hardware
from nst_server import tracing
from nst_server.config import ModelServerSettings, parse_models, parse_weights
from nst_server.jobs.backbone import TRANSIENT, Backbone, cancellable, connect
from nst_server.jobs.claims import Leases, LeftToOthers
from nst_server.jobs.lease import Lease, extension_seconds
from nst_server.jobs.suspicion import MustRunAlone
from nst_server.jobs.tickets import Flow, TicketSource
from nst_server.jobs.topology import LAST_PRIORITY
from nst_server.metrics import count_tasks
from nst_server.model_server import memory, metrics
from nst_server.model_server.failures import DeviceLost
from nst_server.model_server.job import RunningJob
from nst_server.model_server.networks import Networks
from nst_server.model_server.others import Others
from nst_server.model_server.preparing import Preparations
from nst_server.model_server.runner import Runner
from nst_server.model_server.scheduler import Accounts
from nst_server.signals import Stopped, stop_requested, unless
from nst_server.status_port import StatusPort

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 5.0
MOST_WAITING = 16  # jobs of one lane and size that have not begun, beyond which no other is taken
OTHER_TICKET_SECONDS = 0.2
OTHER_SERVER_SECONDS = 2.0
LAST_SECONDS = 5.0  # for what is left to do when an iteration has outlasted hand_back_seconds
SHUTTING_DOWN = "the model server is shutting down"


class ModelServerProcess:
    """One device's worth of jobs."""

    def __init__(self, backbone: Backbone, runner: Runner, engine: Engine, settings: ModelServerSettings) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._backbone = backbone
        self._engine = engine
        seconds = settings.checkpoint_seconds or memory.default_checkpoint_seconds(engine.device)
        self._settings = replace(settings, checkpoint_seconds=seconds)
        self._runner = runner
        self._tickets = TicketSource(backbone, self._load)
        self._networks = Networks(engine, settings.weights_seconds)
        self._others = Others(engine, backbone, self.name)
        # Large jobs may have to wait long for memory, with what they come with; small ones go on beside them.
        self._preparations = {large: Preparations(settings.max_prepared_bytes) for large in (False, True)}
        self._accounts = Accounts(parse_weights(settings.tenant_weights))
        self._running: dict[str, RunningJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self.ready = False

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then hands back what it holds.

        Raises:
            DeviceLost: the device has become unusable; what could be handed back is.
        """
        await self._tickets.open()
        settings = self._settings
        rules = settings.max_lost_attempts, settings.progress_seconds
        leases = Leases(self._backbone, self.name, lambda: self._tickets.lease_seconds, *rules)
        self.ready = True
        log.info("model server ready", extra={"server": self.name, "device": self._engine.device_name})
        working = [asyncio.ensure_future(work) for work in (self._pull(leases), self._announce(), self._watch(stop))]
        try:
            with suppress(Stopped):
                await unless(stop, asyncio.gather(*working))
        finally:
            self.ready = False
            for work in working:  # where one has failed the others go on
                work.cancel()
            await asyncio.wait(working)
            await self._drain()
        if self._runner.device_lost.is_set():
            raise DeviceLost

    async def _drain(self) -> None:
        self._draining = True
        for job in self._running.values():
            job.drain(SHUTTING_DOWN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.hand_back_seconds)
        handed_back = await self._hand_back_at_once()
        with suppress(Exception):
            await self._backbone.servers.delete(self.name)
        try:
            await asyncio.wait_for(self._runner.stop(), LAST_SECONDS)
        except TimeoutError:
            log.warning("an iteration does not end within hand_back_seconds, ending in the middle of it")
            os._exit(os.EX_OK if handed_back else os.EX_SOFTWARE)

    async def _hand_back_at_once(self) -> bool:
        """Gives the jobs that are left to others, to continue from their last checkpoints; whether all were."""
        left = [job.lease for job in self._running.values()]
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        # While NATS is away nothing can be handed back; the leases then run out.
        backs = [asyncio.wait_for(lease.hand_back(SHUTTING_DOWN), LAST_SECONDS) for lease in left]
        outcomes = await asyncio.gather(*backs, return_exceptions=True)
        for error in filter(None, outcomes):
            log.warning("job not handed back", extra={"error": repr(error)})
        return not any(outcomes) and not self._runner.device_lost.is_set()

    async def _pull(self, leases: Leases) -> None:
        while True:
            message = await self._tickets.next(self._rank)
            job_id = Ticket.FromString(message.data).job_id
            if job_id in self._running:
                # The lease ran out while NATS was away, and this server still works on the job.
                if not self._running[job_id].lease.redelivered(message):
                    await _put_back(message, OTHER_TICKET_SECONDS)
                continue
            if not self._rank([Flow.of(message.subject)]):
                # It was asked for before memory became short, or a suspect came.
                await _put_back(message)
                continue
            claimed = asyncio.Event()
            task = asyncio.create_task(self._work(leases, message, claimed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await claimed.wait()

    def _load(self) -> int:
        """By how much this server stands behind others for tickets: behind all, if it lacks what some jobs need."""
        return LAST_PRIORITY if self._others.left else len(self._running)

    def _rank(self, flows: Sequence[Flow]) -> list[Flow]:
        """The flows whose tickets are wanted now, the least served first."""
        running = self._running.values()
        if self._runner.short_of_memory or any(job.lease.suspected for job in running):
            return []
        taken = Counter(job.flow for job in running)
        limit = self._settings.max_running_jobs or memory.default_jobs(self._engine.device)
        # What waits here for its turn nobody else can take, and counts as lost with this server.
        waiting = Counter((job.flow.lane, job.flow.large) for job in running if job.waits)
        free = [
            flow
            for flow in flows
            if taken[flow] < limit
            and waiting[flow.lane, flow.large] < MOST_WAITING
            and not self._preparations[flow.large].full
        ]
        return sorted(free, key=lambda flow: (self._accounts.position(flow.account), taken[flow]))

    async def _work(self, leases: Leases, message: Msg, claimed: asyncio.Event) -> None:
        """From a ticket to the end of the attempt."""
        flow = Flow.of(message.subject)
        self._accounts.advance([flow.account])
        try:
            lease = await self._claim(leases, message)
            if lease is not None:
                given = self._backbone, self._runner, self._networks, self._others, self._preparations[flow.large]
                job = RunningJob(lease, flow, *given, self._settings, partial(self._charge, lease.job_id))
                self._running[lease.job_id] = job
                claimed.set()
                await self._run_job(job)
        except Exception:
            log.exception("job left to another attempt")
        finally:
            claimed.set()
            self._tickets.nudge()

    def _charge(self, job_id: str, seconds: float) -> None:
        """Bills a turn of a job that runs; with its first turn there is a place for another that waits."""
        job = self._running[job_id]
        self._accounts.charge(job.flow.account, seconds)
        if job.waits:
            job.waits = False
            self._tickets.nudge()

    async def _claim(self, leases: Leases, message: Msg) -> Lease | None:
        """The lease of the ticket's job; if need be, after all others have been handed back to the queue.

        None when there is nothing to work on, or nothing for this server.
        """
        try:
            return await leases.claim(message, alone=not self._running, without=self._others.left)
        except LeftToOthers:
            await _put_back(message, OTHER_SERVER_SECONDS)
            return None
        except MustRunAlone:
            for job in self._running.values():
                job.drain("makes way for a job that has to run alone")
        waiting = asyncio.create_task(self._keep(message))
        try:
            if others := self._tasks - {asyncio.current_task()}:
                await asyncio.wait(others)
        finally:
            waiting.cancel()
        if self._draining:
            await _put_back(message)
            return None
        return await leases.claim(message)

    async def _keep(self, message: Msg) -> None:
        """Extends the ticket's lease until cancelled."""
        while True:
            with suppress(*TRANSIENT):
                await message.in_progress()
            await asyncio.sleep(extension_seconds(self._tickets.lease_seconds))

    async def _run_job(self, job: RunningJob) -> None:
        lease = job.lease
        if self._draining:
            job.drain(SHUTTING_DOWN)
        try:
            with tracing.span("attempt", lease.record.traceparent, job_id=lease.job_id, attempt=lease.attempt):
                if lease.attempt == 1:
                    metrics.JOB_QUEUE_SECONDS.observe(job.age())
                log.info("job starts", extra=job.about())
                await job.run()
        finally:
            del self._running[lease.job_id]

    async def _watch(self, stop: asyncio.Event) -> None:
        """Stops the process when its device is lost, and ends it when its thread hangs, which nothing else can."""
        stall = self._settings.stall_seconds
        lost = self._runner.device_lost
        while not lost.is_set():
            if (allowed := self._runner.stuck_after) is not None:
                told = {"stall_seconds": stall, "allowed_seconds": allowed}
                log.critical("an iteration takes longer than stall_seconds allows, ending", extra=told)
                os._exit(os.EX_SOFTWARE)
            with suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), min(1.0, stall / 4))
        log.critical("the device is lost, ending")
        stop.set()

    async def _announce(self) -> None:
        while True:
            try:
                told = await self._others.announcement(Counter(job.flow.lane for job in self._running.values()))
                await cancellable(partial(self._backbone.servers.put, self.name, told.SerializeToString()))
            except Exception as error:  # a folder of weights that has gone away must not end the jobs
                log.warning("not announced", extra={"error": repr(error)})
            metrics.DEVICE_MEMORY.set(memory.in_use(self._engine.device))
            await asyncio.sleep(ANNOUNCE_SECONDS)


async def _put_back(message: Msg, delay: float | None = None) -> None:
    with suppress(*TRANSIENT):  # it comes back by itself when its lease runs out
        await message.nak(delay)


async def serve(nats_url: str, metrics_host: str, metrics_port: int, settings: ModelServerSettings) -> None:
    """Runs a model server until it is asked to stop."""
    hardware.keep_freed_memory()  # a thread that allocates before this goes on returning what it frees
    stop = stop_requested()
    process: ModelServerProcess | None = None
    async with AsyncExitStack() as stack:
        port = StatusPort(metrics_host, metrics_port, lambda: process is not None and process.ready)
        stack.callback(port.close)
        count_tasks(asyncio.get_running_loop())
        with suppress(Stopped):
            runner = Runner(partial(warm_engine, settings), settings)
            engine = await unless(stop, runner.start())
            backbone = await unless(stop, stack.enter_async_context(connect(nats_url, "model-server", None)))
            process = ModelServerProcess(backbone, runner, engine, settings)
            await process.run(stop)
    log.info("model server stopped")


def check_device(settings: ModelServerSettings) -> None:
    """Raises `ValueError` unless this machine has the device."""
    hardware.resolve_device(settings.device)


def warm_engine(settings: ModelServerSettings) -> Engine:
    """An engine whose weights are loaded and which has done one iteration."""
    engine = Engine(
        settings.device, threads=settings.threads or None, memory_budget=settings.memory_budget_bytes or None
    )
    for model in parse_models(settings.warm_models):
        engine.warm_up(model)
    return engine
