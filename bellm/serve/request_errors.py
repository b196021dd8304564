"""Why a request is refused: a status, a sentence, and the form that each dialect gives them."""

import math
from typing import Any, Literal

from bellm.errors import BellmError

Dialect = Literal["openai", "tei", "cohere"]
"""Whose form a request, its answer and its error have."""

_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_TEI_TYPES = {400: "Validation", 413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}


class RequestError(BellmError):
    """A request that is refused. `status` is that of HTTP, `field` the part of the body that is wrong."""

    status = 422
    code = "invalid_value"
    closes = False
    """Whether the connection ends with it."""

    def __init__(self, message: str, field: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message, self.field = message, field
        self.headers = {} if retry_after is None else {"retry-after": str(max(1, math.ceil(retry_after)))}

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """The error as a dialect writes it."""
        if dialect == "tei":
            return {"error": self.message, "error_type": _TEI_TYPES.get(self.status, "Backend")}
        if dialect == "cohere":
            return {"message": self.message}
        kind = _OPENAI_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}}


class MalformedError(RequestError):
    """The body is no JSON object."""

    status, code = 400, "malformed"


class FramingError(RequestError):
    """Where the body ends is not clear."""

    status, code, closes = 400, "malformed", True


class UnauthorizedError(RequestError):
    """The key is missing or wrong."""

    status, code = 401, "invalid_api_key"


class UnknownPathError(RequestError):
    """There is no such path."""

    status, code = 404, "unknown_path"


class UnknownModelError(RequestError):
    """No model has this name."""

    status, code = 404, "model_not_found"


class MethodError(RequestError):
    """The path takes another method."""

    status, code = 405, "wrong_method"


class SlowClientError(RequestError):
    """The body did not come in time."""

    status, code, closes = 408, "slow_client", True


class TooLargeError(RequestError):
    """The request is larger than the server takes."""

    status, code = 413, "too_large"


class MediaTypeError(RequestError):
    """The body is not said to be JSON."""

    status, code = 415, "wrong_content_type"


class WrongHostError(RequestError):
    """The server was asked for under a name that it does not have."""

    status, code = 421, "wrong_host"


class QueueFullError(RequestError):
    """More waits already than the server takes."""

    status, code = 429, "queue_full"


class ServerFaultError(RequestError):
    """The server failed."""

    status, code = 500, "server_fault"


class CrowdedError(RequestError):
    """There are too many connections."""

    status, code, closes = 503, "too_many_connections", True


class UnavailableError(RequestError):
    """The server is ending, its worker has crashed, or the time is up."""

    status, code = 503, "unavailable"
