"""Which server a command talks to."""

import asyncio
import functools
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
import grpc

from nst_client.cli.kinds import Text
from nst_client.cli.private_server import private_server
from nst_client.client import AsyncClient

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """The server that was named on the command line, and as whom to talk to it; `address` is None when none was."""

    address: str | None
    tls: bool
    ca: Path | None
    tenant: str | None

    def client(self) -> AsyncClient:
        """A client of it. Raises UsageError when no server was named."""
        if self.address is None:
            raise click.UsageError("which server? Give --server HOST:PORT or set NST_SERVER")
        try:
            return AsyncClient(self.address, tls=self._credentials(), tenant=self.tenant)
        except ValueError as error:
            raise click.UsageError(f"--{error}".replace("--address", "--server")) from error

    def ask(self, question: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
        """What `question` returns when it is put to a client of this server."""

        async def asking() -> T:
            async with self.client() as client:
                return await question(client)

        return asyncio.run(asking())

    @contextmanager
    def or_private(self) -> Iterator["Server"]:
        """This server, or one that runs as long as the context when none was named."""
        if self.address is not None:
            yield self
            return
        if self.tls or self.ca:
            raise click.UsageError("--tls and --ca need --server HOST:PORT")
        with private_server() as address:
            yield Server(address, tls=False, ca=None, tenant=self.tenant)

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not (self.tls or self.ca):
            return None
        if self.ca:
            _check_certificates(self.ca)
        return grpc.ssl_channel_credentials(self.ca.read_bytes() if self.ca else None)


def _check_certificates(ca: Path) -> None:
    """Raises UsageError where gRPC would say only that nobody answers."""
    try:
        ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise click.UsageError(f"--ca: {ca} has no certificates in PEM form") from None


def server_options(command: Callable[Concatenate[Server, P], T]) -> Callable[..., T]:
    """Gives a command the options that name a server, and the `Server` as its first argument."""

    @click.option(
        "--server", "address", type=Text(), envvar="NST_SERVER", metavar="HOST:PORT", help="Or set NST_SERVER."
    )
    @click.option("--tls", is_flag=True, help="Talk TLS, trusting the system's authorities.")
    @click.option(
        "--ca",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Talk TLS, trusting the authorities in this PEM file.",
    )
    @click.option(
        "--tenant", envvar="NST_TENANT", metavar="NAME", help="Whose jobs and pictures it is about. Or set NST_TENANT."
    )
    @functools.wraps(command)
    def with_server(
        address: str | None, tls: bool, ca: Path | None, tenant: str | None, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return command(Server(address or None, tls, ca, tenant or None), *args, **kwargs)

    return with_server
