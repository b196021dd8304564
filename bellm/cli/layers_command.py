"""`bellm layers`: which layers to open."""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options
from bellm.cli.progress_bars import bars_once_loaded
from bellm.cli.train_command import read_training_data
from bellm.errors import BellmError

if TYPE_CHECKING:
    from bellm.layer_search import Finding, HalvingTraining


class MethodOption(StrEnum):
    """What to do with the layers."""

    DEGRADATION = "degradation"
    PROFILE = "profile"
    SEARCH = "search"


@with_model_options
def layers_command(
    source: Source,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder for layers.json, layers.html.", show_default=False)
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
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Folder of data sets; default BELLM_DATA, else the Hub.", show_default=False),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Folder that keeps vectors; default BELLM_CACHE, or ~/.cache/bellm.", show_default=False),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also train the likeliest maps on these rows (see bellm train) and keep the better half, round by "
            "round.",
            show_default=False,
        ),
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the maps that come to the end; default 64.", show_default=False)
    ] = None,
    train_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of a step; default 64.", show_default=False)
    ] = None,
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
    the same command goes on where it was stopped.

    A model that was trained causal suffers from open layers until it is trained
    with them. With --train some maps, causal and all open among them, get
    low-rank adapters with the same data, seed and steps; how many steps in all
    is said first.

    Example: bellm layers smollm2 --dev STSBenchmark-dev -o layers/

    Example: bellm layers smollm2 --dev pairs.csv -o curve/ --method degradation

    Example: bellm layers smollm2 --data data/ -o layers-mean/ --prompt raw --pooling mean

    Example: bellm layers smollm2 -o layers-trained/ --train triplets.csv --train-steps 64
    """
    if (layers := options.settings.get("bidirectional")) is not None:
        raise BellmError(f"bellm layers chooses the layers itself: leave out --bidirectional {layers}.")
    if not train and (train_steps or train_batch_size):
        raise BellmError(
            "--train-steps and --train-batch-size say how to train on the rows of --train FILE: give it too."
        )
    from bellm.layer_search import check_finding_folder, find_layers, write_finding

    folder = Path(output)
    check_finding_folder(folder, source)
    training = _training(source, options, train, train_steps, train_batch_size, folder) if train else None
    with bars_once_loaded(partial(options.load, source), "dropping layers") as (load, progress):
        finding = find_layers(
            load,
            dev,
            source=source,
            methods=[one.value for one in method or MethodOption],
            training=training,
            data=Path(data) if data else None,
            cache=Path(cache) if cache else None,
            progress=progress,
        )
    record = write_finding(finding, folder)
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        _show(finding, folder)


def _training(
    source: str, options: ModelOptions, file: str, steps: int | None, batch_size: int | None, folder: Path
) -> "HalvingTraining":
    sources = read_training_data([file])
    from bellm.layer_search import HalvingTraining
    from bellm.train import Recipe

    recipe = Recipe(model=source, encoder_options=options.given(), max_steps=steps or 64, batch_size=batch_size or 64)
    return HalvingTraining(
        recipe=recipe,
        sources=sources,
        folder=folder / "runs",
        on_plan=lambda plan: typer.echo(f"{plan.budget}.", err=True),
    )


def _show(finding: "Finding", folder: Path) -> None:
    from rich.console import Console

    from bellm.layer_search.layer_text import candidate_table, degradation_table, halving_table

    console = Console()
    degradation, profile, search, trained = finding.degradation, finding.profile, finding.search, finding.trained
    tables = (
        degradation_table(degradation, profile) if degradation or profile else None,
        candidate_table(search) if search else None,
        halving_table(trained) if trained else None,
    )
    for table in filter(None, tables):
        console.print(table)
        console.print()
    console.print(finding.summary, highlight=False, markup=False)
    typer.echo(f"{finding.seconds:.0f} s. {folder / 'layers.html'} shows it, {folder / 'layers.json'} has it all.")
