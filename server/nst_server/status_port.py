"""The HTTP port of a process: its Prometheus metrics, and its health."""

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import make_wsgi_app


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
