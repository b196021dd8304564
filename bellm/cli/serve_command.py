"""`bellm serve`: vectors over HTTP."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bellm.backbone.source_names import check_source_exists
from bellm.cli.model_options import AsJson, GraphFile, ModelOptions, Source, with_model_options
from bellm.cli.terminal import is_quiet, print_result
from bellm.errors import BellmError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@with_model_options
def serve_command(
    source: Source,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is that of all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any that is free.")] = 8080,
    name: Annotated[
        str | None, typer.Option(help="Name that requests give the model; default the last part of SOURCE.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SOURCE", help="Serve another model too, as it was saved; again for each."),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A corpus of this model that bellm index has seen, for /search."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="BELLM_API_KEY", help="Key that requests must have; the variable hides it from lists of processes."
        ),
    ] = None,
    allow_origin: Annotated[
        str | None, typer.Option(metavar="ORIGIN|*", help="Web pages that may ask; default none but its own.")
    ] = None,
    allow_host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Names under which it may be asked for; default any, on 127.0.0.1 only its own."
        ),
    ] = None,
    allow_token_ids: Annotated[
        bool, typer.Option("--allow-token-ids", help="Take token ids of the model's own tokenizer for texts.")
    ] = False,
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Most tokens that are embedded in one go; default what suits the hardware.")
    ] = None,
    max_queue_tokens: Annotated[
        int, typer.Option(help="Most tokens that wait; what comes then is refused with 429.")
    ] = 1_000_000,
    max_texts: Annotated[int, typer.Option(help="Most texts of a request.")] = 2048,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.")] = 4_000_000,
    max_connections: Annotated[int, typer.Option(help="Most connections at the same time.")] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 300.0,
    read_seconds: Annotated[float, typer.Option(help="Seconds that a client has to send a request.")] = 30.0,
    drain_seconds: Annotated[
        float, typer.Option(help="Seconds that accepted requests have to end after SIGTERM or Ctrl-C.")
    ] = 30.0,
    requests_megabytes: Annotated[
        int, typer.Option(help="Memory for bodies and answers of all requests; what comes then is refused with 429.")
    ] = 1024,
    cache_megabytes: Annotated[int, typer.Option(help="Memory for vectors of texts that come again.")] = 0,
    graphs: GraphFile = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Serve vectors over HTTP.

    OpenAI's clients use http://HOST:PORT/v1, those of text-embeddings-inference http://HOST:PORT; /docs lists all
    paths, and / is a page to try the model on. One line is printed when requests are answered. Each request is a line
    of JSON on standard error, without its texts; --quiet drops them.

    After SIGTERM requests that were accepted are answered, then the exit code is 0.

    Example: bellm serve my-encoder

    Example: bellm serve smollm2 --bidirectional last:8 --prompt prompteol --port 8081 --index vectors/
    """
    from bellm.serve import ServeConfig, bind_port

    config = ServeConfig(
        api_key=api_key,
        allow_origin=allow_origin,
        allow_hosts=_allowed_hosts(host, allow_host),
        allow_token_ids=allow_token_ids,
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
        max_texts=max_texts,
        max_body=max_body,
        max_connections=max_connections,
        timeout=timeout,
        read_seconds=read_seconds,
        drain_seconds=drain_seconds,
        requests_megabytes=requests_megabytes,
        cache_megabytes=cache_megabytes,
    )
    sources = _by_name(name or _model_name(source), source, also or ())
    if index is not None:
        from bellm.corpus import read_manifest

        read_manifest(index)  # What is no corpus is said before anything slow is imported.
    with bind_port(host, port) as bound:
        first, *others = sources
        models: dict[str, Any] = {first: options.load_embedder(source, graphs=graphs)}
        for other in others:
            models[other] = ModelOptions({}, options.loading).load_embedder(sources[other])
        from bellm.serve import create_app, run_server

        def say(url: str) -> None:
            words = f"bellm serves {', '.join(models)} on {url}"
            print_result({"url": url, "models": list(models), "pid": os.getpid()}, as_json, words)
            sys.stdout.flush()

        app = create_app(models, config, index=index)
        _log_requests()
        run_server(app, bound, on_ready=say)


def _allowed_hosts(host: str, given: str | None) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in (given or "").split(",") if name.strip())
    return (*_LOOPBACK, *names) if names or host in _LOOPBACK else ()


def _model_name(source: str) -> str:
    path, mark, settings = source.partition("?")
    return f"{Path(path).resolve().name if os.path.exists(path) else path}{mark}{settings}"


def _by_name(name: str, source: str, also: list[str] | tuple[str, ...]) -> dict[str, str]:
    """Sources by the names of their models, checked as far as that takes no model."""
    sources = {name: source}
    for given in also:
        other, mark, path = given.partition("=")
        if not (other and mark and path) or set(other) & set("/?"):
            raise BellmError(f"--also {given} is no NAME=SOURCE: write --also small=path/to/encoder.")
        if other in sources:
            raise BellmError(f"--also {given}: there is a model {other} already. Give another name.")
        check_source_exists(path)
        sources[other] = path
    return sources


def _log_requests() -> None:
    """Write the log of the server to standard error, a line of JSON a request."""
    log = logging.getLogger("bellm.serve")
    if is_quiet():
        log.setLevel(logging.ERROR)
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class _JsonLines(logging.Formatter):
    """Lines of JSON; what is none becomes the message of one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        text = super().format(record)
        return text if record.levelno == logging.INFO else json.dumps({"level": record.levelname, "message": text})
