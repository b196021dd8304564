"""`bellm layers`: which layers to open."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bellm.cli.model_options import (
    AsJson,
    CacheFolder,
    DataFolder,
    GraphFile,
    ModelOptions,
    OwnColumns,
    Source,
    with_model_options,
)
from bellm.cli.terminal import check_output, live_bars, print_result
from bellm.cli.train_command import COLUMNS_HELP, read_training_data
from bellm.errors import BellmError


class MethodOption(StrEnum):
    """What to do with the layers."""

    DEGRADATION = "degradation"
    PROFILE = "profile"
    SEARCH = "search"


@with_model_options
def layers_command(
    source: Source,
    output: Annotated[
        str, typer.Option("--output", "-o", callback=check_output, help="Folder for layers.json, layers.html.")
    ],
    *,
    dev: Annotated[
        str,
        typer.Option(
            metavar="TASK|FILE",
            help="What layers are judged by: STSBenchmark-dev, STSBenchmark-train, or a file of rated pairs "
            "(sentence1, sentence2, score).",
        ),
    ] = "STSBenchmark-dev",
    method: Annotated[
        list[MethodOption] | None,
        typer.Option(
            help="Only this, or these if given again: degradation (drop layers from the top), profile (what each layer "
            "shares, and where it would look), search (open layers); default all.",
        ),
    ] = None,
    data: DataFolder = None,
    columns: OwnColumns = None,
    cache: CacheFolder = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also train the likeliest maps on these rows (see bellm train) and keep the better half, round by "
            "round.",
        ),
    ] = None,
    train_columns: Annotated[str | None, typer.Option(metavar="PART=COLUMN,...", help=COLUMNS_HELP)] = None,
    train_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the maps that come to the end; default 64.")
    ] = None,
    train_batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a step; default 64.")] = None,
    graphs: GraphFile = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Find out which layers to open, without training or after a little.

    Drops layers from the top, as the paper does, and looks for the point where
    the score breaks away. Then opens layers one by one, the first and last few,
    the middle and every second, tries Token Prepending, which opens none, and
    compares each with the causal model on the same pairs; p-values are
    corrected for the number tried. The answer may be that nothing beats causal,
    and depends on prompt and pooling: ask again with others. Vectors are kept:
    the same command resumes where it was stopped.

    Of several views (bellm combine) --method search opens each map in all.

    A model that was trained causal suffers from open layers until it is trained
    with them. With --train some maps, causal and all open among them, get
    low-rank adapters with the same data, seed and steps; how many steps in all
    is said first.

    Example: bellm layers smollm2 --dev STSBenchmark-dev -o layers/

    Example: bellm layers smollm2 --dev pairs.csv -o curve/ --method degradation

    Example: bellm layers smollm2 --data data/ -o layers-mean/ --prompt raw --pooling mean

    Example: bellm layers smollm2 -o layers-trained/ --train triplets.csv --train-steps 64
    """
    for name in ("bidirectional", "token_prepending"):
        if (value := options.settings.get(name)) is not None:
            flag = name.replace("_", "-")
            raise BellmError(f"bellm layers chooses the layers itself: leave out --{flag} {value} ({name}).")
    if not train and (train_steps or train_batch_size or train_columns):
        raise BellmError(
            "--train-steps, --train-batch-size and --train-columns say how to train on the rows of --train FILE: give "
            "it too."
        )
    from bellm.data.task_names import check_dev_name

    check_dev_name(dev)  # Said before anything slow is imported.
    sources = []
    if train:
        from bellm.saved_encoder import check_trainable

        check_trainable(source, options.given())
        sources = read_training_data([train], train_columns)
    from bellm.evaluate import read_dev_set
    from bellm.layer_search import HalvingTraining, check_finding_folder, find_layers, write_finding

    folder = Path(output)
    check_finding_folder(folder, source)
    pairs = read_dev_set(dev, data, columns)
    training = None
    if train:
        from bellm.train import Recipe

        steps, rows = train_steps or 64, train_batch_size or 64
        training = HalvingTraining(
            recipe=Recipe(model=source, encoder_options=options.given(), max_steps=steps, batch_size=rows),
            sources=sources,
            folder=folder / "runs",
            on_plan=lambda plan: typer.echo(f"{plan.budget}.", err=True),
        )
    with live_bars() as update:
        finding = find_layers(
            lambda: options.load(source, graphs=graphs),
            pairs,
            methods=[one.value for one in method or MethodOption],
            training=training,
            cache=cache,
            progress=update,
        )
    record = write_finding(finding, folder)
    from rich.text import Text

    words = [part for table in finding.tables for part in (table, "")]
    end = f"{finding.seconds:.0f} s. {folder / 'layers.html'} shows it, {folder / 'layers.json'} has it all."
    print_result(record, as_json, *words, Text(finding.summary), end)
