"""The server's Prometheus metrics, and the HTTP port that shows them with the health of the process."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app

JOB_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
STEP_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600)

JOBS = Counter("nst_jobs", "Jobs by the state they reached.", ["state"])
QUEUE_DEPTH = Gauge("nst_queue_depth", "Jobs that wait, by priority.", ["priority"])
JOB_QUEUE_SECONDS = Histogram(
    "nst_job_queue_seconds", "From the job's creation to its first attempt.", buckets=(0.01, 0.05, 0.1, *JOB_SECONDS)
)
JOB_RUN_SECONDS = Histogram("nst_job_run_seconds", "Computing time of jobs that succeeded.", buckets=JOB_SECONDS)
FIRST_PREVIEW_SECONDS = Histogram(
    "nst_first_preview_seconds", "From the job's creation to its first preview.", buckets=(0.1, 0.2, *JOB_SECONDS)
)
ITERATION_SECONDS = Histogram("nst_iteration_seconds", "One iteration of one batch.", buckets=STEP_SECONDS)
BATCH_SIZE = Histogram("nst_batch_size", "Jobs advanced together by one iteration.", buckets=(1, 2, 4, 8, 16, 32))
DEVICE_SECONDS = Counter(
    "nst_device_seconds", "Time on the device, by tenant; those beyond the first hundred are 'other'.", ["tenant"]
)
ITERATIONS = Counter("nst_engine_iterations", "Iterations, over all jobs.")
DEVICE_MEMORY = Gauge("nst_device_memory_bytes", "Memory in use on the device; on a CPU, of the process.")
CHECKPOINT_SECONDS = Histogram("nst_checkpoint_seconds", "Packing and storing one checkpoint.", buckets=STEP_SECONDS)
REFUSED = Counter("nst_refused", "Calls refused because a limit is reached.", ["limit"])
WATCHERS = Gauge("nst_watchers", "Open WatchJob and Stylize streams.")
PREVIEWS_DROPPED = Counter("nst_previews_dropped", "Previews sent without their picture to slow watchers.")
REMOVED = Counter("nst_removed", "Parts of jobs removed from the store, by what they were.", ["kind"])
STORE_BYTES = Gauge("nst_store_bytes", "Size of what is stored, by NATS's stream.", ["stream"])
TASKS = Gauge("nst_event_loop_tasks", "Tasks of the process's event loop.")
RPC_STARTED = Counter("grpc_server_started", "RPCs started.", ["grpc_type", "grpc_service", "grpc_method"])
RPC_HANDLED = Counter(
    "grpc_server_handled", "RPCs ended, by status.", ["grpc_type", "grpc_service", "grpc_method", "grpc_code"]
)
RPC_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "From the start of an RPC to its end.",
    ["grpc_type", "grpc_service", "grpc_method"],
    buckets=CALL_SECONDS,
)


NAMED_TENANTS = 100
_named_tenants: set[str] = set()


def device_seconds(tenant: str) -> Counter:
    """The counter of a tenant's time on the device; those beyond the first hundred have one together."""
    if len(_named_tenants) < NAMED_TENANTS:
        _named_tenants.add(tenant)
    return DEVICE_SECONDS.labels(tenant if tenant in _named_tenants else "other")


def count_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Has `TASKS` tell of this loop whenever somebody looks."""
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))


class _Server(ThreadingMixIn, WSGIServer):
    # A client that connects and says nothing must not keep the next probe waiting.
    daemon_threads = True


class _ServerOverIPv6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 5

    def log_message(self, format: str, *args: object) -> None:
        return


class StatusPort:
    """/metrics, /healthz (the process lives) and /readyz (it takes work) on a port of its own."""

    def __init__(self, host: str, port: int, ready: Callable[[], bool]) -> None:
        """Listens at once; port 0 takes a free one, see `port`. An IPv6 address may be in brackets."""
        self._ready = ready
        self._metrics = make_wsgi_app()
        kind = _ServerOverIPv6 if ":" in host else _Server
        self._server = make_server(host.strip("[]"), port, self._answer, kind, _Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="status-port", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening, at once: `shutdown` by itself waits until the thread looks, which it does twice a second."""
        with suppress(OSError):  # where a socket that listens cannot be shut down, it has to wait
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        up = path == "/healthz" or (path == "/readyz" and self._ready())
        status = "200 OK" if up else "503 Service Unavailable" if path == "/readyz" else "404 Not Found"
        start_response(status, [("Content-Type", "text/plain")])
        return [status.encode() + b"\n"]
