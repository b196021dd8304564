"""`bellm layers`: which layers to open."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellm.cli import command_group
from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options
from bellm.cli.train_command import read_training_data
from bellm.errors import BellmError, SourceError
from bellm.io import atomic

if TYPE_CHECKING:
    from bellm.data.sts import STSPairs
    from bellm.encoder import Encoder
    from bellm.layer_search.finder import Finding
    from bellm.train.dataset import Dataset

RESULTS, RUNS = "layers.json", "runs"
PAGE = "layers.html"


class MethodOption(StrEnum):
    """What to do with the layers."""

    DEGRADATION = "degradation"
    PROFILE = "profile"
    SEARCH = "search"


@with_model_options
def layers_command(
    source: Source,
    output: Annotated[str, typer.Option("--output", "-o", help=f"Folder for {RESULTS}, {PAGE}.", show_default=False)],
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
    and hangs on prompt and pooling: ask again with others. Vectors are kept:
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
    if options.bidirectional is not None:
        raise BellmError(f"bellm layers chooses the layers itself: leave out --bidirectional {options.bidirectional}.")
    if not train and (train_steps or train_batch_size):
        raise BellmError(
            "--train-steps and --train-batch-size say how to train on the rows of --train FILE: give it too."
        )
    folder = Path(output)
    _refuse_others(folder, source)
    started = time.monotonic()
    sources = read_training_data([train]) if train else []
    methods = frozenset(method or MethodOption)
    if train and MethodOption.SEARCH not in methods:
        raise BellmError("--train takes its maps from the search: add --method search, or leave --method out.")
    pairs = _development_set(dev, data)
    encoder = dataclasses.replace(options, bidirectional="none").load(source)
    with _progress("dropping layers") as progress:
        finding = _find(encoder, pairs, cache, methods, progress)
    known = _facts(source, encoder)
    del encoder  # Training loads its own.
    if sources:
        settings = {name: choice for name, choice in options.given().items() if name != "bidirectional"}
        choices = {"encoder_options": settings, "max_steps": train_steps or 64, "batch_size": train_batch_size or 64}
        finding = _train(finding, source, choices, sources, pairs, folder / RUNS)
    found = _record(finding, known)
    found["seconds"] = round(time.monotonic() - started, 1)
    _write(folder, finding, found)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _show(finding)
        typer.echo(f"{found['seconds']:.0f} s. {folder / PAGE} shows it, {folder / RESULTS} has it all.")


def _refuse_others(folder: Path, source: str) -> None:
    """What was found for the same model may be found anew; that of others is kept."""
    if folder.exists() and not folder.is_dir():
        raise SourceError(f"{folder} is a file. Name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    there = folder / RESULTS
    try:
        known = json.loads(there.read_text(encoding="utf-8"))["model"] if there.exists() else source
    except (ValueError, KeyError, TypeError):
        known = "something that bellm cannot read"
    if known != source:
        raise SourceError(f"{there} is about {known}. Choose another folder.")


def _development_set(name: str, data: str | None) -> "STSPairs":
    with command_group.status_line(f"reading {name}"):
        from bellm.layer_search.finder import read_dev_set

        return read_dev_set(name, Path(data) if data else None)


def _find(
    encoder: "Encoder",
    pairs: "STSPairs",
    cache: str | None,
    methods: frozenset[MethodOption],
    progress: Callable[[str, int, int], None],
) -> "Finding":
    from bellm.evaluate.vector_cache import default_cache_folder
    from bellm.layer_search.finder import METHODS, find_layers

    wanted = [one for one in METHODS if one in methods]
    return find_layers(
        encoder, pairs, Path(cache) if cache else default_cache_folder(), methods=wanted, progress=progress
    )


def _train(
    finding: "Finding",
    source: str,
    choices: dict[str, Any],
    sources: "list[tuple[Dataset, float]]",
    pairs: "STSPairs",
    folder: Path,
) -> "Finding":
    from bellm.layer_search.successive_halving import plan_halving, run_halving
    from bellm.train.recipe import Recipe

    assert finding.search
    rule = finding.degradation.rule if finding.degradation else None
    recipe = Recipe(model=source, **choices)
    planned = plan_halving(finding.search, rule, recipe)
    typer.echo(f"{planned.budget}.", err=True)
    with _progress("training") as progress:
        return dataclasses.replace(
            finding, trained=run_halving(planned, recipe, sources, pairs, folder, progress=progress)
        )


def _facts(source: str, encoder: "Encoder") -> dict[str, Any]:
    from bellm.metadata import encoder_metadata

    return encoder_metadata(source, encoder)


def _record(finding: "Finding", known: dict[str, Any]) -> dict[str, Any]:
    from bellm.layer_search.finder import finding_to_json

    return finding_to_json(finding, known)


def _write(folder: Path, finding: "Finding", found: dict[str, Any]) -> None:
    from bellm.layer_search.page import write_layer_page

    atomic.write_bytes(folder / RESULTS, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    write_layer_page(finding, found, folder / PAGE)


def _show(finding: "Finding") -> None:
    from rich.console import Console

    from bellm.layer_search.tables import candidate_table, degradation_table, halving_table

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


@contextmanager
def _progress(first: str) -> "Iterator[Callable[[str, int, int], None]]":
    """One bar, for people at a terminal."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(first, total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total)

        yield show
