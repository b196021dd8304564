"""`bellm embed`: a file of texts to a file of vectors."""

import json
import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellm.cli import files
from bellm.cli.options import AsJson, BatchTokens, Column, ModelOptions, Source, facts, takes_model

if TYPE_CHECKING:
    from bellm.encoder import Encoder
    from bellm.types import Vectors


class Role(StrEnum):
    """What the texts are to a search; prompts may put queries and documents differently."""

    TEXT = "text"
    QUERY = "query"
    DOCUMENT = "document"


@takes_model
def embed(
    source: Source,
    input: Annotated[
        str,
        typer.Argument(help="Texts: .txt (one a line), .jsonl, .csv, .tsv, .parquet, or - for lines from a pipe."),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Vectors: .npy, or .jsonl or .parquet with their texts.")
    ],
    *,
    column: Column = "text",
    max_batch_tokens: BatchTokens = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Scale every vector to length 1.")] = False,
    role: Annotated[Role, typer.Option(help="Whether the prompt's query or document template is used.")] = Role.TEXT,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Write one vector for each text of a file.

    Rows keep their order and number; the output appears whole or not at all.

    Example: bellm embed smollm2 sentences.txt -o vectors.npy --bidirectional last:8
    """
    texts = files.read_texts(input, column)
    with files.fresh_file(output, force=force) as write:
        encoder = options.load(source)
        start = time.perf_counter()
        vectors = _vectors(encoder, role, texts, max_batch_tokens, normalise)
        seconds = time.perf_counter() - start
        write(texts, vectors)
    result = {
        "rows": len(texts),
        "dim": encoder.dim,
        "output": output,
        "encoder": facts(source, encoder),
        "seconds": round(seconds, 3),
    }
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else _in_words(result))


def _vectors(
    encoder: "Encoder", role: Role, texts: list[str], max_batch_tokens: int | None, normalise: bool
) -> "Vectors":
    encode = {
        Role.TEXT: encoder.encode,
        Role.QUERY: encoder.encode_query,
        Role.DOCUMENT: encoder.encode_document,
    }[role]
    return encode(texts, max_batch_tokens=max_batch_tokens, normalise=normalise, progress=sys.stderr.isatty())


def _in_words(result: dict[str, Any]) -> str:
    encoder = result["encoder"]
    return (
        f"{result['output']}: {result['rows']} rows of {result['dim']} dimensions, open layers "
        f"{encoder['bidirectional']} of {encoder['num_layers']}, computed in {encoder['dtype']} in "
        f"{result['seconds']:.1f} s ({result['rows'] / max(result['seconds'], 1e-3):.0f} texts/s)"
    )
