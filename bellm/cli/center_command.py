"""`bellm center`: an encoder that subtracts the mean vector of a user's texts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bellm.cli.model_options import AsJson, Column, ModelOptions, Source, with_model_options
from bellm.cli.terminal import check_output, print_result, status_line
from bellm.errors import SourceError


@with_model_options
def center_command(
    source: Source,
    output: Annotated[
        str,
        typer.Option("--output", "-o", callback=check_output, help="Folder of the new encoder, a source like others."),
    ],
    texts: Annotated[
        str,
        typer.Option(metavar="FILE", help="Texts of the kind that will be embedded, one a line or in a table."),
    ],
    *,
    column: Column = "text",
    whiten: Annotated[
        bool,
        typer.Option(
            "--whiten", help="Also give all directions the same variance; takes ten texts for each number of a vector."
        ),
    ] = False,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Subtract the mean vector of your texts from all vectors.

    Vectors of language models share a large direction, which hides in a cosine
    what texts differ in. Its mean over some hundred of your texts takes it
    away. The mean is saved with the encoder, and the setting --centering none
    turns it off. Texts that the encoder will be scored on do not belong here:
    bellm evaluate says so where it finds them.

    Example: bellm center smollm2 --texts notes.txt -o centered/ --bidirectional last:8

    Example: bellm center smollm2 --texts notes.txt --whiten --truncate-dim 128 -o white/
    """
    if Path(output).exists():
        raise SourceError(f"{output} exists already. Choose another name or remove it.")
    from bellm.io.rows import read_texts

    read = read_texts(texts, column)
    from bellm.compress import center

    encoder = options.load_encoder(source)
    with status_line("embedding texts"):
        encoder = center(encoder, read, whitening=whiten)
    with status_line(f"writing {output}"):
        encoder.save_pretrained(output)
    assert encoder.statistics
    number = len(encoder.statistics.hashes)
    record: dict[str, Any] = {
        "output": output,
        "texts": number,
        "encoder": {"source": source, **encoder.describe()},
    }
    what = "centered and whitened" if whiten else "centered"
    print_result(record, as_json, f"{output}: vectors {what} on {number:,} different texts.")
