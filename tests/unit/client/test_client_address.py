"""An address that is none is refused, and one where something else answers is named."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from nst_command import Nst
from scripted_server import Breaker, ScriptedServer, abort

from nst_client import AsyncClient, Client, NstError, ServerUnavailable


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        (None, TypeError, "must be HOST:PORT, not None"),
        (50051, TypeError, "must be HOST:PORT, not 50051"),
        ("", ValueError, "must be HOST:PORT, and is empty"),
        ("http://localhost:1", ValueError, "must be HOST:PORT, not 'http://localhost:1'; TLS is asked for by `tls`"),
        ("localhost:0", ValueError, "the port must be from 1 to 65535, not 0"),
        ("127.0.0.1:65536", ValueError, "the port must be from 1 to 65535, not 65536"),
        ("[::1]:99999", ValueError, "the port must be from 1 to 65535, not 99999"),
    ],
)
def test_what_is_no_address_is_refused(address: Any, error: type[Exception], text: str) -> None:
    for kind in (AsyncClient, Client):
        with pytest.raises(error, match=f"^address: {text}$"):
            kind(address)


def test_the_command_names_its_own_option(nst: Nst) -> None:
    ended = nst("info", "--server", "localhost:65536")
    assert ended.code == 2
    assert "--server: the port must be from 1 to 65535" in ended.err


@pytest.mark.parametrize("scheme", ["dns:///", "ipv4:", ""])
async def test_other_targets_of_grpc_are_addresses(server: ScriptedServer, scheme: str) -> None:
    async with AsyncClient(scheme + server.address) as client:
        assert (await client.server_info()).version == "scripted"


@pytest.mark.parametrize("target", ["unix:/run/nst:0", "unix-abstract:nst", "xds:///nst", "localhost", "[::1]:65535"])
def test_and_need_no_port(target: str) -> None:
    AsyncClient(target)


@pytest.fixture
def other() -> Iterator[str]:
    """The address of a gRPC server without a service."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


async def test_another_server_is_told_from_one_of_nst(other: str) -> None:
    async with AsyncClient(other) as client:
        with pytest.raises(ServerUnavailable, match=f"^no nst.v1 server answers at {other} \\(Method not found!\\)"):
            await client.server_info()


NO_GRPC = {
    "not found": abort(grpc.StatusCode.UNIMPLEMENTED, "Received http2 header with status: 404"),
    "not allowed": abort(grpc.StatusCode.UNKNOWN, "Received http2 header with status: 405"),
    "a page": abort(grpc.StatusCode.UNKNOWN, "No status received"),
}


@pytest.mark.parametrize("how", NO_GRPC.values(), ids=NO_GRPC)
async def test_so_is_one_that_knows_no_grpc(server: ScriptedServer, how: Breaker) -> None:
    """As gRPC reports what it got from a web server."""
    server.breaks["GetServerInfo"].append(how)
    async with AsyncClient(server.address) as client:
        with pytest.raises(NstError, match=f"^no nst.v1 server answers at {server.address} "):
            await client.server_info()
