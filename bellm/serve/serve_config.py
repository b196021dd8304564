"""Settings of a server: its limits, how it batches, and who may ask it."""

from dataclasses import dataclass

from bellm.errors import BellmError, check_fields


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of a server. Raises a BellmError where one cannot be meant."""

    api_key: str | None = None
    """What clients send as `Authorization: Bearer KEY`; None asks for none."""
    allow_origin: str | None = None
    """Origin of web pages that may ask, or `*`; None forbids those of all others (no CORS)."""
    allow_hosts: tuple[str, ...] = ()
    """Names under which the server may be asked for; none allows all.

    A page of another origin whose name is made to lead here (DNS rebinding) is told by its name.
    """
    allow_token_ids: bool = False
    """Whether an input may be a list of token ids."""
    max_batch_tokens: int | None = None
    """Most tokens that the model embeds in one go; None takes what suits the hardware."""
    max_queue_tokens: int = 1_000_000
    """Most tokens that wait or are embedded; what comes then is refused with 429."""
    max_texts: int = 2048
    """Most texts of one request."""
    max_body: int = 4_000_000
    """Most bytes of the body of a request."""
    max_connections: int = 1024
    """Most connections at the same time; others get 503."""
    timeout: float = 300.0
    """Seconds after which a request that has no vectors yet ends with 503."""
    read_seconds: float = 30.0
    """Seconds that a client has to send a request."""
    drain_seconds: float = 30.0
    """Seconds that accepted requests have to end once the server was asked to."""
    requests_megabytes: int = 1024
    """Memory for bodies and answers of all requests; what comes then is refused with 429."""
    cache_megabytes: int = 0
    """Memory for vectors of texts that come again."""
    traces_to: str | None = None
    """Address of an OpenTelemetry collector (OTLP over HTTP), as http://localhost:4318/v1/traces; extra `traces`."""

    def __post_init__(self) -> None:
        check_fields(self)
        key = self.api_key
        if key is not None and not (key.isascii() and key.isprintable() and key and key == key.strip()):
            raise BellmError("api_key must be printable ASCII, not empty, no space at its ends: a header carries it.")
        if self.traces_to is not None and not self.traces_to.startswith(("http://", "https://")):
            raise BellmError(f"traces_to={self.traces_to!r} is no address: write http://localhost:4318/v1/traces.")
        limits = ("max_queue_tokens", "max_texts", "max_body", "max_connections", "requests_megabytes")
        least = dict.fromkeys(limits, 1)
        least |= {"max_batch_tokens": 1} if self.max_batch_tokens is not None else {}
        for name, bound in {**least, "cache_megabytes": 0}.items():
            if getattr(self, name) < bound:
                raise BellmError(f"{name}={getattr(self, name)} is too small: give at least {bound}.")
        for name in ("timeout", "read_seconds", "drain_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BellmError(f"{name}={getattr(self, name)} is no number of seconds: give one above 0.")
