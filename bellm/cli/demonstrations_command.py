"""`bellm demonstrations`: which examples to put before a prompt."""

from pathlib import Path
from typing import Annotated

import typer

from bellm.cli.model_options import (
    AsJson,
    CacheFolder,
    DataFolder,
    ModelOptions,
    OwnColumns,
    Source,
    with_model_options,
)
from bellm.cli.terminal import check_output, live_bars, print_result
from bellm.errors import SourceError

_RECORD = "demonstrations.json"


@with_model_options
def demonstrations_command(
    source: Source,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            callback=check_output,
            help=f"Folder of the encoder with the best prompt; {_RECORD} in it.",
        ),
    ],
    *,
    candidates: Annotated[
        str, typer.Option(metavar="FILE", help="Candidates: a table or JSON Lines with the columns sentence and word.")
    ],
    dev: Annotated[
        str,
        typer.Option(
            metavar="TASK|FILE",
            help="What candidates are judged by: STSBenchmark-dev, STSBenchmark-train, or a file of rated pairs "
            "(sentence1, sentence2, score).",
        ),
    ] = "STSBenchmark-dev",
    number: Annotated[int, typer.Option(min=1, help="How many demonstrations to find, one after the other.")] = 1,
    sample: Annotated[
        int, typer.Option(min=3, help="Pairs by which all candidates are judged; the best few are judged by all.")
    ] = 200,
    data: DataFolder = None,
    columns: OwnColumns = None,
    cache: CacheFolder = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Find worked examples that make a prompt better, without training.

    Every candidate, a sentence and the word that it means, is put before the
    prompt (PromptEOL's in-context learning) and scored on rated pairs. The
    encoder is saved with the best, or with its prompt alone where none scores
    above it. Packed batches compute what all texts begin with once. Vectors are
    kept: the same command resumes where it was stopped.

    Example: bellm demonstrations smollm2 --candidates recipes/demonstrations.csv -o shown/
    """
    if Path(output).exists():
        raise SourceError(f"{output} exists already. Choose another name or remove it.")
    from bellm.demonstrations import find_demonstrations, read_candidates
    from bellm.evaluate import read_dev_set
    from bellm.io.atomic import write_json

    rows, pairs = read_candidates(candidates), read_dev_set(dev, data, columns)
    encoder = options.load_encoder(source)
    with live_bars() as update:
        found = find_demonstrations(encoder, rows, pairs, number=number, sample=sample, cache=cache, progress=update)
    encoder.with_settings(prompt=found.best_prompt).save_pretrained(output, notes=f"{found}\n")
    write_json(Path(output) / _RECORD, record := {"source": source, "output": output, **found.to_json()})
    print_result(record, as_json, str(found), f"{output} holds the encoder, {_RECORD} in it has it all.")
