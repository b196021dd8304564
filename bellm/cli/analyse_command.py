"""`bellm analyse`: what models, or layers, have in common on the same texts."""

from pathlib import Path
from typing import Annotated

import typer

from bellm.cli.model_options import AsJson, CacheFolder, Column, GraphFile, ModelOptions, with_model_options
from bellm.cli.terminal import check_output, live_bars, print_result, status_line


@with_model_options
def analyse_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Hub id, model folder, .gguf file, saved bellm encoder or smollm2, with settings of its own behind a "
            "question mark ('smollm2?bidirectional=last:8'); st:MODEL of sentence-transformers; vectors:FILE with "
            "texts and their vectors.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", callback=check_output, help="Folder for results.json, analysis.html and analysis.md."
        ),
    ],
    texts: Annotated[
        list[str],
        typer.Option(metavar="FILE", help="Texts to compare on: any file that bellm embed reads; may be given again."),
    ],
    *,
    column: Column = "text",
    graphs: GraphFile = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare all layers of one source, or those of one with those of another.")
    ] = False,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Measures by name, such as cka_debiased,rsa,procrustes; default all, or with --layers the quick ones.",
        ),
    ] = None,
    permutations: Annotated[
        int | None,
        typer.Option(min=0, help="Permutations of each chance level; default 100, or 20 with --layers; 0 for none."),
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option(min=0, help="Half samples of each interval; default 30, or none with --layers; 0 for none."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of permutations and samples.")] = 0,
    cache: CacheFolder = None,
    force: Annotated[bool, typer.Option("--force", help="Replace other results.")] = False,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Compare models, or layers, by 17 measures of representational similarity.

    Each number has its chance level: the same measure with the texts of one
    side shuffled. A raw value says little without it. Linear CKA of vectors
    that have nothing to do with each other is 0.8 where they are four times as
    wide as there are texts. The calibrated score is 0 by chance and 1 for equal
    vectors. Use a few hundred texts or more, as your application has them.
    Vectors are kept, as with bellm evaluate.

    Example: bellm analyse smollm2 'smollm2?bidirectional=last:8' --texts notes.txt -o analysis/

    Example: bellm analyse smollm2 st:all-MiniLM-L6-v2 vectors:glove.parquet --texts notes.txt -o analysis/

    Example: bellm analyse smollm2 --layers --texts notes.txt -o layers/
    """
    from bellm import analyse, evaluate
    from bellm.io.rows import expand_inputs, read_texts

    folder, named = Path(output), list(dict.fromkeys(sources))
    analyse.check_num_models(len(named), layers=layers)
    chosen = None if measures is None else [name.strip() for name in measures.split(",") if name.strip()]
    analyse.choose_measures(chosen)
    analyse.check_draws(permutations or 0, resamples or 0)
    analyse.check_analysis_folder(folder, named, force=force)
    wanted = analyse.unique_texts(read_texts(expand_inputs(texts), column))
    kept = cache or evaluate.default_cache_folder()
    with status_line(f"loading {', '.join(named)}"):
        models = evaluate.load_models(named, kept, graphs=graphs, **options.given())
    with live_bars() as update:
        analysis = analyse.compare_representations(
            models,
            wanted,
            layers=layers,
            measures=chosen,
            permutations=permutations,
            resamples=resamples,
            seed=seed,
            cache=kept,
            progress=update,
        )
    record = analyse.write_analysis(analysis, folder, force=force)
    words = [part for table in analyse.analysis_tables(analysis) for part in (table, "")]
    end = f"{analysis.seconds:.0f} s. {folder / 'analysis.html'} shows it; results.json and analysis.md lie beside it."
    print_result(record, as_json, *words, *analyse.summarize_analysis(analysis), end)
