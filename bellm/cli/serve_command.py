"""`bellm serve`: vectors over HTTP."""

import json
import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bellm.backbone.source_names import check_source_exists
from bellm.cli.model_options import AsJson, GraphFile, ModelOptions, Source, with_model_options
from bellm.cli.terminal import is_quiet, print_result
from bellm.errors import BellmError

if TYPE_CHECKING:
    from bellm.types import Embedder

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
    traces_to: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenTelemetry collector (OTLP over HTTP) that gets a trace of each request, as in "
            "http://localhost:4318/v1/traces.",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="This process, or replicas on a Ray cluster (Ray Serve).")
    ] = "local",
    replicas: Annotated[
        str | None, typer.Option(metavar="N|LEAST:MOST", help="Replicas on the Ray cluster; default 1.")
    ] = None,
    requests_per_replica: Annotated[
        int | None,
        typer.Option(help="Requests at a time above which Ray starts another replica, up to MOST; default 32."),
    ] = None,
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
        traces_to=traces_to,
    )
    sources = _by_name(name or _model_name(source), source, also or ())
    if index is not None:
        from bellm.corpus import read_manifest

        read_manifest(index)  # What is no corpus is said before anything slow is imported.

    def say(url: str) -> None:
        words = f"bellm serves {', '.join(sources)} on {url}"
        print_result({"url": url, "models": list(sources), "pid": os.getpid()}, as_json, words)
        sys.stdout.flush()

    load = partial(_load, sources, options, graphs, is_quiet())
    with bind_port(host, port) as bound:
        if engine == "ray":
            from bellm.serve.ray_server import Replicas, run_on_ray

            given = {} if requests_per_replica is None else {"requests": requests_per_replica}
            scale = Replicas(**_replica_counts(replicas), **given)
            run_on_ray(load, config, bound, replicas=scale, index=index, on_ready=say)
            return
        if replicas is not None or requests_per_replica is not None:
            raise BellmError("--replicas and --requests-per-replica belong to --engine ray: one process serves here.")
        from bellm.serve import create_app, run_server

        run_server(create_app(load(), config, index=index), bound, on_ready=say)


def _load(sources: Mapping[str, str], options: ModelOptions, graphs: str | None, quiet: bool) -> dict[str, "Embedder"]:
    """Load the models of a server by their names; with Ray in another process."""
    first, *others = sources
    models: dict[str, Embedder] = {first: options.load_embedder(sources[first], graphs=graphs)}
    for other in others:
        models[other] = ModelOptions({}, options.loading).load_embedder(sources[other])
    _log_requests(quiet)
    return models


def _replica_counts(given: str | None) -> dict[str, int]:
    least, mark, most = (given or "1").partition(":")
    if not (least.isdecimal() and (most.isdecimal() if mark else True)):
        raise BellmError(f"--replicas {given} is no number: give 2, or 1:4 for one to four.")
    return {"least": int(least), "most": int(most or least)}


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


def _log_requests(quiet: bool) -> None:
    """Write the log of the server to standard error, a line of JSON a request."""
    log = logging.getLogger("bellm.serve")
    if quiet:
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
