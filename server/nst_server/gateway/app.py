"""The gateway's process: builds the services, serves them, drains on SIGTERM."""

import asyncio
import contextlib
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from nst.v1 import job_service_pb2, job_service_pb2_grpc, style_transfer_service_pb2, style_transfer_service_pb2_grpc
from nst_server import pictures
from nst_server.config import GatewaySettings, StoreSettings
from nst_server.gateway import heap, metrics
from nst_server.gateway.calls import CallInterceptor
from nst_server.gateway.feeds import Feeds
from nst_server.gateway.gallery import Gallery
from nst_server.gateway.info import ServerInfo
from nst_server.gateway.job_service import JobService
from nst_server.gateway.quotas import OpenCalls, PictureQuota, RequestRates
from nst_server.gateway.result_memory import ResultMemory
from nst_server.gateway.specs import SpecReader
from nst_server.gateway.style_transfer_service import StyleTransferService
from nst_server.gateway.stylize_stream import StylizeStreams
from nst_server.gateway.upload_memory import RequestMemory
from nst_server.gateway.uploads import Uploads
from nst_server.gateway.watching import Watching
from nst_server.jobs.backbone import Backbone, cancellable, connect
from nst_server.jobs.blobs import PictureStore, PreviewStore
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.keeper import Keeper
from nst_server.jobs.queue import TicketQueue
from nst_server.metrics import count_tasks
from nst_server.signals import Stopped, stop_requested, unless
from nst_server.status_port import StatusPort

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 10.0
HEALTH_SECONDS = 1.0
QUEUE_SECONDS = 5.0
SERVICES = (
    style_transfer_service_pb2.DESCRIPTOR.services_by_name["StyleTransferService"].full_name,
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
)


@dataclass(frozen=True)
class Tls:
    """The certificate chain and key that the gateway shows, PEM files."""

    certificate: Path
    key: Path


class Gateway:
    """A gRPC server in front of one job store."""

    def __init__(self, backbone: Backbone, settings: GatewaySettings, store: StoreSettings) -> None:
        self._backbone = backbone
        self._settings = settings
        self._health = health.aio.HealthServicer()
        self._tickets = TicketQueue(backbone, patience=PATIENCE_SECONDS)
        commands = JobCommands(backbone, patience=PATIENCE_SECONDS, max_job_changes=settings.max_job_changes)
        self.feeds = Feeds(backbone, commands.events, settings.heartbeat_seconds)
        rates, memory = RequestRates(settings), RequestMemory(settings)
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(rates, OpenCalls(settings), memory)],
            options=_channel_options(settings),
            maximum_concurrent_rpcs=settings.max_open_watches + settings.max_streams,
        )
        self._add_services(commands, store, rates, memory)

    def _add_services(
        self, commands: JobCommands, store: StoreSettings, rates: RequestRates, memory: RequestMemory
    ) -> None:
        settings = self._settings
        limits = pictures.PictureLimits(settings.max_image_bytes, settings.max_image_pixels)
        stored = partial(PictureStore, self._backbone, patience=PATIENCE_SECONDS)
        quota = PictureQuota(stored, settings)
        specs = SpecReader(stored, quota, settings, limits)
        uploads = Uploads(settings, limits, memory)
        previews = PreviewStore(self._backbone, patience=PATIENCE_SECONDS)
        gallery = Gallery(stored, previews, settings)
        watching = Watching(self.feeds, gallery, settings)
        info = ServerInfo(self._backbone, settings, store)
        streams = StylizeStreams(commands, specs, uploads, quota, watching, info, rates, memory)
        making = StyleTransferService(commands, specs, uploads, quota, gallery, streams, info, ResultMemory(settings))
        style_transfer_service_pb2_grpc.add_StyleTransferServiceServicer_to_server(making, self._server)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(JobService(commands, specs, watching), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, listen: str, tls: Tls | None) -> int:
        """Listens, and returns the port.

        Raises:
            RuntimeError: the address is taken.
        """
        if tls is None:
            port = self._server.add_insecure_port(listen)
        else:
            pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
            port = self._server.add_secure_port(listen, grpc.ssl_server_credentials([pair]))
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return port

    async def watch_over(self) -> None:
        """Keeps health and the queue's depth up to date, for ever."""
        await asyncio.gather(self._watch_health(), self._watch_queue())

    async def _watch_health(self) -> None:
        while True:
            up = self._backbone.nats.is_connected
            await self._set_health(
                health_pb2.HealthCheckResponse.SERVING if up else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            await asyncio.sleep(HEALTH_SECONDS)

    async def _watch_queue(self) -> None:
        while True:
            for lane, depth in (await cancellable(self._tickets.depths)).items():
                metrics.QUEUE_DEPTH.labels(lane).set(depth)
            await asyncio.sleep(QUEUE_SECONDS)

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus.ValueType") -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)

    async def drain(self) -> None:
        """Says so, sends watchers away, lets short calls end, and stops."""
        await self._health.enter_graceful_shutdown()
        self.feeds.drain()
        await self._server.stop(self._settings.drain_seconds)


async def serve(
    nats_url: str,
    listen: str,
    tls: Tls | None,
    metrics_host: str,
    metrics_port: int,
    settings: GatewaySettings,
    store: StoreSettings,
) -> None:
    """Runs a gateway until it is asked to stop."""
    heap.use_one_arena()  # before any other thread is there
    stop = stop_requested()
    async with AsyncExitStack() as stack:
        try:
            backbone = await unless(stop, stack.enter_async_context(connect(nats_url, "gateway", store)))
        except Stopped:
            return
        gateway = Gateway(backbone, settings, store)
        port = await gateway.start(listen, tls)
        # Opened last: who finds it ready may call at once.
        status = StatusPort(metrics_host, metrics_port, lambda: backbone.nats.is_connected and not stop.is_set())
        stack.callback(status.close)
        count_tasks(asyncio.get_running_loop())
        heap.set_aside_what_is_loaded()
        log.info("gateway ready", extra={"port": port, "metrics_port": status.port})
        with contextlib.suppress(Stopped):
            await unless(
                stop,
                asyncio.gather(
                    gateway.watch_over(), gateway.feeds.check(), Keeper(backbone, store).run(), heap.keep_tidy()
                ),
            )
        await gateway.drain()
    log.info("gateway stopped")


def _channel_options(settings: GatewaySettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 3),
    ]
