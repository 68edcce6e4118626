"""The connection to a server: channel, call metadata, and trying again when it breaks."""

import asyncio
import json
import random
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from nst.v1.job_service_pb2_grpc import JobServiceStub
from nst.v1.style_transfer_service_pb2_grpc import StyleTransferServiceStub
from nst_client.errors import (
    NstError,
    ServerBusy,
    ServerUnavailable,
    client_closed,
    from_rpc,
    has_details,
    has_lost_status,
    is_broken_connection,
)

if TYPE_CHECKING:
    from nst.v1.job_service_pb2_grpc import JobServiceAsyncStub
    from nst.v1.style_transfer_service_pb2_grpc import StyleTransferServiceAsyncStub

T = TypeVar("T")
Request = TypeVar("Request")
Response = TypeVar("Response")

_CALL_TIMEOUT_SECONDS = 30.0
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS, _DELAY_GROWTH = 0.1, 3.0, 1.6
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\]):[0-9]+")
# Other targets of gRPC's, such as dns:///host or unix:path, are gRPC's to check.
_HOST_PORT = re.compile(r"([^:/\[\]]+|\[[^\[\]]+\]):([0-9]+)")
_LARGEST_PORT = 65535
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")

_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    # The server limits both, by a setting.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The server answers pings that come more often than every 10 s with GOAWAY.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own defaults wait up to two minutes before they look for a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # Retries are made below, where they know `reconnect_timeout` and which calls are safe to repeat.
    ("grpc.enable_retries", 0),
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
]


class Transport:
    """One channel to one address, and the rules for using it.

    Attributes:
        address: HOST:PORT, or any gRPC target.
        reconnect_timeout: seconds for which a broken connection is tried again.
        silence_timeout: seconds without a message after which a stream counts as dead.
        reached: whether a server has ever answered.
    """

    def __init__(
        self,
        address: str,
        tls: grpc.ChannelCredentials | None,
        tenant: str | None,
        reconnect_timeout: float,
        silence_timeout: float,
    ) -> None:
        _check_address(address)
        if tenant is not None and not _TENANT.fullmatch(tenant):
            raise ValueError(f"tenant: must have 1 to 64 letters, digits, '-', '_' or '.', not {tenant!r}")
        self.address = address
        self.reconnect_timeout = reconnect_timeout
        self.silence_timeout = silence_timeout
        self._tls = tls
        self._tenant = tenant
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # to which the channel belongs
        self._closed = asyncio.Event()
        self.reached = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, made at the first call. Raises NstError: a stub on one that is closed crashes the process."""
        self._check()
        if self._channel is None:
            self._loop = asyncio.get_running_loop()
            self._channel = self._connect()
        return self._channel

    def _connect(self) -> grpc.aio.Channel:
        # A proxy of the environment (http_proxy, https_proxy) cannot reach this machine's own loopback.
        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not _LOOPBACK.fullmatch(self.address)))]
        if self._tls is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        return grpc.aio.secure_channel(self.address, self._tls, options=options)

    @cached_property
    def transfer(self) -> "StyleTransferServiceAsyncStub":
        """The stub that makes jobs."""
        return StyleTransferServiceStub(self.channel)

    @cached_property
    def jobs(self) -> "JobServiceAsyncStub":
        """The stub that follows jobs."""
        return JobServiceStub(self.channel)

    @property
    def metadata(self) -> grpc.aio.Metadata:
        """What travels with each call: the tenant, and the trace that the caller is in."""
        pairs = {"x-nst-tenant": self._tenant} if self._tenant else {}
        return grpc.aio.Metadata(*pairs.items(), *_trace_headers().items())

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Where a call is begun or waited for. Raises NstError where the client is closed, before or meanwhile."""
        self._check()
        try:
            yield
        except asyncio.CancelledError:
            # gRPC ends the calls of a closed channel as if somebody had cancelled the task that waits for them.
            task = asyncio.current_task()
            if self._closed.is_set() and not (task and task.cancelling()):
                raise client_closed() from None
            raise

    def _check(self) -> None:
        if self._closed.is_set():
            raise client_closed()
        if self._loop not in (None, asyncio.get_running_loop()):
            raise NstError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "the client belongs to the event loop that used it first: make one for each, or use the blocking one",
            )

    async def pause(self, seconds: float) -> None:
        """Return after so many seconds, or when the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, *, patient: bool = False
    ) -> Response:
        """A call that is safe to repeat; see `repeat`. Raises NstError."""

        async def attempt() -> Response:
            return await method(request, metadata=self.metadata, timeout=_CALL_TIMEOUT_SECONDS)

        return await self.repeat(attempt, patient=patient)

    async def call_once(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request
    ) -> Response:
        """A call that is not safe to repeat. Raises NstError."""
        try:
            with self.calling():
                return await method(request, metadata=self.metadata, timeout=_CALL_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.address) from error

    async def repeat(self, attempt: Callable[[], Awaitable[T]], *, patient: bool = False) -> T:
        """What `attempt` returns, made again from its start while the connection is broken; see `Reconnect`.

        An attempt raises TimeoutError where it has fallen silent. Raises NstError.
        """
        reconnect = Reconnect(self, patient=patient)
        while True:
            try:
                with self.calling():
                    answer = await attempt()
            except grpc.aio.AioRpcError as error:
                await reconnect.wait(error)
            except TimeoutError:
                await reconnect.wait(None)
            else:
                reconnect.succeeded()
                return answer

    async def close(self) -> None:
        """Ends every call that is still open, and lets none begin."""
        self._closed.set()
        if self._channel is not None:
            await self._channel.close()


class Reconnect:
    """The pauses between attempts at one thing, and when to give up.

    One that is `patient` also tries again when the server has no room now: what is asked for is there,
    and so many may ask at once only because they all have lost the same gateway.
    """

    def __init__(self, transport: Transport, *, patient: bool = False) -> None:
        self._transport = transport
        self._patient = patient
        self._deadline: float | None = None
        self._delay = _FIRST_DELAY_SECONDS

    def succeeded(self) -> None:
        """The connection works: the next failure is a new one."""
        self._transport.reached = True
        self._deadline = None
        self._delay = _FIRST_DELAY_SECONDS

    async def wait(self, error: grpc.aio.AioRpcError | None) -> None:
        """Return when it is time to try again after `error`; None means a stream that fell silent or ended early.

        Raises:
            NstError: trying again is of no use. The request itself failed, nothing has ever answered
                at this address, there is no room and this is not patient, or `reconnect_timeout` has passed.
        """
        transport = self._transport
        now = monotonic()
        self._deadline = self._deadline or now + transport.reconnect_timeout
        transport.reached |= error is None or has_details(error) or has_lost_status(error)
        failure = self._failure(error)
        pause = failure.retry_after if self._patient and isinstance(failure, ServerBusy) else 0.0
        of_use = error is None or is_broken_connection(error) or pause > 0
        if not of_use or not transport.reached or now >= self._deadline:
            raise failure from error
        # Jitter: the clients of a restarted gateway must not come back all at once.
        pause += self._delay * random.uniform(0.5, 1.0)
        await transport.pause(min(pause, self._deadline - now))
        self._delay = min(self._delay * _DELAY_GROWTH, _LONGEST_DELAY_SECONDS)

    def _failure(self, error: grpc.aio.AioRpcError | None) -> NstError:
        address = self._transport.address
        if error is None:
            return ServerUnavailable(
                grpc.StatusCode.UNAVAILABLE, "the stream fell silent or broke off", address=address
            )
        return from_rpc(error, address)


def _check_address(address: object) -> None:
    if not isinstance(address, str):
        raise TypeError(f"address: must be HOST:PORT, not {address!r}")
    if not address:
        raise ValueError("address: must be HOST:PORT, and is empty")
    if address.startswith(("http://", "https://")):
        raise ValueError(f"address: must be HOST:PORT, not {address!r}; TLS is asked for by `tls`")
    found = _HOST_PORT.fullmatch(address)
    if found and not 1 <= int(found[2]) <= _LARGEST_PORT:
        raise ValueError(f"address: the port must be from 1 to {_LARGEST_PORT}, not {found[2]}")


def _trace_headers() -> dict[str, str]:
    headers: dict[str, str] = {}
    # A program that has not imported OpenTelemetry is in no trace, and need not pay for the import.
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.propagate import inject

        inject(headers)
    return {name.lower(): value for name, value in headers.items()}  # as HTTP/2 has them, and gRPC insists on
