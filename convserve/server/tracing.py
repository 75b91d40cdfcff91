"""Traces by OpenTelemetry: a span for each call, and in it one for each stage; imported only where they are on."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from convserve import __version__
from convserve.optional import optional
from convserve.server.statistics import Record

__all__ = ["Ended", "NoTracing", "Tracing", "tracing_to"]

CONSOLE = "console"
CARRIED = ("traceparent", "tracestate")
"""Metadata or headers by which a caller's span becomes the parent of the call's: W3C Trace Context."""

_LAST_WORDS_S = 3.0
# what the conventions for gRPC's servers call an error; the others are the client's
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")

Ended = Callable[[str], None]


class NoTracing:
    """Does nothing, in the place of Tracing."""

    @contextmanager
    def call(self, protocol: str, method: str, request_id: str, metadata: Iterable[tuple[str, Any]]) -> Iterator[Ended]:
        """As Tracing.call()."""
        yield lambda status: None

    def record(self, model: str, version: str, record: Record, came_ns: int) -> None:
        """As Tracing.record()."""

    def close(self) -> None:
        """As Tracing.close()."""


class Tracing(NoTracing):
    """Spans of this process's calls, sent by an exporter of OpenTelemetry's SDK."""

    def __init__(self, exporter: Any, *, at_once: bool = False) -> None:
        """at_once: each span as it ends, rather than many together from a thread."""
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider, export
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "convserve"}
        resource = Resource.create({**named, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        processor = export.SimpleSpanProcessor if at_once else export.BatchSpanProcessor
        self._provider.add_span_processor(processor(exporter))
        self._trace, self._tracer = trace, self._provider.get_tracer("convserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def call(self, protocol: str, method: str, request_id: str, metadata: Iterable[tuple[str, Any]]) -> Iterator[Ended]:
        """Make the block a span, whose parent is the one that metadata have, if any; what it yields tells its status.

        method: /service/method of gRPC, verb and path of HTTP.
        """
        parent = self._propagator.extract({key: value for key, value in metadata if key in CARRIED})
        if protocol == "grpc":
            service, _, name = method.lstrip("/").partition("/")
            about = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        else:
            verb, _, path = method.partition(" ")
            about = {"http.request.method": verb, "http.route": path}
        attributes = {**about, "convserve.request_id": request_id}
        kind = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(method.lstrip("/"), context=parent, kind=kind, attributes=attributes)

        def ended(status: str) -> None:
            if protocol == "grpc":
                span.set_attribute("rpc.grpc.status", status)
            else:
                span.set_attribute("http.response.status_code", int(status))
            if status in _FAULTS or status.startswith("5"):
                span.set_status(self._trace.StatusCode.ERROR, status)

        with self._trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield ended

    def record(self, model: str, version: str, record: Record, came_ns: int) -> None:
        """Tell the current call's span what its request was about, and give it a span for each stage and each wait."""
        span = self._trace.get_current_span()
        span.set_attribute("convserve.model.name", model)
        span.set_attribute("convserve.model.version", version)
        span.set_attribute("convserve.images", record.images)
        if record.batches:
            span.set_attribute("convserve.batch_images", record.batches[0])
        since_epoch_ns = time.time_ns() - time.perf_counter_ns()
        at_ns = came_ns
        for stage, start_ns, end_ns in sorted(record.spans, key=lambda one: one[1]):
            for name, begins_ns, ends_ns in (("wait", at_ns, start_ns), (stage, start_ns, end_ns)):
                if ends_ns > begins_ns:
                    child = self._tracer.start_span(name, start_time=begins_ns + since_epoch_ns)
                    child.end(ends_ns + since_epoch_ns)
            at_ns = max(at_ns, end_ns)

    def close(self) -> None:
        """Send what is left, as far as that can be done in some seconds."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_LAST_WORDS_S)


def tracing_to(target: str) -> Tracing:
    """Return traces to "console", a JSON object a line on stderr, or to the address of a collector (OTLP over HTTP).

    Raises InputError where OpenTelemetry's packages are missing.
    """
    what = f"traces go to {target!r} by OpenTelemetry"
    if target == CONSOLE:
        export = optional("opentelemetry.sdk.trace.export", what, extra="otel")
        lines = export.ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: span.to_json(indent=None) + "\n")
        return Tracing(lines, at_once=True)
    otlp = optional("opentelemetry.exporter.otlp.proto.http.trace_exporter", what, extra="otel")
    path = target.partition("://")[2].partition("/")[2]
    return Tracing(otlp.OTLPSpanExporter(endpoint=target if path else f"{target.rstrip('/')}/v1/traces"))
