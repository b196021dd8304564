"""`bellm similarity`: cosines of texts, without a file of vectors."""

import json
import sys
from functools import partial
from typing import Annotated

import typer

from bellm.cli.model_options import DEFAULT_MODEL, AsJson, BatchTokens, Column, Model, ModelOptions, with_model_options


@with_model_options
def similarity_command(
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
    from bellm.text_files import compare_texts

    result = compare_texts(
        partial(options.load, model),
        a,
        b,
        column=column,
        max_batch_tokens=max_batch_tokens,
        progress=sys.stderr.isatty(),
    )
    typer.echo(json.dumps(result.to_json(), ensure_ascii=False) if as_json else str(result))
