"""`bellm compress`: the smallest encoder that is good enough."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bellm.cli.model_options import AsJson, Column, DataFolder, ModelOptions, Source, with_model_options
from bellm.cli.terminal import check_output, live_bars, print_result, text_table
from bellm.errors import BellmError


def _numbers(text: str | None, name: str, kind: type[int] | type[float]) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise BellmError(f"{name}={text!r} is no list of numbers. Write them as in 3,6.") from error


@with_model_options
def compress_command(
    source: Source,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            callback=check_output,
            help="Folder for results.json, compress.html and the encoder, model/.",
        ),
    ],
    dev: Annotated[
        str,
        typer.Option(
            metavar="TASK|FILE",
            help="Rated pairs to choose by: STSBenchmark-dev, or a file (sentence1, sentence2, score).",
        ),
    ],
    *,
    within: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Take the smallest that loses no more (Spearman x100); default 1."),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(metavar="BYTES", help="In place of --within: take the best that is no larger on disk.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Texts of the kind that will be embedded: they say which weights go, and what the mean of vectors is.",
        ),
    ] = None,
    column: Column = "text",
    drop_layers: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Layers to drop from the top; default a tenth to a half of them."),
    ] = None,
    sparsity: Annotated[
        str | None, typer.Option(metavar="S,...", help="Shares of weights to remove; default 0.5 with --calibration.")
    ] = None,
    recover: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            help="After layers are dropped also train the rest for so many steps on --calibration, a thousand texts or "
            "more, to give the similarities of all layers; 200, say.",
        ),
    ] = None,
    bits: Annotated[str | None, typer.Option(metavar="8,4", help="Bits of a weight; default 8 and 4.")] = None,
    dims: Annotated[
        str | None, typer.Option(metavar="N,...", help="Numbers of a vector; default a half, a quarter and a ninth.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Try the fewest, on 200 pairs.")] = False,
    data: DataFolder = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Find the smallest encoder that is good enough, and say what it costs.

    Layers dropped, weights removed, fewer bits, fewer numbers, centered and
    binary vectors: every combination is scored on your rated pairs against the
    encoder as it came, on the same pairs. Each is saved, loaded in a process of
    its own, and timed there. Stopped, the same command goes on. A list of
    nothing (--bits '') leaves that out.

    Fewer layers are smaller and faster. Fewer bits are smaller, zeros neither;
    numbers of a vector are a matter of an index. The page has the front: what
    costs least for its score. With --recover an encoder that has lost layers
    learns from the one that has them all.

    Example: bellm compress smollm2 --dev STSBenchmark-dev --within 1 -o small/ --bidirectional last:8

    Example: bellm compress smollm2 --dev rated.csv --calibration texts.txt --budget 100000000 -o small/ --quick

    Example: bellm compress smollm2 --dev rated.csv --calibration texts.txt --drop-layers 10,15 --recover 200 -o small/
    """
    if within is not None and budget is not None:
        raise BellmError("--within and --budget are two answers to one question: give one.")
    lists: dict[str, Any] = {
        "dropped": _numbers(drop_layers, "--drop-layers", int),
        "sparsity": _numbers(sparsity, "--sparsity", float),
        "bits": _numbers(bits, "--bits", int),
        "dims": _numbers(dims, "--dims", int),
    }
    from dataclasses import replace

    from bellm.compress import check_compress_folder, compress, default_grid, write_compression
    from bellm.evaluate import read_dev_set
    from bellm.io.rows import read_texts

    check_compress_folder(output, source)
    pairs = read_dev_set(dev, data)
    texts = read_texts(calibration, column) if calibration else []
    if calibration and not texts:
        raise BellmError(f"--calibration {calibration} holds no texts. Give others, or leave it out.")
    encoder = options.load_encoder(source)
    grid = default_grid(encoder.num_layers, encoder.uncentered().embedding_dim, with_texts=bool(texts), quick=quick)
    grid = replace(grid, recovery=recover or 0, **{name: it for name, it in lists.items() if it is not None})
    with live_bars() as update:
        found = compress(
            encoder,
            pairs,
            output,
            within=1.0 if within is None else within,
            budget=budget,
            calibration=texts,
            grid=grid,
            quick=quick,
            progress=update,
        )
    record = write_compression(found, source, output)
    rows = [
        [
            row.name,
            f"{row.bytes / 1e6:.1f}",
            f"{row.peak_bytes / 1e6:.0f}",
            f"{row.texts_per_second:.1f}",
            str(row.vector_bytes),
            f"{row.value:.1f}",
            f"{row.difference:+.1f}",
            "chosen" if row is found.chosen else "",
        ]
        for row in found.rows
        if row.pareto or row is found.chosen or row is found.rows[0]
    ]
    headings = ["on the front", "MB", "MB in memory", "texts/CPU s", "bytes a vector", "score", "difference", ""]
    end = f"{Path(output) / 'model'} is the encoder, {Path(output) / 'compress.html'} shows all {len(found.rows)} rows."
    print_result(record, as_json, text_table(headings, rows), found.summary, end)
