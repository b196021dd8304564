"""`bellm similarity`, `bellm index` and `bellm search`: cosines of texts, nearest rows of a file or a corpus."""

import os.path
import re
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from bellm.cli.model_options import (
    DEFAULT_MODEL,
    AsJson,
    BatchTokens,
    Column,
    GraphFile,
    ModelOptions,
    OptionalSource,
    with_model_options,
)
from bellm.cli.terminal import is_progress_shown, print_result, status_line
from bellm.io.rows import check_query

if TYPE_CHECKING:
    from rich.table import Table

    from bellm.text_files import SearchResult


@with_model_options
def similarity_command(
    source: OptionalSource,
    a: Annotated[str, typer.Argument(help="A text, or a file of texts.")],
    b: Annotated[str, typer.Argument(help="Another text, or a file with as many texts.")],
    *,
    column: Column = "text",
    max_batch_tokens: BatchTokens = None,
    graphs: GraphFile = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Cosine of two texts, or of two files row by row.

    Example: bellm similarity "a river bank" "the shore of a stream"

    Example: bellm similarity my-encoder left.txt right.txt --json
    """
    from bellm.text_files import compare_texts

    load, progress = partial(options.load_embedder, source or DEFAULT_MODEL, graphs=graphs), is_progress_shown()
    result = compare_texts(load, a, b, column=column, max_batch_tokens=max_batch_tokens, progress=progress)
    print_result(result.to_json(), as_json, str(result))


def index_command(
    corpus: Annotated[str, typer.Argument(help="A corpus folder that bellm embed wrote.")],
    *,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--exact",
            help="Search a part of the rows, or compare every row; default approximate above a million rows",
        ),
    ] = None,
    binary: Annotated[
        bool,
        typer.Option("--binary", help="Compare the signs of all rows first, a bit a number, and the nearest in full."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a corpus searchable.

    The index lies in the corpus folder. Where the corpus has grown, the same command adds what is new; where it was
    stopped, the same command resumes.

    Example: bellm index vectors/
    """
    from bellm.corpus import read_manifest

    read_manifest(corpus)  # What is no corpus is said before anything slow is imported.
    from bellm.corpus import build_index

    record = build_index(corpus, approximate=approximate, binary=binary, progress=is_progress_shown())
    full = "bellm search --exact compares every row"
    how = f"approximate; {full}" if record.is_approximate else "exact"
    how = f"by signs, the nearest then in full; {full} so" if record.is_binary else how
    result = {"corpus": corpus, "rows": record.rows, "exact": record.is_exact}
    print_result(result, as_json, f"{corpus}: {record.rows} rows can be searched, {how}")


@with_model_options
def search_command(
    source: OptionalSource,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    *,
    place: Annotated[
        str,
        typer.Option(
            "--in",
            help="Texts: .txt, .jsonl, .json, .csv, .tsv, .parquet, compressed or not, or -; or a corpus that "
            "bellm index has seen.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many texts to show.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every row of a corpus, however large.")] = False,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Rank a corpus by the words of its texts too, and fuse both rankings.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Of each document of a corpus in chunks show the best chunk alone.")
    ] = False,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL", help="Which rows of a corpus count: id, file, row, text. Ex: \"file = 'notes.txt'\""
        ),
    ] = None,
    column: Column = "text",
    max_batch_tokens: BatchTokens = None,
    graphs: GraphFile = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Find the texts that are nearest to a query, in a file or in a corpus.

    The query and the texts get the prompt's query and document templates, where it has them. Rows count from 1. A
    corpus is searched with the encoder that embedded it, which proves itself first.

    Example: bellm search "how do birds sleep" --in notes.txt --top 5 --prompt instruct

    Example: bellm search my-encoder "how do birds sleep" --in vectors/
    """
    check_query(query)
    if os.path.isdir(place):
        from bellm.corpus import read_manifest

        read_manifest(place)  # What is no corpus is said before anything slow is imported.
        from bellm.corpus import search_corpus

        with status_line(f"loading the encoder of {place}"):
            options_given = {**options.given(), "graphs": graphs}
            result = search_corpus(
                query,
                place,
                top=top,
                exact=exact,
                hybrid=hybrid,
                where=where,
                best=best,
                source=source or None,
                **options_given,
            )
    elif named := [name for name, given in (("hybrid", hybrid), ("where", where), ("best", best)) if given]:
        raise typer.BadParameter(f"--{named[0]} is for a corpus with an index, and {place} is none.")
    else:
        from bellm.text_files import search_file

        result = search_file(
            partial(options.load_embedder, source or DEFAULT_MODEL, graphs=graphs),
            query,
            place,
            top=top,
            column=column,
            max_batch_tokens=max_batch_tokens,
            progress=is_progress_shown(),
        )
    notes = ["Approximate: a part of the rows was compared; --exact compares all."] * (not result.exact)
    if any(hit.text is None for hit in result.hits):
        notes.append("This corpus has no texts to show: bellm embed --keep-text keeps them.")
    print_result(result.to_json(), as_json, _hit_table(result, query if hybrid else ""), *notes)


def _hit_table(result: "SearchResult", query: str = "") -> "Table":
    """A row for each hit; the words of a query are marked."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    of_corpus = any(hit.id is not None for hit in result.hits)
    has_texts = any(hit.text is not None for hit in result.hits)
    has_lines = any(hit.line is not None for hit in result.hits)
    heading = "place" if has_lines else "id" if of_corpus else "row"
    table = Table("rank", "score", heading, *["text"] * has_texts, box=box.SIMPLE_HEAD)
    for rank, hit in enumerate(result.hits, 1):
        line = f":{hit.line}" if has_lines else ""
        name = Text(f"{hit.id}{line}" if of_corpus else str(hit.row), overflow="fold")
        text = Text(hit.text or "", overflow="fold")
        if words := re.findall(r"\w+", query):
            text.highlight_regex(rf"(?i)\b(?:{'|'.join(words)})\b", "bold")
        table.add_row(str(rank), f"{hit.score:.4f}", name, *[text] * has_texts)
    return table
