"""`bellm embed`: texts to one file of vectors, or to a folder of shards."""

import json
import sys
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from bellm.cli import embed_folder
from bellm.cli.model_options import AsJson, BatchTokens, Column, ModelOptions, Source, with_model_options
from bellm.corpus.input_files import expand_inputs
from bellm.corpus.row_ranges import SHARD_ROWS
from bellm.errors import BellmError
from bellm.io.rows import read_texts
from bellm.io.vectors import is_folder, new_vector_file


class InputTypeOption(StrEnum):
    """What the texts are to a search; prompts may put queries and documents differently."""

    TEXT = "text"
    QUERY = "query"
    DOCUMENT = "document"


class PrecisionOption(StrEnum):
    """How shards keep vectors."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


class EngineOption(StrEnum):
    """What embeds a corpus."""

    LOCAL = "local"
    RAY = "ray"


def _folder(*names: str, **how: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Corpus folder", **how)


@with_model_options
def embed_command(
    source: Source,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Texts: .txt (one a line), .jsonl, .csv, .tsv, .parquet, also with .gz, folders or patterns of them, "
            "or - for lines from a pipe.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="Vectors: .npy, or .jsonl or .parquet with their texts; anything else is a folder."
        ),
    ],
    *,
    column: Column = "text",
    max_batch_tokens: BatchTokens = None,
    input_type: Annotated[
        InputTypeOption, typer.Option(help="Whether the prompt's query or document template is used.")
    ] = InputTypeOption.TEXT,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it is a file.")] = False,
    as_json: AsJson = False,
    id_column: Annotated[str | None, _folder(help="Which column holds ids; default FILE:ROW.")] = None,
    keep_text: Annotated[bool, _folder("--keep-text", help="Keep the texts beside their vectors.")] = False,
    vectors: Annotated[
        PrecisionOption, _folder(help="How vectors are kept; int8 has a scale for each row.")
    ] = PrecisionOption.FLOAT32,
    shard_rows: Annotated[int, _folder(help="Most rows of a shard, and of what a kill costs.", min=1)] = SHARD_ROWS,
    engine: Annotated[
        EngineOption,
        _folder(
            help="This process, or workers of a Ray cluster: that of RAY_ADDRESS or of this machine, else a new one. "
            "INPUT, -o and a model's folder must have the same paths on every machine."
        ),
    ] = EngineOption.LOCAL,
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
    Stopped at any moment, even by kill -9, the same command goes on where it
    was; on inputs that have grown it embeds what is new.

    Example: bellm embed smollm2 sentences.txt -o vectors.npy --bidirectional last:8

    Example: bellm embed smollm2 'wiki/*.jsonl' notes/ -o vectors/ --id-column id --vectors float16

    Example: bellm embed smollm2 'wiki/*.jsonl' -o vectors/ --engine ray --workers 8
    """
    encoding = {"input_type": input_type.value, "max_batch_tokens": max_batch_tokens}
    if is_folder(output):
        if force:
            raise BellmError(f"{output} is a folder, which --force does not replace. Remove it, or give another.")
        shape = {"id_column": id_column, "keep_text": keep_text, "vectors": vectors.value, "shard_rows": shard_rows}
        result = embed_folder.embed_to_folder(
            source, options, inputs, output, column=column, engine=engine.value, workers=workers, **encoding, **shape
        )
        words = embed_folder.corpus_summary
    else:
        given = (id_column, keep_text, vectors, shard_rows, engine, workers)
        if given != (None, False, PrecisionOption.FLOAT32, SHARD_ROWS, EngineOption.LOCAL, None):
            raise BellmError(
                f"{output} is one file: options of a corpus folder do not fit. Give a folder: -o vectors/."
            )
        result = _to_file(source, options, inputs, output, column, force, **encoding)
        words = _in_words
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else words(result))


def _to_file(
    source: str, options: ModelOptions, inputs: list[str], output: str, column: str, force: bool, **encoding: Any
) -> dict[str, Any]:
    texts = [text for file in expand_inputs(inputs) for text in read_texts(file, column)]
    with new_vector_file(output, force=force) as write:
        encoder = options.load(source)
        start = time.perf_counter()
        vectors = encoder.encode(texts, progress=sys.stderr.isatty(), **encoding)
        seconds = time.perf_counter() - start
        write(texts, vectors)
    from bellm.metadata import encoder_metadata

    return {
        "rows": len(texts),
        "embedding_dim": encoder.embedding_dim,
        "output": output,
        "encoder": encoder_metadata(source, encoder),
        "seconds": round(seconds, 3),
    }


def _in_words(result: dict[str, Any]) -> str:
    encoder = result["encoder"]
    return (
        f"{result['output']}: {result['rows']} rows of {result['embedding_dim']} dimensions, open layers "
        f"{encoder['bidirectional']} of {encoder['num_layers']}, computed in {encoder['dtype']} in "
        f"{result['seconds']:.1f} s ({result['rows'] / max(result['seconds'], 1e-3):.0f} texts/s)"
    )
