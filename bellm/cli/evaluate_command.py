"""`bellm evaluate`: score models on tasks, and write a report."""

import time
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
    with_model_options,
)
from bellm.cli.terminal import check_output, live_bars, print_result, status_line


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
        str,
        typer.Option(
            "--output", "-o", callback=check_output, help="Folder for results.json, report.html and report.md."
        ),
    ],
    *,
    tasks: Annotated[
        str,
        typer.Option(
            help="sts, transfer, scifact, or single tasks (STS12 ... STS16, STSBenchmark, STSBenchmark-dev, SICK-R, "
            "SICK-R-full, MR, CR, SUBJ, MPQA, SST2, TREC, MRPC, SciFact, C-STS), with commas. Also files of your own: "
            "rated pairs (sentence1, sentence2, score), texts and classes (text, label), or a folder in BEIR's format."
        ),
    ] = "sts",
    compare: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Another source; may be given again.")
    ] = None,
    data: DataFolder = None,
    columns: OwnColumns = None,
    graphs: GraphFile = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Clean the pairs as the papers do: full stops at the end.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap replicates of each interval.")] = 1000,
    cache: CacheFolder = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the results of other models.")] = False,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Score models on the standard tasks, with 95 % intervals and paired tests.

    Each score has an interval over the task's items. Every source after the
    first is compared with it on the same items; p-values are corrected for the
    number of tasks. Model options hold for all bellm encoders. Vectors are kept:
    the same command scores again in seconds, and resumes where it was stopped.

    Example: bellm evaluate smollm2 --tasks sts --data data/ -o report/

    Example: bellm evaluate smollm2 'smollm2?bidirectional=last:8' -o report/ --prompt raw --pooling mean
    """
    from bellm.data.task_names import resolve_tasks

    names = [task.strip() for task in tasks.split(",") if task.strip()]
    resolve_tasks(names)  # A wrong name is said before anything slow is imported.
    from bellm import evaluate as evaluation

    folder = Path(output)
    named = list(dict.fromkeys([*sources, *(compare or [])]))
    evaluation.check_report_folder(folder, named, force=force)
    started = time.monotonic()
    with status_line(f"loading {', '.join(named)}"):
        wanted = evaluation.load_tasks(names, data, columns, clean=clean)
        kept = cache or evaluation.default_cache_folder()
        models = evaluation.load_models(named, kept, graphs=graphs, **options.given())
    with live_bars() as update:
        report = evaluation.evaluate(
            models,
            wanted,
            clean=clean,
            resamples=resamples,
            seed=seed,
            progress=lambda model, task, done, total: update(f"{model[:40]}: {task}", done, total, model),
        )
    seconds = time.monotonic() - started
    results = evaluation.write_report(report, folder, force=force, seconds=round(seconds, 1))
    end = "".join(f"{sentence}\n" for sentence in evaluation.compare_with_words(report))
    end += f"{seconds:.0f} s. {folder / 'report.html'} shows it all; results.json and report.md lie beside it."
    print_result(results, as_json, evaluation.score_table(report), end)
