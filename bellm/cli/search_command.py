"""`bellm index` and `bellm search`: the nearest rows of a corpus, or the nearest lines of a file."""

import json
import os.path
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from bellm.cli import command_group
from bellm.cli.model_options import DEFAULT_MODEL, AsJson, BatchTokens, Column, ModelOptions, with_model_options
from bellm.errors import BellmError
from bellm.io.rows import check_text

if TYPE_CHECKING:
    from bellm.text_files import SearchResult


def index_command(
    corpus: Annotated[str, typer.Argument(help="A corpus folder that bellm embed wrote.", show_default=False)],
    *,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--exact",
            help="Search a part of the rows, or compare every row; default approximate above a million rows",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a corpus searchable.

    The index lies in the corpus folder. Where the corpus has grown, the same command adds what is new; where it was
    stopped, the same command goes on.

    Example: bellm index vectors/
    """
    from bellm.corpus import build_index

    record = build_index(corpus, approximate=approximate, progress=sys.stderr.isatty())
    if as_json:
        typer.echo(json.dumps({"corpus": corpus, "rows": record.rows, "exact": not record.is_approximate}))
    else:
        how = "approximate; bellm search --exact compares every row" if record.is_approximate else "exact"
        typer.echo(f"{corpus}: {record.rows} rows can be searched, {how}")


@with_model_options
def search_command(
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    *,
    place: Annotated[
        str,
        typer.Option(
            "--in",
            help="Texts: .txt, .jsonl, .csv, .tsv, .parquet, also with .gz, or -; or a corpus folder that bellm index "
            "has seen.",
            show_default=False,
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many texts to show.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every row of a corpus, however large.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Hub id, model folder, .gguf file or saved bellm encoder; default {DEFAULT_MODEL}, and for a corpus "
            "the model that embedded it",
            show_default=False,
        ),
    ] = None,
    column: Column = "text",
    max_batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Find the texts that are nearest to a query, in a file or in a corpus.

    The query and the texts get the prompt's query and document templates, where it has them. Rows count from 1. A
    corpus is searched with the encoder that embedded it, which proves itself first.

    Example: bellm search "how do birds sleep" --in notes.txt --top 5 --prompt instruct
    """
    check_text("The query", query)
    if os.path.isdir(place):
        if refused := [name.replace("_", "-") for name in options.given() if name not in options.relocation()]:
            raise BellmError(f"--{refused[0]} was chosen when {place} was embedded: leave it out, or embed anew.")
        from bellm.corpus import search_corpus

        with command_group.status_line(f"loading the encoder of {place}"):
            result = search_corpus(query, place, top=top, exact=exact, source=model, **options.relocation())
    else:
        from bellm.text_files import search_file

        result = search_file(
            partial(options.load, model or DEFAULT_MODEL),
            query,
            place,
            top=top,
            column=column,
            max_batch_tokens=max_batch_tokens,
            progress=sys.stderr.isatty(),
        )
    if as_json:
        typer.echo(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        _show(result)


def _show(result: "SearchResult") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    of_corpus = any(hit.id is not None for hit in result.hits)
    table = Table("rank", "score", "id" if of_corpus else "row", "text", box=box.SIMPLE_HEAD)
    for rank, hit in enumerate(result.hits, 1):
        name = Text(str(hit.id if of_corpus else hit.row), overflow="fold")
        table.add_row(str(rank), f"{hit.score:.4f}", name, Text(hit.text or "", overflow="fold"))
    Console().print(table)
    if not result.exact:
        typer.echo("Approximate: a part of the rows was compared; --exact compares all.")
