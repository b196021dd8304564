"""`bellm words`: what the word vectors of models know."""

import time
from pathlib import Path
from typing import Annotated

import typer

from bellm.cli.model_options import AsJson, CacheFolder, DataFolder, ModelOptions, with_model_options
from bellm.cli.terminal import check_output, live_bars, print_result, status_line


@with_model_options
def words_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="As in bellm evaluate; vectors:FILE may also be word vectors of GloVe or word2vec as .txt or .vec. "
            "The first is the baseline of the others.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", callback=check_output, help="Folder for results.json, words.html and words.md."),
    ],
    *,
    data: DataFolder = None,
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="Put all words in lower case, as many files of word vectors have them.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap and of random pairs.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap replicates of each interval.")] = 1000,
    cache: CacheFolder = None,
    force: Annotated[bool, typer.Option("--force", help="Replace other results.")] = False,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Score word vectors: similarity sets, related words, and analogies.

    A folder of word sets holds any of eval-word-vectors (SimLex-999, WS-353,
    MEN, RW, SimVerb and more), BATS_3.0, google_analogies and wordnet, as
    published, also under word/; Debian's WordNet is found by --data /usr/share.
    Each word is a text of its own, with the model's prompt and pooling. Models
    are compared on the words that all files of vectors have.

    Example: bellm words vectors:glove.txt smollm2 'smollm2?prompt=raw&pooling=mean' --data data/ -o words/ --lowercase
    """
    from bellm import analyse, evaluate

    folder, named = Path(output), list(dict.fromkeys(sources))
    analyse.check_words_folder(folder, named, force=force)
    started = time.monotonic()
    with status_line(f"loading {', '.join(named)}"):
        models = evaluate.load_models(named, cache or evaluate.default_cache_folder(), **options.given())
    with live_bars() as update:
        report = analyse.compare_words(
            models,
            data=data,
            lowercase=lowercase,
            resamples=resamples,
            seed=seed,
            progress=lambda model, task, done, total: update(f"{model[:40]}: {task}", done, total, model),
        )
    seconds = time.monotonic() - started
    agreement = analyse.word_agreement(report)
    record = analyse.write_words(report, folder, agreement, force=force, seconds=round(seconds, 1))
    end = f"{seconds:.0f} s. {folder / 'words.html'} shows it; results.json and words.md lie beside it."
    tables = [part for table in ([analyse.agreement_table(agreement)] if agreement else []) for part in ("", table, "")]
    print_result(record, as_json, evaluate.score_table(report, metrics=True), *tables, end)
