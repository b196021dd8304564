"""OpenTelemetry: a span for each request that has ended, below that of its client, with its stages below it."""

import os
import time
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bellm.serve.service import Call
from bellm.version import __version__


class RequestTraces:
    """Makes spans of requests; a thread exports them, so that a collector that does not answer holds up no request."""

    def __init__(self, exporter: SpanExporter) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME", "bellm")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("bellm.serve", __version__)

    def record(self, call: Call, path: str, status: int) -> str:
        """Make the spans of a request that has ended; returns the id of its trace. `path` is that of a route."""
        now, now_ns = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            return now_ns - int(1e9 * (now - moment))

        method = call.request.method[:20]
        parent = TraceContextTextMapPropagator().extract(call.request.headers)
        found: dict[str, Any] = {"http.request.method": method, "http.route": path, "http.response.status_code": status}
        found |= {"bellm.request_id": call.id, "bellm.model": call.model, "error.type": call.error}
        if call.num_texts:
            found |= {"bellm.texts": call.num_texts, "bellm.tokens": call.num_tokens}
            found |= {"bellm.truncated_texts": call.num_truncated}
        span = self._tracer.start_span(
            f"{method} {path}",
            parent,
            SpanKind.SERVER,
            {name: value for name, value in found.items() if value is not None},
            start_time=at(call.came),
        )
        inside = set_span_in_context(span, parent)
        for stage, began, ended in call.stages:
            self._tracer.start_span(stage, inside, start_time=at(began)).end(at(ended))
        if status >= 500:
            span.set_status(StatusCode.ERROR, call.error)
        span.end(now_ns)
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def otlp_exporter(url: str) -> SpanExporter:
    """What sends spans to a collector that speaks OTLP over HTTP."""
    return OTLPSpanExporter(endpoint=url, timeout=5)  # Seconds, after which these spans are lost.
