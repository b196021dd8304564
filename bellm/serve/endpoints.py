"""What a path of the server is, and what handlers of all dialects share."""

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bellm.encoder import Encoder
from bellm.engine.graph_encoder import GraphEncoder
from bellm.serve.request_errors import Dialect, RequestError
from bellm.serve.served_model import ServedModel
from bellm.serve.service import Call, EmbeddingService
from bellm.types import Vectors

_PIECE = 1 << 16  # Bytes.

Handler = Callable[[EmbeddingService, Call, Any], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """A path with a method: who answers, in which dialect, and what a request holds."""

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    summary: str
    dialect: Dialect = "openai"
    body: type[BaseModel] | None = None
    example: Any = None
    """An answer, for the documentation."""
    is_open: bool = False
    """Whether it is for everybody, also where a key is asked for."""


class PiecewiseResponse(Response):
    """A response that is sent piece by piece, so that it is not done before its client has read most of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body) or 1, _PIECE):
            body, more = bytes(self.body[start : start + _PIECE]), start + _PIECE < len(self.body)
            await send({"type": "http.response.body", "body": body, "more_body": more})


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer as JSON; arrays of NumPy are lists."""
    content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return PiecewiseResponse(content, status, headers, "application/json")


def as_base64(vector_D: Vectors) -> str:
    """A vector as OpenAI writes it: its float32 numbers, the lowest byte first, in base64."""
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()


def check_dimensions(model: ServedModel, dimensions: int | None, field: str = "dimensions") -> None:
    """Raise a RequestError where a model has not so many numbers, or does not cut."""
    if dimensions is None:
        return
    if not isinstance(model.embedder, Encoder | GraphEncoder):
        raise RequestError(f"Vectors of {model.name}, no single encoder, are not cut: leave {field} out.", field)
    if dimensions > model.embedder.embedding_dim:
        width = model.embedder.embedding_dim
        raise RequestError(f"{field}={dimensions} is more than the {width} numbers of {model.name}.", field)
