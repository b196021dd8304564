"""Metrics of a server for Prometheus."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

if TYPE_CHECKING:
    from bellm.serve.batch_queue import BatchRecord
    from bellm.serve.service import Call, EmbeddingService

STAGES = ("tokenize", "queue", "embed")
"""What is done with the texts of a request."""

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class ServeMetrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        """Labels that all have, as the replica that they are of."""
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("bellm_requests", "Requests by path and status", ["path", "status"], registry=registry)
        self._errors = Counter("bellm_errors", "Refused and failed requests by code", ["code"], registry=registry)
        self._texts = Counter("bellm_texts", "Texts of answered requests", registry=registry)
        self._tokens = Counter("bellm_tokens", "Tokens of answered requests", registry=registry)
        self._truncated = Counter("bellm_truncated_texts", "Texts that were cut", registry=registry)
        self._embedded = Counter("bellm_embedded_tokens", "Tokens that the model embedded", registry=registry)
        self._busy = Counter("bellm_busy_seconds", "Seconds that the worker embedded", registry=registry)
        self._fill = Histogram(
            "bellm_batch_fill", "Tokens of a batch, as a share of the most", buckets=_SHARES, registry=registry
        )
        self._rows = Histogram(
            "bellm_batch_texts", "Texts of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512), registry=registry
        )
        self._stages = Histogram(
            "bellm_stage_seconds", "Time of a request by stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._queue = Gauge("bellm_queue_tokens", "Tokens that wait or are embedded", registry=registry)
        self._calls = Gauge("bellm_open_requests", "Requests that are being answered", registry=registry)

    def watch(self, service: "EmbeddingService") -> None:
        """Read what changes all the time when somebody asks."""
        self._queue.set_function(lambda: service.queue.num_tokens)
        self._calls.set_function(lambda: service.num_calls)

    def count_batch(self, record: "BatchRecord") -> None:
        """Count a batch of the worker."""
        self._embedded.inc(record.num_tokens)
        self._busy.inc(record.seconds)
        self._fill.observe(record.num_tokens / record.budget)
        self._rows.observe(record.num_rows)

    def count_call(self, call: "Call", path: str, status: int, seconds: float) -> None:
        """Count a request that has ended; `path` is that of a route, of which there are few."""
        self._requests.labels(path, status).inc()
        if call.error:
            self._errors.labels(call.error).inc()
        if not call.num_texts or status >= 400:
            return
        self._texts.inc(call.num_texts)
        self._tokens.inc(call.num_tokens)
        self._truncated.inc(call.num_truncated)
        for stage in STAGES:
            self._stages.labels(stage).observe(call.seconds(stage))
        self._stages.labels("total").observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """All metrics with the common labels, as Prometheus' client asks for them."""
        for metric in self._registry.collect():
            metric.samples = [each._replace(labels={**each.labels, **self.labels}) for each in metric.samples]
            yield metric
