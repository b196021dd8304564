"""What operators and load balancers ask: is the server alive and ready, and what has it done? And search, if it may."""

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from bellm.errors import BellmError
from bellm.serve.endpoints import Endpoint, json_response
from bellm.serve.request_bodies import SearchQuery
from bellm.serve.request_errors import RequestError
from bellm.serve.service import Call, EmbeddingService


async def health(service: EmbeddingService, _: Call, __: None) -> Response:
    """200 where requests are answered, 503 where the server is ending or its worker has crashed."""
    service.check_ready()
    return json_response({"status": "ready"})


async def live(service: EmbeddingService, _: Call, __: None) -> Response:
    """200 unless only a new start helps."""
    service.check_alive()
    return json_response({"status": "alive"})


async def metrics(service: EmbeddingService, _: Call, __: None) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def search(service: EmbeddingService, call: Call, body: SearchQuery) -> Response:
    """Rows of the corpus that are nearest to a query, best first."""
    if service.index is None:
        raise RequestError("There is no corpus to search: start the server with --index FOLDER.")
    prepared = await service.prepare(call, service.default, [body.query], "query", field="query")
    vectors = await service.embed(call, prepared)
    try:
        hits = await run_in_threadpool(service.index.search, vectors[0], body.top, exact=body.exact)
    except BellmError as error:
        raise RequestError(str(error), "query") from error
    is_exact = body.exact or service.index.record.is_exact
    return json_response({"hits": [hit.to_json() for hit in hits], "exact": is_exact})


_HIT = {"score": 0.91, "id": "7", "file": "notes.txt", "row": 7, "text": "Snow fell."}

OPERATOR_ENDPOINTS = (
    Endpoint("GET", "/health", health, "Is the server ready?", is_open=True),
    Endpoint("GET", "/live", live, "Is the server alive? Where it is not, only a new start helps", is_open=True),
    Endpoint("GET", "/metrics", metrics, "Metrics for Prometheus"),
    Endpoint(
        "POST",
        "/search",
        search,
        "Rows of the corpus that are nearest to a query (--index)",
        body=SearchQuery,
        example={"hits": [_HIT], "exact": True},
    ),
)
