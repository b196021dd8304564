"""`bellm similarity` and `bellm search`: cosines without a file of vectors."""

import json
import os.path
import sys
from typing import Annotated

import typer

from bellm.cli import files
from bellm.cli.options import DEFAULT_MODEL, AsJson, BatchTokens, Column, Model, ModelOptions, takes_model
from bellm.errors import BellmError


@takes_model
def similarity(
    a: Annotated[str, typer.Argument(help="A text, or a file of texts.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Another text, or a file with as many texts.", show_default=False)],
    *,
    model: Model = DEFAULT_MODEL,
    column: Column = "text",
    max_batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Cosine of two texts, or of two files row by row.

    Example: bellm similarity "a river bank" "the shore of a stream"
    """
    left, right = _pairs(a, b, column)
    encoder = options.load(model)
    from bellm.facts import facts
    from bellm.tensors.similarity import paired_cosine

    both = encoder.encode(
        left + right, max_batch_tokens=max_batch_tokens, progress=sys.stderr.isatty() and len(left) > 1
    )
    cosines = paired_cosine(both[: len(left)], both[len(left) :]).tolist()
    if as_json:
        typer.echo(json.dumps({"cosines": cosines, "encoder": facts(model, encoder)}, ensure_ascii=False))
    else:
        typer.echo("".join(f"{cosine:.4f}\n" for cosine in cosines), nl=False)


@takes_model
def search(
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    *,
    file: Annotated[
        str, typer.Option("--in", help="Texts to search: .txt, .jsonl, .csv, .tsv, .parquet or -.", show_default=False)
    ],
    top: Annotated[int, typer.Option(min=1, help="How many texts to show.")] = 10,
    model: Model = DEFAULT_MODEL,
    column: Column = "text",
    max_batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Find the texts of a file that are nearest to a query.

    The query and the texts get the prompt's query and document templates, where it has them. Rows count from 1.

    Example: bellm search "how do birds sleep" --in notes.txt --top 5 --prompt instruct
    """
    query = files.checked_text("The query", query)
    texts = files.read_texts(file, column)
    encoder = options.load(model)
    from bellm.facts import facts
    from bellm.tensors.similarity import cosine

    documents = encoder.encode_document(texts, max_batch_tokens=max_batch_tokens, progress=sys.stderr.isatty())
    scores = cosine(encoder.encode_query([query]), documents)[0]
    best = (-scores).argsort(kind="stable")[:top].tolist()
    hits = [(float(scores[row]), row + 1, texts[row]) for row in best]
    if as_json:
        rows = [{"score": score, "row": row, "text": text} for score, row, text in hits]
        typer.echo(json.dumps({"hits": rows, "encoder": facts(model, encoder)}, ensure_ascii=False))
    else:
        _show(hits)


def _pairs(a: str, b: str, column: str) -> tuple[list[str], list[str]]:
    is_file = [os.path.isfile(side) for side in (a, b)]
    if not any(is_file):
        return [files.checked_text("The first text", a)], [files.checked_text("The second text", b)]
    if not all(is_file):
        file, text = (a, b) if is_file[0] else (b, a)
        raise BellmError(f"{file} is a file, but {text!r} is not. Give two texts or two files.")
    left, right = files.read_texts(a, column), files.read_texts(b, column)
    if len(left) != len(right):
        raise BellmError(f"{a} has {len(left)} texts and {b} has {len(right)}: rows are compared one by one.")
    return left, right


def _show(hits: list[tuple[float, int, str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("rank", "score", "row", "text", box=box.SIMPLE_HEAD)
    for rank, (score, row, text) in enumerate(hits, 1):
        table.add_row(str(rank), f"{score:.4f}", str(row), Text(text, overflow="fold"))
    Console().print(table)
