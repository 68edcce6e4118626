"""What happens around every call: counting, timing, and turning exceptions into statuses."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.rpc import code_pb2

from nst_server import metrics
from nst_server.gateway.errors import Refusal, abort, as_refusal

log = logging.getLogger(__name__)

Handler = Any
OURS = "/nst.v1."


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our own services; health and reflection are left alone."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OURS):
            return handler
        service, method = handler_call_details.method.removeprefix("/").split("/")
        return _wrapped(handler, service, method)


def _wrapped(handler: Any, service: str, method: str) -> Handler:
    coders = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    kind = ("client_" if handler.request_streaming else "") + ("server_" if handler.response_streaming else "")
    kind = {"": "unary", "client_": "client_stream", "server_": "server_stream"}.get(kind, "bidi_stream")
    call = _Call(kind, service, method)
    if kind == "unary":
        return grpc.unary_unary_rpc_method_handler(call.single(handler.unary_unary), **coders)
    if kind == "client_stream":
        return grpc.stream_unary_rpc_method_handler(call.single(handler.stream_unary), **coders)
    if kind == "server_stream":
        return grpc.unary_stream_rpc_method_handler(call.stream(handler.unary_stream), **coders)
    return grpc.stream_stream_rpc_method_handler(call.stream(handler.stream_stream), **coders)


class _Call:
    def __init__(self, kind: str, service: str, method: str) -> None:
        self._labels = (kind, service, method)

    def single(self, behaviour: Any) -> Any:
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await self._watched(lambda: behaviour(request, context), context)

        return handle

    def stream(self, behaviour: Any) -> Any:
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            responses: AsyncIterator[Any] = behaviour(request, context)
            started = self._started()
            try:
                async for response in responses:
                    yield response
            except BaseException as error:
                await self._ended_badly(error, context, started)
                raise
            else:
                self._ended("OK", started)
            finally:
                await responses.aclose()  # type: ignore[attr-defined]

        return handle

    async def _watched(self, work: Callable[[], Awaitable[Any]], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = self._started()
        try:
            response = await work()
        except BaseException as error:
            await self._ended_badly(error, context, started)
            raise
        self._ended("OK", started)
        return response

    def _started(self) -> float:
        metrics.RPC_STARTED.labels(*self._labels).inc()
        return time.monotonic()

    def _ended(self, code: str, started: float) -> None:
        metrics.RPC_HANDLED.labels(*self._labels, code).inc()
        metrics.RPC_SECONDS.labels(*self._labels).observe(time.monotonic() - started)

    async def _ended_badly(
        self, error: BaseException, context: grpc.aio.ServicerContext[Any, Any], started: float
    ) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit) or not isinstance(error, Exception):
            self._ended("CANCELLED", started)
            return
        refusal = as_refusal(error)
        if refusal is None:
            log.exception("call failed", extra={"method": "/".join(self._labels[1:])}, exc_info=error)
            refusal = Refusal(code_pb2.INTERNAL, "INTERNAL", "the server failed; its log says why")
        self._ended(code_pb2.Code.Name(refusal.code), started)
        await abort(context, refusal)
