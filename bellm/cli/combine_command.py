"""`bellm combine`: several encoders as one, saved."""

from pathlib import Path
from typing import Annotated

import typer

from bellm.cli.model_options import AsJson, Column, GraphFile, ModelOptions, with_model_options
from bellm.cli.terminal import check_output, print_result, status_line
from bellm.errors import BellmError, SourceError
from bellm.types import CombineMethod


@with_model_options
def combine_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE SOURCE...",
            help="Encoders, with settings of their own behind a question mark ('olmoe/?readout=routing'). Those on the "
            "same weights share them, and one forward pass where only what is read of it differs. SOURCE?transform=amr "
            "reads the AMR graphs of texts, which commands that embed take with --graphs.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", callback=check_output, help="Folder of the new encoder, a source like others."),
    ],
    *,
    method: Annotated[
        CombineMethod,
        typer.Option(
            help="concat: side by side, of length 1 in all. sum: side by side, so that a dot product is the weighted "
            "sum of the views' cosines. mean: weighted mean of vectors of one width, as of several prompts."
        ),
    ] = "concat",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...|auto",
            help="Weight of each source's cosine; default equal. auto: 1 for the first of two, and for the second the "
            "weight with which their sum agrees best with both on the texts of --texts; no label is needed.",
        ),
    ] = None,
    texts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Texts that choose the weight of --weights auto.")
    ] = None,
    column: Column = "text",
    graphs: GraphFile = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Combine several encoders to one, each of its vectors scaled to length 1.

    The folder holds them all, and is a source for every command: bellm embed,
    similarity, search, evaluate, doctor.

    Example: bellm combine olmoe/ 'olmoe/?readout=routing' -o moee/ --method sum --weights auto --texts sentences.txt

    Example: bellm combine 'smollm2?prompt=prompteol' 'smollm2?prompt=knowledge' -o prompts/ --method mean

    Example: bellm combine smollm2 'smollm2?transform=amr' -o both/
    """
    if len(sources) < 2:
        raise BellmError(f"{sources[0]} alone is an encoder already: give at least two sources.")
    numbers = _weights(weights, len(sources))
    if (texts is None) == (weights == "auto"):
        raise BellmError("--weights auto and --texts FILE belong together: give both or neither.")
    if graphs and weights != "auto":
        raise BellmError(
            "--graphs belongs to --weights auto: the folder keeps no graphs, commands that embed take them."
        )
    if Path(output).exists():
        raise SourceError(f"{output} exists already. Choose another name or remove it.")
    from bellm.io.rows import read_texts

    read = None if texts is None else read_texts(texts, column)
    with status_line(f"loading {', '.join(sources)}"):
        from bellm.data.amr import read_graphs
        from bellm.encoder import Encoder
        from bellm.multiview import MultiViewEncoder, check_sources, give_graphs, open_encoder

        check_sources(sources)
        loaded: dict[str, Encoder] = {}
        views = [open_encoder(source, loaded=loaded, **options.given()) for source in sources]
        views = give_graphs(views, read_graphs(graphs)) if graphs else views
    with status_line("combining"):
        if read is None:
            encoder = MultiViewEncoder(views, method=method, weights=numbers)
        else:
            encoder = MultiViewEncoder.weighted(views, None, read, method=method)
        encoder.save_pretrained(output)
    chosen = ", ".join(f"{weight:g}" for weight in encoder.weights)
    words = f"{output}: {len(views)} views, {method} with weights {chosen} ({encoder.weights_from}), "
    print_result({"output": output, **encoder.describe()}, as_json, f"{words}{encoder.embedding_dim} dimensions")


def _weights(weights: str | None, number: int) -> list[float] | None:
    if weights in (None, "auto"):
        return None
    try:
        numbers = [float(part) for part in str(weights).split(",")]
    except ValueError as error:
        raise BellmError(f"--weights {weights!r} is neither numbers with commas, as in 1,0.5, nor auto.") from error
    if len(numbers) != number or not all(0 < each < float("inf") for each in numbers):
        raise BellmError(f"--weights {weights} is not one weight above 0 for each of {number} sources.")
    return numbers
