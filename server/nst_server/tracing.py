"""OpenTelemetry spans from a client's call through the queue to the model server.

Spans are exported when OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra `tracing` is installed.
Without that the client's trace context is still carried along, and logged.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, Status, StatusCode

log = logging.getLogger(__name__)

# Not OpenTelemetry's own context: that cannot be left from another task than it was entered in,
# which is what happens when a cancelled stream's generator is closed.
_span: ContextVar[Span] = ContextVar("nst_span", default=trace.INVALID_SPAN)


def configure(service: str) -> None:
    """Sends this process's spans to the collector that the environment names, if it names one."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        log.warning("spans are not exported: pip install '.[tracing]' in the source folder")
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def span(name: str, parent: str, **attributes: str | int) -> Iterator[Span]:
    """A span below a W3C trace context; `traceparent` and the logs show it inside the block."""
    context = propagate.extract({"traceparent": parent})
    current = trace.get_tracer("nst_server").start_span(name, context, attributes=attributes)
    _span.set(current)
    try:
        yield current
    except Exception as error:
        current.set_status(Status(StatusCode.ERROR, str(error)))
        raise
    finally:
        current.end()


def traceparent() -> str:
    """The W3C trace context of the current span; empty without one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(_span.get()))
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """The current trace's id, 32 hexadecimal digits; empty without one."""
    context = _span.get().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""
