"""A gRPC server that does nothing with what it is sent: what loopback and gRPC alone can carry."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

import grpc

CHUNK_BYTES = 512 * 1024
MAX_MESSAGES = [("grpc.max_receive_message_length", 2 * CHUNK_BYTES)]
SERVICE = "echo"


async def _swallow(requests: AsyncIterator[bytes], context: object) -> bytes:
    size = 0
    async for request in requests:
        size += len(request)
    return str(size).encode()


async def _emit(request: bytes, context: object) -> AsyncIterator[bytes]:
    chunk = bytes(CHUNK_BYTES)
    for _ in range(int(request) // CHUNK_BYTES):
        yield chunk


async def _serve(connection: Connection) -> None:
    server = grpc.aio.server(options=MAX_MESSAGES)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Swallow": grpc.stream_unary_rpc_method_handler(_swallow),
        "Emit": grpc.unary_stream_rpc_method_handler(_emit),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    connection.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await asyncio.to_thread(connection.recv)
    await server.stop(0)


def _run(connection: Connection) -> None:
    asyncio.run(_serve(connection))


class Echo:
    """Calls to the server, over one connection."""

    def __init__(self, runner: asyncio.Runner, channel: grpc.aio.Channel) -> None:
        self._runner = runner
        self._swallow: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"/{SERVICE}/Swallow")
        self._emit: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Emit")

    def upload(self, data: bytes) -> None:
        """Sends the bytes in chunks."""
        self._runner.run(self._upload(data))

    def download(self, size: int) -> None:
        """Receives that many bytes, less a part of a chunk."""
        self._runner.run(self._download(size))

    async def _upload(self, data: bytes) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for offset in range(0, len(data), CHUNK_BYTES):
                yield data[offset : offset + CHUNK_BYTES]

        await self._swallow(pieces())

    async def _download(self, size: int) -> None:
        async for _ in self._emit(str(size).encode()):
            pass


@contextmanager
def echo_server() -> Iterator[Echo]:
    """The server in a process of its own, and a connection to it, for as long as the block runs."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(there,))
    process.start()
    try:
        target = f"127.0.0.1:{here.recv()}"
        with asyncio.Runner() as runner:
            channel = runner.run(_connect(target))
            yield Echo(runner, channel)
            runner.run(channel.close())
    finally:
        here.send(None)
        process.join()


async def _connect(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=MAX_MESSAGES)
