"""OpenTelemetry: spans of requests, and that they reach a collector; one that is not there holds nobody up."""

import http.server
import logging
import threading
from typing import Any

import pytest

from bellm import Encoder
from bellm.errors import BellmError
from bellm.serve import ServeConfig, create_app
from tests.serve.servers import ask, serving

pytest.importorskip("opentelemetry.sdk", reason="no OpenTelemetry: pip install 'bellm[traces]'")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TEXTS = ["Snow fell.", "A heron waits."]


def test_a_request_is_a_span_with_its_stages(tiny_encoder: Encoder) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode

    from bellm.serve.request_traces import RequestTraces

    exporter = InMemorySpanExporter()
    app = create_app({"tiny": tiny_encoder})
    app.state.service.traces = RequestTraces(exporter)
    with serving(app) as url:
        ask(url, "/embed", {"inputs": TEXTS}, traceparent=f"00-{TRACE}-{PARENT}-01", x_request_id="mine-1")
        ask(url, "/embed", {"inputs": 5}, traceparent="nonsense")
        ask(url, "/nowhere")
    spans = exporter.get_finished_spans()  # All of them: the server exports what is left when it ends.
    assert [span.name for span in spans] == ["tokenize", "queue", "embed", "POST /embed", "POST /embed", "GET other"]
    *stages, request, wrong, lost = spans
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.kind == SpanKind.SERVER
    found: dict[str, Any] = dict(request.attributes or {})
    assert (found["http.route"], found["http.response.status_code"], found["bellm.texts"]) == ("/embed", 200, 2)
    assert (found["bellm.request_id"], found["bellm.model"]) == ("mine-1", "tiny")
    times = [request.start_time, *(time for span in stages for time in (span.start_time, span.end_time))]
    assert [*times, request.end_time] == sorted([*times, request.end_time])
    assert {span.parent.span_id for span in stages} == {request.context.span_id}
    assert wrong.parent is None
    assert (wrong.attributes["error.type"], wrong.status.status_code) == ("invalid_value", StatusCode.UNSET)
    assert lost.attributes["http.response.status_code"] == 404


def test_spans_reach_a_collector(tiny_encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        with caplog.at_level(logging.INFO, "bellm.serve"), serving(_app(tiny_encoder, address)) as url:
            ask(url, "/embed", {"inputs": TEXTS})
        collector.shutdown()
    sent = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    [resource] = [each for request in sent for each in request.resource_spans]
    assert "bellm" in [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
    spans = [span for each in resource.scope_spans for span in each.spans]
    assert [span.name for span in spans] == ["tokenize", "queue", "embed", "POST /embed"]
    assert f'"trace": "{spans[0].trace_id.hex()}"' in caplog.messages[-1]


def test_a_collector_that_is_not_there_holds_nobody_up(tiny_encoder: Encoder) -> None:
    with serving(_app(tiny_encoder, "http://127.0.0.1:9/v1/traces")) as url:
        assert ask(url, "/embed", {"inputs": TEXTS}).status == 200


def test_an_address_is_asked_for() -> None:
    with pytest.raises(
        BellmError, match=r"traces_to='localhost' is no address: write http://localhost:4318/v1/traces\."
    ):
        ServeConfig(traces_to="localhost")


def _app(encoder: Encoder, address: str) -> Any:
    return create_app({"tiny": encoder}, ServeConfig(traces_to=address))
