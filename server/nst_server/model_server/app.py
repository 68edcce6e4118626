"""The model server's process: warms the engine, pulls tickets, runs jobs, drains on SIGTERM."""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from uuid import uuid4

import psutil
import torch
from nats.aio.msg import Msg

from nst.internal.v1.job_record_pb2 import Announcement, Ticket
from nst.v1.style_transfer_service_pb2 import ModelServer
from nst_engine import Engine, hardware
from nst_server import metrics, tracing
from nst_server.config import ModelServerSettings
from nst_server.jobs.backbone import TRANSIENT, Backbone, connect
from nst_server.jobs.lease import Lease, Leases
from nst_server.jobs.tickets import Flow, TicketSource
from nst_server.jobs.topology import LANES
from nst_server.model_server.job import RunningJob
from nst_server.model_server.runner import Runner
from nst_server.signals import Stopped, stop_requested, unless

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 5.0


class Rotation:
    """Interactive tickets first; of the tenants in a lane the one that was served longest ago."""

    def __init__(self) -> None:
        self._served: dict[Flow, int] = {}
        self._turn = 0

    def rank(self, flows: Sequence[Flow]) -> list[Flow]:
        """The flows in the order in which to serve them."""
        self._served = {flow: self._served.get(flow, 0) for flow in flows}
        lanes = list(LANES.values())
        return sorted(flows, key=lambda flow: (lanes.index(flow.lane), self._served[flow], flow.tenant))

    def served(self, flow: Flow) -> None:
        """Puts a flow last."""
        self._turn += 1
        self._served[flow] = self._turn


class ModelServerProcess:
    """One device's worth of jobs."""

    def __init__(self, backbone: Backbone, runner: Runner, engine: Engine, settings: ModelServerSettings) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._backbone = backbone
        self._engine = engine
        self._settings = settings
        self._runner = runner
        self._tickets = TicketSource(backbone)
        self._rotation = Rotation()
        self._running: dict[str, RunningJob | None] = {}  # None while a job is being claimed
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self.ready = False
        self._slots = asyncio.Semaphore(settings.max_running_jobs)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then hands back what it holds."""
        await self._tickets.open()
        leases = Leases(self._backbone, self.name, self._tickets.lease_seconds, self._settings.max_lost_attempts)
        self.ready = True
        log.info("model server ready", extra={"server": self.name, "device": self._engine.device_name})
        with suppress(Stopped):
            await unless(stop, asyncio.gather(self._pull(leases), self._announce()))
        self.ready = False
        await self._drain()

    async def _drain(self) -> None:
        self._draining = True
        for job in self._running.values():
            if job is not None:
                job.drain()
        if self._tasks:
            # While NATS is away nothing can be handed back; the leases then run out.
            await asyncio.wait(self._tasks, timeout=self._settings.hand_back_seconds)
        await self._runner.stop()
        with suppress(Exception):
            await self._backbone.servers.delete(self.name)

    async def _pull(self, leases: Leases) -> None:
        while True:
            await self._slots.acquire()
            message = await self._tickets.next(self._rotation.rank)
            self._rotation.served(Flow.of(message.subject))
            job_id = Ticket.FromString(message.data).job_id
            if job_id in self._running:
                # The lease ran out while NATS was away, and this server still works on the job.
                if (job := self._running[job_id]) is not None:
                    job.lease.redelivered(message)
                self._slots.release()
                continue
            self._running[job_id] = None
            task = asyncio.create_task(self._work(leases, job_id, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: self._slots.release())

    async def _work(self, leases: Leases, job_id: str, message: Msg) -> None:
        try:
            lease = await leases.claim(message)
            if lease is not None:
                await self._run_job(lease)
        except Exception:
            log.exception("job left to another attempt")
        finally:
            del self._running[job_id]

    async def _run_job(self, lease: Lease) -> None:
        job = RunningJob(lease, self._backbone, self._runner, self._settings)
        self._running[lease.job_id] = job
        if self._draining:
            job.drain()
        with tracing.span("attempt", lease.record.traceparent, job_id=lease.job_id, attempt=lease.attempt):
            if lease.attempt == 1:
                metrics.JOB_QUEUE_SECONDS.observe(job.age())
            log.info("job starts", extra=job.about())
            await job.run()

    async def _announce(self) -> None:
        while True:
            server = ModelServer(name=self.name, device=self._engine.device_name, running_jobs=len(self._running))
            announcement = Announcement(server=server, models=self._engine.available_models())
            with suppress(*TRANSIENT):
                await self._backbone.servers.put(self.name, announcement.SerializeToString())
            metrics.DEVICE_MEMORY.set(device_memory(self._engine.device))
            await asyncio.sleep(ANNOUNCE_SECONDS)


def device_memory(device: torch.device) -> int:
    """Bytes in use on the device; on a CPU, by this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


async def serve(nats_url: str, metrics_host: str, metrics_port: int, settings: ModelServerSettings) -> None:
    """Runs a model server until SIGTERM or SIGINT."""
    hardware.keep_freed_memory()  # a thread that allocates before this goes on returning what it frees
    stop = stop_requested()
    process: ModelServerProcess | None = None
    async with AsyncExitStack() as stack:
        port = metrics.StatusPort(metrics_host, metrics_port, lambda: process is not None and process.ready)
        stack.callback(port.close)
        with suppress(Stopped):
            runner = Runner(partial(warm_engine, settings))
            engine = await unless(stop, runner.start())
            backbone = await unless(stop, stack.enter_async_context(connect(nats_url, "model-server", None)))
            process = ModelServerProcess(backbone, runner, engine, settings)
            await process.run(stop)
    log.info("model server stopped")


def warm_engine(settings: ModelServerSettings) -> Engine:
    """An engine whose weights are loaded and which has done one iteration."""
    engine = Engine(
        settings.device, threads=settings.threads or None, memory_budget=settings.memory_budget_bytes or None
    )
    for model in filter(None, settings.warm_models.split(",")):
        engine.warm_up(model.strip())
    return engine
