"""`bellm augment`: which side information helps the language model, and is it more than noise?"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bellm.cli.model_options import (
    AsJson,
    CacheFolder,
    DataFolder,
    ModelOptions,
    Source,
    with_model_options,
)
from bellm.cli.terminal import check_output, live_bars, print_result
from bellm.errors import SourceError


@with_model_options
def augment_command(
    source: Source,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            callback=check_output,
            help="Folder for results.json, items.jsonl, augment.html and augment.md; it keeps scores, so that a stop "
            "loses little.",
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK|FILE",
            help="SST2, SST2-MR, SST2-CR, MRPC, MRPC-QQP, TREC, SICK-E, SciFact (A-B learns from A and is tested on "
            "B), or a table with the columns text and label, and text_b for pairs.",
        ),
    ],
    *,
    side_information: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="NAME,...",
            help="hint: SENSE's sentence. sp-input, sp-output: its rivals, a parse from a file or one that the model "
            "writes. amr: AMRCoT. receipt: SuperContext. retrieval: training items that are near, or passages of "
            "--corpus.",
        ),
    ] = "hint,receipt,retrieval",
    limit: Annotated[int | None, typer.Option(min=3, help="Most test items, drawn at random; default all.")] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Training items of a task from a file; default half of the file's rows."),
    ] = None,
    train_limit: Annotated[int, typer.Option(min=10, help="Most training items.")] = 2000,
    graphs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="AMR graphs of the texts: PENMAN notation with # ::snt TEXT, or a table (text, graph); default those "
            "of the folder of data sets, for MRPC and SICK-E.",
        ),
    ] = None,
    predictions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Receipts of another classifier in place of the probe: a table (text, label, confidence).",
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="An indexed corpus (bellm embed --keep-text, bellm index) of passages."),
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Solved training items that every prompt shows.")] = 0,
    neighbors: Annotated[int, typer.Option(min=1, help="Training items or passages that retrieval shows.")] = 4,
    calibration: Annotated[
        Literal["none", "contextual", "batch"],
        typer.Option(
            help="What is taken from the scores of labels. contextual: what a prompt without content gives. batch: the "
            "mean over all test items; a model that answers all alike needs it."
        ),
    ] = "none",
    length_normalized: Annotated[
        bool, typer.Option("--length-normalized", help="Divide scores by the tokens of a label.")
    ] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also amr with 0 to 100 % of the words of the graphs, and of the texts.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, folds, shots and intervals.")] = 0,
    data: DataFolder = None,
    cache: CacheFolder = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Put side information beside the text, and measure what it is worth.

    The language model is asked plainly and with each kind of side information:
    it scores the label words, and writes nothing. A probe on the encoder's
    vectors (logistic regression with a temperature) is the small model whose
    verdict and confidence a receipt shows, and the arm that has to be beaten.
    Arms are compared on the same items, with intervals and corrected p-values.

    Example: bellm augment smollm2 --task SST2-MR --with hint,receipt,retrieval --limit 300 --calibration batch -o side/

    Example: bellm augment smollm2 --task MRPC --with sp-input,amr,receipt --limit 200 --ablation -o graphs/

    Example: bellm augment smollm2 --task reviews.csv --with receipt --predictions classifier.csv -o receipts/
    """
    from bellm.augment import check_augment_folder, parse_arms, read_task  # They need no torch.
    from bellm.data import read_graphs

    arms = parse_arms(side_information)
    check_augment_folder(output, source)
    items = read_task(task, data, train=train, limit=limit, train_limit=train_limit, seed=seed)
    if predictions and not Path(predictions).is_file():
        raise SourceError(f"There is no file {predictions}.")
    known = read_graphs(graphs) if graphs else None
    from bellm.augment import arm_table, augment, write_augmentation

    with live_bars() as update:
        found = augment(
            lambda: options.load_encoder(source),
            items,
            output,
            arms=arms,
            graphs=known,
            predictions=predictions,
            corpus=corpus,
            shots=shots,
            neighbors=neighbors,
            calibration=calibration,
            length_normalized=length_normalized,
            ablation=ablation,
            data=data,
            cache=cache,
            seed=seed,
            progress=update,
        )
    record = write_augmentation(found, source, output)
    end = f"{Path(output) / 'augment.html'} shows it, {Path(output) / 'results.json'} has it all."
    print_result(record, as_json, str(arm_table(found)), *found.summary, end)
