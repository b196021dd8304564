"""`bellm prune`: an encoder with fewer weights, or fewer layers."""

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellm.cli.model_options import AsJson, Column, ModelOptions, Source, with_model_options
from bellm.cli.terminal import check_output, live_bars, print_result, status_line, text_table
from bellm.errors import BellmError, SourceError

if TYPE_CHECKING:
    from bellm.encoder import Encoder


class PruneMethodOption(StrEnum):
    """Which weights go."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    SPARSEGPT = "sparsegpt"


class AllocationOption(StrEnum):
    """Which layers lose more."""

    UNIFORM = "uniform"
    ALPHA = "alpha"
    OWL = "owl"


class DropOption(StrEnum):
    """Which layers go."""

    TOP = "top"
    CHANGE = "change"


@with_model_options
def prune_command(
    source: Source,
    output: Annotated[
        str,
        typer.Option("--output", "-o", callback=check_output, help="Folder of the new encoder, a source like others."),
    ],
    *,
    sparsity: Annotated[
        float | None, typer.Option(metavar="S", help="Share of the weights to remove, between 0 and 1.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(metavar="N:M", help="In place of --sparsity: keep N of every M weights of a row, as in 2:4."),
    ] = None,
    method: Annotated[
        PruneMethodOption,
        typer.Option(
            help="magnitude: the smallest weights go; needs no texts. wanda: those that weigh least on the texts. "
            "sparsegpt: weights that stay are corrected too; slower."
        ),
    ] = PruneMethodOption.WANDA,
    allocation: Annotated[
        AllocationOption,
        typer.Option(
            help="uniform: every layer loses the same share. alpha: layers whose spectra have lighter tails lose more "
            "(AlphaPruning). owl: layers with fewer outliers lose more."
        ),
    ] = AllocationOption.UNIFORM,
    eps: Annotated[
        float, typer.Option(metavar="E", help="With alpha, the most and the least are 1 + E and 1 - E times a level.")
    ] = 0.2,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Texts of the kind that will be embedded, one a line or in a table."),
    ] = None,
    max_texts: Annotated[
        int, typer.Option(min=1, help="How many of them are used, spread evenly; more take longer, not more memory.")
    ] = 128,
    column: Column = "text",
    drop_layers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Leave out N layers, before weights are removed.")
    ] = None,
    drop_by: Annotated[
        DropOption,
        typer.Option(
            help="top: the last layers, as bellm layers --method degradation scores them. change: those that change "
            "the states of the texts least."
        ),
    ] = DropOption.TOP,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Make an encoder smaller: remove weights, leave out layers, or both.

    Texts of your own say what can go: they run through the encoder as when it
    embeds, in its prompt and with its open layers, one layer after the other,
    and each is pruned by what the pruned layers below it give. Memory holds the
    states of one layer. Stopped, the same command goes on where it was.

    Fewer layers make an encoder smaller and faster. Removed weights are zeros:
    only a compressed file or a kernel for sparse weights gains by them. What
    either costs, bellm evaluate says: bellm evaluate smollm2 DIR --tasks sts

    Example: bellm prune smollm2 --sparsity 0.5 --calibration texts.txt -o half/ --bidirectional last:8

    Example: bellm prune smollm2 --sparsity 0.6 --method sparsegpt --allocation alpha --calibration t.csv -o sparse/

    Example: bellm prune smollm2 --pattern 2:4 --calibration texts.txt -o two-of-four/

    Example: bellm prune smollm2 --drop-layers 6 -o lower/
    """
    removes = sparsity is not None or pattern is not None
    if not removes and drop_layers is None:
        raise BellmError("Nothing says what goes: give --sparsity 0.5, --pattern 2:4 or --drop-layers 6.")
    needs_texts = (removes and (method != "magnitude" or allocation == "owl")) or (drop_layers and drop_by == "change")
    if needs_texts and calibration is None:
        raise BellmError(
            "Texts say what can go: give --calibration FILE with 128 or more of the kind that will be embedded, or "
            "--method magnitude, which needs none."
        )
    if calibration is not None and not needs_texts:
        raise BellmError("--calibration gives texts, and nothing here asks for any: leave it out.")
    folder = Path(output)
    if folder.exists():
        raise SourceError(f"{output} exists already. Choose another name or remove it.")
    from bellm.io.rows import read_texts

    read = read_texts(calibration, column) if calibration else []
    from bellm.compress import drop_layers as drop
    from bellm.compress import prune, spread_texts

    texts = spread_texts(read, max_texts)

    work = folder.with_name(f".{folder.name}-pruning")
    encoder: Encoder = options.load_encoder(source)
    with live_bars() as update:
        if drop_layers is not None:
            encoder = drop(encoder, drop_layers, by=drop_by.value, texts=texts, progress=update)
        if removes:
            encoder = prune(
                encoder,
                sparsity,
                method=method.value,
                allocation=allocation.value,
                texts=texts,
                pattern=pattern,
                eps=eps,
                work=work,
                progress=update,
            )
    with status_line(f"writing {output}"):
        encoder.save_pretrained(output)
        shutil.rmtree(work, ignore_errors=True)
    summaries = [step["summary"] for step in encoder.compression]
    record: dict[str, Any] = {
        "output": output,
        "num_layers": encoder.num_layers,
        "parameters": encoder.model.num_parameters(),
        "compression": list(encoder.compression),
        "encoder": {"source": source, **encoder.describe()},
    }
    tables = [_layer_table(step) for step in encoder.compression if step.get("kind") == "prune"][-1:]
    print_result(record, as_json, *tables, f"{output}: {'; '.join(summaries)}.")


def _layer_table(step: dict[str, Any]) -> Any:
    name = {"alpha": "exponent", "owl": "outliers"}.get(step["allocation"])
    rows = []
    for layer in step["layers"]:
        score = [f"{layer['score']:.2%}" if name == "outliers" else f"{layer['score']:.2f}"] if name else []
        rows.append([layer["layer"], f"{layer['weights']:,}", f"{layer['sparsity']:.1%}", *score])
    return text_table(["layer", "weights", "removed", *([name] if name else [])], rows)
