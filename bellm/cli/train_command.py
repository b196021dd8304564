"""`bellm train`: train an encoder from a recipe or options, with progress, metrics and checkpoints."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellm.cli.model_options import AsJson, ModelOptions, with_model_options
from bellm.cli.terminal import UsageError, check_output, live_bars, print_result, show_note, status_line
from bellm.errors import SourceError

if TYPE_CHECKING:
    from bellm.train import Dataset, Recipe

_PLANNED_TOKENS = 128

COLUMNS_HELP = "Which columns of the data are anchor, positive, negative, score or texts; no others are read."


@with_model_options
def train_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_SOURCE",
            help="A recipe (a Python file that names its Recipe `recipe`), or a model: Hub id, folder, .gguf file, "
            "saved bellm encoder or smollm2.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", callback=check_output, help="Folder for the encoder, its metrics and checkpoints."
        ),
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[*WEIGHT]",
            help="Texts that belong together: .jsonl, .csv, .tsv or .parquet, a pattern of such files "
            "('part-*.csv'), or a data set of the Hub; may be given again. Columns: anchor (or query, question, "
            "sentence1, premise), positive (or answer, sentence2), and negative (or hard_negatives, negative_1, ...) "
            "or score (or label, similarity, is_duplicate, ...). Rows of premise, hypothesis and gold_label become "
            "triplets.",
        ),
    ] = None,
    columns: Annotated[str | None, typer.Option(metavar="PART=COLUMN,...", help=COLUMNS_HELP)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random; default 42.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop here; default by epochs.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often to go through the data; default 1.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a step; default 64.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its height; default 2e-4.")] = None,
    dev: Annotated[
        str | None,
        typer.Option(help="A task of bellm evaluate that scores the encoder meanwhile, never a test set."),
    ] = None,
    dev_every: Annotated[int | None, typer.Option(min=1, help="Steps between two scores; default 50.")] = None,
    mine: Annotated[
        int | None,
        typer.Option(
            min=1, help="First mine so many hard negatives for each anchor, with the untrained encoder.", metavar="N"
        ),
    ] = None,
    graphs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="AMR graphs of the texts, as bellm embed takes them: in each step a text is itself or its graph, at "
            "even odds.",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log to OUTPUT/tensorboard, for TensorBoard.")
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps after which the state is kept.")] = 50,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Train nothing: print what it would take in memory with all weights, LoRA and QLoRA, reckoned from "
            "the model's configuration, for texts of --max-tokens (128).",
        ),
    ] = False,
    devices: Annotated[int | None, typer.Option(min=1, help="With --plan: devices that share a batch (1).")] = None,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", min=0.1, help="With --plan: memory of a device; default that of this machine."),
    ] = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Train an encoder with low-rank adapters, or as a recipe says.

    The same command resumes wherever it was stopped, to the same weights.
    OUTPUT/model is the encoder, OUTPUT/metrics.jsonl has one line for each step.

    Example: bellm train smollm2 --data triplets.csv -o run/ --bidirectional last:8

    Example: bellm train recipes/bellm.py --data triplets.csv -o run/ --max-steps 100

    Example: bellm train meta-llama/Llama-3.1-8B --plan --device cuda --memory 24 --devices 4
    """
    given = {
        "seed": seed,
        "max_steps": max_steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "dev_every": dev_every,
        "mine": mine,
        "graphs": graphs,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if plan:
        planned = _load_recipe(source) if source.endswith(".py") else source
        _print_plan(_recipe(planned, options, changes, None), devices or 1, memory, as_json)
        return
    if only := [name for name, value in (("devices", devices), ("memory", memory)) if value is not None]:
        raise typer.BadParameter("it is for --plan.", param_hint=f"--{only[0]}")
    if output is None or data is None:
        raise UsageError(f"Missing option {'--output' if output is None else '--data'!r}.")
    from bellm.saved_encoder import check_trainable

    _check_files(data)  # A recipe imports what is slow.
    written = _load_recipe(source) if source.endswith(".py") else None
    model, settings = (written.model, written.encoder_options) if written else (source, {})
    if isinstance(model, str):
        check_trainable(model, {**settings, **options.given()})
    sources = read_training_data(data, columns)  # Where there is no recipe, before anything slow is imported.
    with status_line("reading the recipe"):
        recipe = _recipe(written or source, options, changes, dev)
    folder = Path(output)
    last: dict[str, Any] = {"step": None, "loss": None, "dev": None}
    from bellm.train import Distributed, TensorBoardLog, train

    log = TensorBoardLog(folder / "tensorboard") if tensorboard else None
    with live_bars() as update:
        update(f"loading {recipe.model}", 0, 0)

        def show(step: int, total: int, record: Mapping[str, Any]) -> None:
            last.update(step=step, loss=record["loss"])
            update(f"loss {record['loss']:.3f}, {record['tokens_per_second']:.0f} tokens/s", step, total)
            if record["dev"] is not None:
                last["dev"] = record["dev"]
                show_note(f"step {step}: loss {record['loss']:.4f}, dev {record['dev']:.4f}")
            if log:
                log(step, total, record)

        train(recipe, sources, folder, checkpoint_every=checkpoint_every, progress=show, notify=show_note)
    if Distributed().is_main:
        model = str(folder / "model")
        words = f"{model} is the encoder: bellm evaluate {model} -o report/"
        print_result({"output": output, "model": model, **last}, as_json, words)


def _print_plan(recipe: "Recipe", devices: int, memory: float | None, as_json: bool) -> None:
    from rich.table import Table

    from bellm.train import plan_memory

    tokens = int(recipe.encoder_options.get("max_tokens") or _PLANNED_TOKENS)
    device = str(recipe.encoder_options.get("device") or "auto")
    size = None if memory is None else round(memory * 1e9)
    plans = plan_memory(recipe, devices=devices, device=device, memory=size, text_tokens=tokens)
    parts = ("weights", "gradients", "optimizer", "activations", "workspace", "runtime", "total")
    table = Table("GB on each device", box=None)
    for one in plans:
        table.add_column(one.tuning, justify="right")
    for part in parts:
        table.add_row(part, *(f"{getattr(one, part) / 1e9:.2f}" for one in plans))
    table.add_row("fits", *("yes" if one.fits else "no" for one in plans))
    rows = f"{recipe.batch_size} rows of three texts of {tokens} tokens over {devices} device{'s' * (devices > 1)}"
    limit = f"{plans[0].memory / 1e9:.1f} GB each"
    notes = [f"{rows}, {limit}."]
    if any(one.cached for one in plans):
        notes.append(
            "Where a step's graphs do not fit, its texts run twice, in chunks, and take the activations of one."
        )
    record = {
        "model": recipe.model,
        "rows": recipe.batch_size,
        "tokens_per_text": tokens,
        "devices": devices,
        "memory": plans[0].memory,
        "plans": [dataclasses.asdict(one) | {"total": one.total, "fits": one.fits} for one in plans],
    }
    print_result(record, as_json, table, *notes)


def read_training_data(entries: Sequence[str], columns: str | None = None) -> "list[tuple[Dataset, float]]":
    """Load the training data with its weights, and tell of rows that are left out."""
    with status_line("reading the data"):
        from bellm.train import load_dataset

        sources = [(load_dataset(file, columns), weight) for file, weight in map(_weighted, entries)]
    if any(dataset.num_rejected for dataset, _ in sources):
        from bellm.train import Distributed
    else:
        return sources
    for dataset, _ in sources if Distributed().is_main else []:
        for rejection in dataset.rejections[:3]:
            show_note(f"{rejection.location}: {rejection.reason}")
        if dataset.num_rejected:
            show_note(f"{dataset.num_rejected} rows of {dataset.name} are left out.")
    return sources


def _weighted(entry: str) -> tuple[str, float]:
    file, star, weight = entry.rpartition("*")
    with contextlib.suppress(ValueError):
        return (file, float(weight)) if star else (entry, 1.0)
    if weight.isalnum():  # Anything else is a pattern, as in parts/*.csv.
        raise SourceError(f"--data {entry}: {weight!r} is no weight. Give FILE or FILE*WEIGHT, as in a.csv*2.")
    return entry, 1.0


def _check_files(entries: Sequence[str]) -> None:
    from bellm.train.dataset import check_file

    for file, _ in map(_weighted, entries):
        check_file(file)


def _load_recipe(file: str) -> "Recipe":
    if not os.path.isfile(file):  # Said before anything slow is imported.
        raise SourceError(f"There is no recipe {file}.")
    with status_line("reading the recipe"):
        from bellm.train import load_recipe

        return load_recipe(file)


def _recipe(source: "Recipe | str", options: ModelOptions, changes: dict[str, Any], dev: str | None) -> "Recipe":
    from bellm.train import Recipe

    recipe = source if isinstance(source, Recipe) else Recipe(model=source)
    if dev:
        from bellm.evaluate import DevEvaluator

        changes["dev"] = DevEvaluator(dev)
    settings = {**recipe.encoder_options, **options.given()}
    return dataclasses.replace(recipe, encoder_options=settings, **changes)
