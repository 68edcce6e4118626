"""A TCP proxy that can break its connections the way networks do."""

import contextlib
import socket
import struct
import threading
from typing import Self


class TcpProxy:
    """Passes bytes between a port of its own and a server, until told to break off."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.connections = 0

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.reset()
        for thread in self._threads[1:]:
            thread.join()

    def reset(self) -> None:
        """Answer every open connection with RST."""
        with self._lock:
            open_sockets, self._sockets = self._sockets, []
        for end in open_sockets:
            # Lingering for zero seconds makes close() send RST instead of FIN.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._upstream_port))
            with self._lock:
                self.connections += 1
                self._sockets += [client, server]
            for source, target in ((client, server), (server, client)):
                pump = threading.Thread(target=_pump, args=(source, target))
                self._threads.append(pump)
                pump.start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
