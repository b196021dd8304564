"""`bellm similarity`: cosines without a file of vectors."""

import json
import os.path
import sys
from typing import Annotated

import typer

from bellm.cli.model_options import DEFAULT_MODEL, AsJson, BatchTokens, Column, Model, ModelOptions, with_model_options
from bellm.errors import BellmError
from bellm.io.rows import check_text, read_texts


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
    left, right = _pairs(a, b, column)
    encoder = options.load(model)
    from bellm.metadata import encoder_metadata
    from bellm.tensors.similarity import paired_cosine_similarity

    both = encoder.encode(
        left + right, max_batch_tokens=max_batch_tokens, progress=sys.stderr.isatty() and len(left) > 1
    )
    cosines = paired_cosine_similarity(both[: len(left)], both[len(left) :]).tolist()
    if as_json:
        typer.echo(json.dumps({"cosines": cosines, "encoder": encoder_metadata(model, encoder)}, ensure_ascii=False))
    else:
        typer.echo("".join(f"{cosine:.4f}\n" for cosine in cosines), nl=False)


def _pairs(a: str, b: str, column: str) -> tuple[list[str], list[str]]:
    is_file = [os.path.isfile(side) for side in (a, b)]
    if not any(is_file):
        return [check_text("The first text", a)], [check_text("The second text", b)]
    if not all(is_file):
        file, text = (a, b) if is_file[0] else (b, a)
        raise BellmError(f"{file} is a file, but {text!r} is not. Give two texts or two files.")
    left, right = read_texts(a, column), read_texts(b, column)
    if len(left) != len(right):
        raise BellmError(f"{a} has {len(left)} texts and {b} has {len(right)}: rows are compared one by one.")
    return left, right
