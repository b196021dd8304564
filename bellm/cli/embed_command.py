"""`bellm embed`: texts to one file of vectors, or to a folder of shards."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bellm.cli.model_options import AsJson, BatchTokens, Column, GraphFile, ModelOptions, Source, with_model_options
from bellm.cli.terminal import BarUpdate, is_progress_shown, live_bars, print_result, show_note
from bellm.corpus.row_ranges import SHARD_ROWS, Precision, corpus_files
from bellm.errors import BellmError
from bellm.io.rows import TextColumns
from bellm.io.vectors import STDOUT, is_folder
from bellm.types import Embedder, InputType

if TYPE_CHECKING:
    from bellm.corpus import CorpusProgress, CorpusReport


def _folder(*names: str, **how: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Corpus folder", **how)


def _check_output(output: str) -> str:
    if not output:
        raise typer.BadParameter("'' is no name. Name a file or folder, or - for standard output.")
    return output


@with_model_options
def embed_command(
    source: Source,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Texts: .txt (one a line), .jsonl, .json, .csv, .tsv, .parquet, compressed or not, folders, patterns, "
            "or - for lines from a pipe.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            callback=_check_output,
            help="Vectors: .npy, or .jsonl or .parquet with their texts; - prints lines of .jsonl; anything else "
            "is a folder.",
        ),
    ],
    *,
    column: Column = "text",
    max_batch_tokens: BatchTokens = None,
    input_type: Annotated[
        InputType, typer.Option(help="Whether the prompt's query or document template is used.")
    ] = "text",
    graphs: GraphFile = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE,...",
            help="Embed with one process for each device, as in cuda:0,cuda:1; default one process.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it is a file.")] = False,
    as_json: AsJson = False,
    id_column: Annotated[str | None, _folder(help="Which column holds ids; default FILE:ROW.")] = None,
    keep_text: Annotated[bool, _folder("--keep-text", help="Keep the texts beside their vectors.")] = False,
    chunk: Annotated[
        int | None,
        _folder(
            metavar="TOKENS",
            min=1,
            help="Split documents into chunks of at most so many tokens, and keep their texts: files of .md, .html and "
            ".txt, and the rows of all others.",
        ),
    ] = None,
    overlap: Annotated[
        int, _folder(metavar="TOKENS", min=0, help="So many tokens of a chunk, at most, begin the next one too.")
    ] = 0,
    precision: Annotated[Precision, _folder(help="How vectors are kept; int8 has a scale for each row.")] = "float32",
    shard_rows: Annotated[int, _folder(help="Most rows of a shard, and of what a kill costs.", min=1)] = SHARD_ROWS,
    engine: Annotated[
        Literal["local", "ray"],
        _folder(
            help="This process, or workers of a Ray cluster: that of RAY_ADDRESS or of this machine, else a new one. "
            "INPUT, -o and a model's folder must have the same paths on every machine."
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        _folder(
            help="How many workers of Ray load the model; default one for each GPU, or else for each machine.", min=1
        ),
    ] = None,
    options: ModelOptions,
) -> None:
    """Write one vector for each text.

    One file: all texts are read into memory, rows keep their order and
    number, and the output appears whole or not at all.

    A folder: for inputs of any size. It gets shards (Parquet) of id, file,
    row and vector, a manifest, and a list of rows that cannot be read.
    Stopped at any moment, even by kill -9, the same command resumes where it
    was; on inputs that have grown it embeds what is new.

    Example: bellm embed smollm2 sentences.txt -o vectors.npy --bidirectional last:8

    Example: cat notes.txt | bellm embed smollm2 - -o - | jq .vector

    Example: bellm embed smollm2 'wiki/*.jsonl' notes/ -o vectors/ --id-column id --precision float16

    Example: bellm embed smollm2 notes/ -o vectors/ --chunk 256 --overlap 32

    Example: bellm embed smollm2 'wiki/*.jsonl' -o vectors/ --devices cuda:0,cuda:1

    Example: bellm embed smollm2 'wiki/*.jsonl' -o vectors/ --engine ray --workers 8
    """
    device_names = tuple(filter(None, (devices or "").split(",")))
    if devices is not None and not device_names:
        raise BellmError(f"--devices {devices!r} names no device. Give them with commas, as in cuda:0,cuda:1.")
    common: dict[str, Any] = {
        "column": column,
        "input_type": input_type,
        "max_batch_tokens": max_batch_tokens,
        "devices": device_names,
    }
    if output == STDOUT and as_json:
        raise BellmError("--json prints its object where -o - prints the vectors: leave one of them out.")
    load = partial(options.load_embedder, source, graphs=graphs)
    if is_folder(output):
        if force:
            raise BellmError(f"{output} is a folder, which --force does not replace. Remove it, or give another.")
        if engine == "local" and workers is not None:
            raise BellmError("--workers belongs to --engine ray: one process embeds here.")
        # Said before anything slow is imported; the corpus looks again, as it does for others.
        corpus_files(inputs, Path(output), TextColumns.parse(column, id_column), chunk is not None)
        if overlap and chunk is None:
            raise BellmError("--overlap is of chunks: give --chunk too.")
        from bellm.corpus import RayExecutor

        relocation = options.relocation() | ({"graphs": os.path.abspath(graphs)} if graphs else {})
        ray = RayExecutor(source=source, workers=workers, options=relocation) if engine == "ray" else None
        kept: dict[str, Any] = {"source": source, "id_column": id_column, "keep_text": keep_text or chunk is not None}
        kept |= {"precision": precision, "shard_rows": shard_rows, "chunk": chunk, "overlap": overlap}
        report: Any = _embed_folder(load, inputs, output, executor=ray, **common, **kept)
    else:
        if (id_column, keep_text, chunk, overlap, precision, shard_rows, engine, workers) != _NO_FOLDER:
            raise BellmError(
                f"{output} is one file: options of a corpus folder do not fit. Give a folder: -o vectors/."
            )
        from bellm.text_files import embed_file

        report = embed_file(load, inputs, output, force=force, progress=is_progress_shown(), **common)
    if output == STDOUT:
        show_note(str(report))
    else:
        print_result(report.to_json(), as_json, str(report))


_NO_FOLDER = (None, False, None, 0, "float32", SHARD_ROWS, "local", None)
"""Options of a corpus folder as they are when none is given."""


def _embed_folder(load: Callable[[], Embedder], inputs: list[str], output: str, **options: Any) -> "CorpusReport":
    from bellm.corpus import embed_corpus

    # Ray tells of dead workers on standard output, where the result goes.
    with live_bars(counts=False) as update, contextlib.redirect_stdout(sys.stderr):

        def load_first() -> Embedder:
            encoder = load()
            update("checking what is there", 0, 0)
            return encoder

        return embed_corpus(load_first, inputs, output, progress=_corpus_progress(update), **options)


def _corpus_progress(update: BarUpdate) -> "Callable[[CorpusProgress], None]":
    """Show rows and tokens a second, those since the first call: shards that were there took no time."""
    first: tuple[float, int] | None = None

    def show(now: "CorpusProgress") -> None:
        nonlocal first
        clock = time.monotonic()
        first = first or (clock, now.tokens)
        speed = (now.tokens - first[1]) / max(clock - first[0], 1e-3)
        update(f"{now.rows:,} rows, {speed:,.0f} tokens/s", now.share, 1 if now.share else 0)

    return show
