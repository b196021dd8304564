"""Pages of the server: its documentation from the endpoints, as OpenAPI and as HTML, and the playground.

They request nothing from elsewhere: style and script are part of a page, and its content security policy names their
digests.
"""

import base64
import hashlib
import html
import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from bellm.serve.cohere_dialect import COHERE_ENDPOINTS
from bellm.serve.endpoints import Endpoint, json_response
from bellm.serve.openai_dialect import OPENAI_ENDPOINTS
from bellm.serve.operator_endpoints import OPERATOR_ENDPOINTS
from bellm.serve.service import Call, EmbeddingService
from bellm.serve.tei_dialect import TEI_ENDPOINTS
from bellm.version import __version__

_HERE = Path(__file__).parent
_DOCUMENTED = (*OPENAI_ENDPOINTS, *TEI_ENDPOINTS, *COHERE_ENDPOINTS, *OPERATOR_ENDPOINTS)
_STATUSES = {
    400: "The body is no JSON object",
    401: "The key is missing or wrong",
    404: "There is no such model",
    408: "The body did not come in time",
    413: "The body or one of its lists is too long",
    415: "The body is not said to be JSON",
    422: "A field is wrong; the error names it",
    429: "The queue is full; Retry-After says when to send it again",
    500: "The model fails on a text",
    503: "The server is ending, its worker has crashed, or the time is up",
}


@cache
def openapi_document() -> dict[str, Any]:
    """The endpoints as OpenAPI 3.1."""
    bodies = list(dict.fromkeys(each.body for each in _DOCUMENTED if each.body))
    reference = "#/components/schemas/{model}"
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=reference)
    paths: dict[str, dict[str, Any]] = {}
    for each in _DOCUMENTED:
        answer: dict[str, Any] = {"description": each.summary}
        if each.path != "/metrics":
            answer["content"] = {
                "application/json": {"schema": {}} | ({"example": each.example} if each.example else {})
            }
        statuses = _STATUSES if each.body else {401: _STATUSES[401], 503: _STATUSES[503]}
        operation: dict[str, Any] = {
            "summary": each.summary,
            "responses": {"200": answer, **{str(code): {"description": why} for code, why in statuses.items()}},
        }
        if each.body:
            schema = {"$ref": reference.format(model=each.body.__name__)}
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if each.is_open:
            operation["security"] = []
        paths.setdefault(each.path, {})[each.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "bellm", "version": __version__},
        "paths": paths,
        "security": [{}, {"key": []}],
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


async def openapi(_: EmbeddingService, __: Call, ___: None) -> Response:
    """The OpenAPI document."""
    return json_response(openapi_document())


async def documentation(_: EmbeddingService, __: Call, ___: None) -> Response:
    """The OpenAPI document for people."""
    return _page("api_documentation.html", _documentation())


async def playground(_: EmbeddingService, __: Call, ___: None) -> Response:
    """A page to try the models on."""
    return _page("playground.html", "")


def _documentation() -> str:
    schemas, parts = openapi_document()["components"]["schemas"], []
    for each in _DOCUMENTED:
        fields = ""
        if each.body:
            rows = "".join(
                f"<tr><th><code>{html.escape(name)}</code></th><td>{html.escape(_type_words(field))}</td></tr>"
                for name, field in schemas[each.body.__name__]["properties"].items()
            )
            fields = f"<table>{rows}</table>"
        example = f"<pre>{html.escape(json.dumps(each.example))}</pre>" if each.example else ""
        heading = f"<h2><small>{each.method}</small> {html.escape(each.path)}</h2>"
        parts.append(f"<section>{heading}<p>{html.escape(each.summary)}</p>{fields}{example}</section>")
    return "".join(parts)


def _type_words(schema: dict[str, Any]) -> str:
    """What a field holds, in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return ", or ".join(_type_words(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_type_words(schema['items'])}"
    kind = str(schema.get("type", "anything"))
    return {"string": "text", "boolean": "true or false"}.get(kind, kind)


def _page(name: str, content: str) -> Response:
    text, policy = _read_page(name)
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
    return Response(text.replace("<!-- content -->", content), 200, headers, "text/html")


@cache
def _read_page(name: str) -> tuple[str, str]:
    """A page with style and script in it, and its content security policy."""
    style = (_HERE / "serve_page.css").read_text(encoding="utf-8")
    script_file = (_HERE / name).with_suffix(".js")
    script = script_file.read_text(encoding="utf-8") if script_file.exists() else ""
    text = (_HERE / name).read_text(encoding="utf-8")
    text = text.replace("<!-- style -->", f"<style>{style}</style>")
    text = text.replace("<!-- script -->", f"<script>{script}</script>" if script else "")
    rules = {"default-src": "'none'", "style-src": f"'sha256-{_digest(style)}'", "connect-src": "'self'"}
    rules |= {"script-src": f"'sha256-{_digest(script)}'"} if script else {}
    rules |= {"base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    return text, "; ".join(f"{rule} {value}" for rule, value in rules.items())


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


PAGE_ENDPOINTS = (
    Endpoint("GET", "/", playground, "A page to try the models on", is_open=True),
    Endpoint("GET", "/docs", documentation, "The documentation of the server", is_open=True),
    Endpoint("GET", "/openapi.json", openapi, "The documentation as OpenAPI", is_open=True),
)
