"""What happens around every call: admission, counting, timing, and turning exceptions into statuses."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf import message
from google.rpc import code_pb2

from nst_server import tracing
from nst_server.gateway import metrics
from nst_server.gateway.errors import Refusal, abort, as_refusal, invalid
from nst_server.gateway.quotas import OpenCalls, RequestRates
from nst_server.gateway.upload_memory import RequestMemory

log = logging.getLogger(__name__)

Handler = Any
Context = grpc.aio.ServicerContext[Any, Any]
Limits = tuple[RequestRates, OpenCalls, RequestMemory]
OURS = "/nst.v1."
TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
DEFAULT_TENANT = "anonymous"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our own services; health and reflection are left alone."""

    def __init__(self, rates: RequestRates, open_calls: OpenCalls, memory: RequestMemory) -> None:
        self._limits = rates, open_calls, memory

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OURS):
            return handler
        service, method = handler_call_details.method.removeprefix("/").split("/")
        return _wrapped(handler, service, method, self._limits)


def _wrapped(handler: Any, service: str, method: str, limits: Limits) -> Handler:
    parse = _parser(handler.request_deserializer)
    # gRPC answers UNKNOWN when a deserializer raises before the handler runs: single requests come as bytes.
    coders: dict[str, Callable[[Any], Any] | None] = {
        "request_deserializer": parse if handler.request_streaming else None,
        "response_serializer": _serializer(handler.response_serializer),
    }
    kind = ("client_" if handler.request_streaming else "") + ("server_" if handler.response_streaming else "")
    kind = {"": "unary", "client_": "client_stream", "server_": "server_stream"}.get(kind, "bidi_stream")
    call = _Call(kind, service, method, limits)
    if kind == "unary":
        return grpc.unary_unary_rpc_method_handler(call.single(_parsing(parse, handler.unary_unary)), **coders)
    if kind == "client_stream":
        return grpc.stream_unary_rpc_method_handler(call.single(handler.stream_unary), **coders)
    if kind == "server_stream":
        return grpc.unary_stream_rpc_method_handler(call.stream(_parsing(parse, handler.unary_stream)), **coders)
    return grpc.stream_stream_rpc_method_handler(call.stream(handler.stream_stream), **coders)


def _parser(deserialize: Callable[[bytes], message.Message]) -> Callable[[bytes], message.Message]:
    """Reads a request without the fields that this server does not know, which would be stored unbounded."""

    def parse(data: bytes) -> message.Message:
        try:
            request = deserialize(data)
        except message.DecodeError as error:
            text = "the request is not the message that this call takes: generate the client from this server's protos"
            raise Refusal(code_pb2.INVALID_ARGUMENT, "MALFORMED_MESSAGE", text) from error
        request.DiscardUnknownFields()
        return request

    return parse


def _serializer(serialize: Callable[[message.Message], bytes]) -> Callable[[message.Message | bytes], bytes]:
    """Lets a handler give bytes: what goes to many is serialised once."""
    return lambda response: response if isinstance(response, bytes) else serialize(response)


def _parsing(parse: Callable[[bytes], message.Message], behaviour: Any) -> Any:
    return lambda data, context: behaviour(parse(data), context)


class _Call:
    def __init__(self, kind: str, service: str, method: str, limits: Limits) -> None:
        self._labels = (kind, service, method)
        self._rates, self._open_calls, self._memory = limits

    def single(self, behaviour: Any) -> Any:
        async def handle(request: Any, context: Context) -> Any:
            async with self._around(request, context):
                return await behaviour(request, context)

        return handle

    def stream(self, behaviour: Any) -> Any:
        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._around(request, context), aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return handle

    @asynccontextmanager
    async def _around(self, request: Any, context: Context) -> AsyncIterator[None]:
        started = self._started()
        _, service, method = self._labels
        with tracing.span(f"{service}/{method}", incoming(context, "traceparent")):
            try:
                self._rates.count(tenant(context))
                size = len(request) if isinstance(request, bytes) else 0
                with self._open_calls.place(tenant(context)), self._memory.part(size):
                    yield
            except BaseException as error:
                await self._ended_badly(error, context, started)
                raise
        self._ended("OK", started)

    def _started(self) -> float:
        metrics.RPC_STARTED.labels(*self._labels).inc()
        return time.monotonic()

    def _ended(self, code: str, started: float) -> None:
        metrics.RPC_HANDLED.labels(*self._labels, code).inc()
        metrics.RPC_SECONDS.labels(*self._labels).observe(time.monotonic() - started)

    async def _ended_badly(self, error: BaseException, context: Context, started: float) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit) or not isinstance(error, Exception):
            self._ended("CANCELLED", started)
            return
        refusal = as_refusal(error)
        if refusal is None:
            log.exception("call failed", extra={"method": "/".join(self._labels[1:])}, exc_info=error)
            refusal = Refusal(code_pb2.INTERNAL, "INTERNAL", "the server failed; its log says why")
        if "limit" in refusal.metadata:
            metrics.REFUSED.labels(refusal.metadata["limit"]).inc()
        self._ended(code_pb2.Code.Name(refusal.code), started)
        await abort(context, refusal)


def tenant(context: Context) -> str:
    """Who calls. The one place where this is read.

    Raises:
        Refusal: it is no name of a tenant.
    """
    name = incoming(context, "x-nst-tenant") or DEFAULT_TENANT
    if not TENANT.fullmatch(name):
        raise invalid("x-nst-tenant", "this metadata must have 1 to 64 letters, digits, '-', '_' or '.'")
    return name


def incoming(context: Context, name: str) -> str:
    """A text value of the caller's metadata, cut at 256 characters; empty when there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value[:256]
    return ""
