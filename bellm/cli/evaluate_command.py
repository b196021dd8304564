"""`bellm evaluate`: scores with intervals, and a report."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellm.cli import command_group
from bellm.cli.model_options import AsJson, ModelOptions, with_model_options
from bellm.errors import SourceError
from bellm.io import atomic

if TYPE_CHECKING:
    from bellm.evaluate.results import Report
    from bellm.evaluate.suite import Progress

RESULTS, PAGE, TABLE = "results.json", "report.html", "report.md"


@with_model_options
def evaluate_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Hub id, model folder, .gguf file, saved bellm encoder or smollm2, with settings of its own behind a "
            "question mark ('smollm2?bidirectional=last:8'); st:MODEL of sentence-transformers; vectors:FILE with "
            "texts and their vectors. The first is the baseline of the others.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help=f"Folder for {RESULTS}, {PAGE} and {TABLE}.", show_default=False)
    ],
    *,
    tasks: Annotated[
        str,
        typer.Option(
            help="sts, transfer, scifact, or single tasks (STS12 ... STS16, STSBenchmark, STSBenchmark-dev, SICK-R, "
            "SICK-R-full, MR, CR, SUBJ, MPQA, SST2, TREC, MRPC, SciFact), with commas."
        ),
    ] = "sts",
    compare: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Another source; may be given again.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Folder of data sets; default BELLM_DATA, else the Hub.", show_default=False),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Clean the pairs as the papers do: full stops at the end.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap replicates of each interval.")] = 1000,
    cache: Annotated[
        str | None,
        typer.Option(help="Folder that keeps vectors; default BELLM_CACHE, or ~/.cache/bellm.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the results of other models.")] = False,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Score models on the standard tasks, with 95 % intervals and paired tests.

    Each score has an interval over the task's items. Every source after the
    first is compared with it on the same items; p-values are corrected for the
    number of tasks. Model options hold for all bellm encoders. Vectors are kept:
    the same command scores again in seconds, and goes on where it was stopped.

    Example: bellm evaluate smollm2 --tasks sts --data data/ -o report/

    Example: bellm evaluate smollm2 'smollm2?bidirectional=last:8' -o report/ --prompt raw --pooling mean
    """
    named = [*sources, *(compare or [])]
    folder = Path(output)
    _refuse_others(folder, named, force)
    started = time.monotonic()
    with _progress() as progress:
        report = _report(named, tasks.split(","), data, cache, clean, seed, resamples, options, progress)
    seconds = time.monotonic() - started
    results = {**_record(report), "seconds": round(seconds, 1)}
    _write(folder, report, results)
    if as_json:
        typer.echo(json.dumps(results, ensure_ascii=False))
    else:
        _show(report, folder, seconds)


def _report(
    named: Sequence[str],
    tasks: Sequence[str],
    data: str | None,
    cache: str | None,
    clean: bool,
    seed: int,
    resamples: int,
    options: ModelOptions,
    progress: "Progress",
) -> "Report":
    from bellm.evaluate.suite import resolve_tasks

    wanted = resolve_tasks([task.strip() for task in tasks if task.strip()])
    with command_group.status_line(f"loading {', '.join(named)}"):
        from bellm.evaluate.models import ModelLoader
        from bellm.evaluate.suite import evaluate as run
        from bellm.evaluate.vector_cache import default_cache_folder

        opened = ModelLoader(Path(cache) if cache else default_cache_folder(), **options.given())
        subjects = [opened.open(source) for source in dict.fromkeys(named)]
    folder = Path(data) if data else None
    return run(subjects, wanted, data=folder, clean=clean, resamples=resamples, seed=seed, progress=progress)


def _record(report: "Report") -> dict[str, Any]:
    from bellm.evaluate.record import report_to_json

    return report_to_json(report)


def _refuse_others(folder: Path, named: Sequence[str], force: bool) -> None:
    """Results of the same models may be made anew; those of others are kept."""
    if folder.exists() and not folder.is_dir():
        raise SourceError(f"{folder} is a file. Name a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if force or not (folder / RESULTS).exists():
            return
        there = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        known = [there["model"], *(run["model"] for run in there["compared"])]
    except OSError as error:
        raise SourceError(f"{folder} cannot be written: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError):
        known = ["something that bellm cannot read"]
    if known != list(dict.fromkeys(named)):
        raise SourceError(
            f"{folder / RESULTS} holds results of {', '.join(known)}. Choose another folder, or replace with --force."
        )


def _write(folder: Path, report: "Report", results: dict[str, Any]) -> None:
    from bellm.evaluate.page import write_report_page
    from bellm.evaluate.tables import markdown_table

    atomic.write_bytes(folder / TABLE, markdown_table(report).encode())
    atomic.write_bytes(folder / RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    write_report_page(report, folder / PAGE)


def _show(report: "Report", folder: Path, seconds: float) -> None:
    from rich.console import Console

    from bellm.evaluate.tables import terminal_table

    Console().print(terminal_table(report))
    typer.echo(f"{seconds:.0f} s. {folder / PAGE} shows it all; {RESULTS} and {TABLE} lie beside it.")


@contextmanager
def _progress() -> "Iterator[Progress]":
    """A bar for each encoder, for people at a terminal."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    with progress.Progress(
        *columns, progress.TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        bars: dict[str, progress.TaskID] = {}

        def show(model: str, task: str, done: int, total: int) -> None:
            if model not in bars:
                bars[model] = bar.add_task("", total=None)
            bar.update(bars[model], description=f"{model[:40]}: {task}", completed=done, total=total or None)

        yield show
