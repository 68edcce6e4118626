"""A client's network: a TCP proxy in front of each gateway that can cut what runs over it."""

import asyncio
import contextlib
import socket
import struct
from typing import Self

PIECE_BYTES = 64 * 1024
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # lingering for zero seconds makes close() send RST instead of FIN


class Link:
    """Passes bytes between a port of its own and a gateway."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> int:
        """Resets every open connection, both ways; how many there were."""
        ends, self._open = self._open, set()
        for writer in ends:
            end: socket.socket = writer.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            writer.transport.abort()
        return len(ends) // 2

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, upstream_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, upstream_writer}
        self._open |= ends
        try:
            await asyncio.gather(_pump(reader, upstream_writer), _pump(upstream, writer))
        finally:
            self._open -= ends


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
