"""`bellm export`: an encoder in another library's format, proved there."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options
from bellm.cli.terminal import check_output, print_result, status_line
from bellm.errors import BellmError, SourceError
from bellm.export.export_formats import EXPORT_FORMATS, FormatName


@with_model_options
def export_command(
    source: Source,
    output: Annotated[
        str, typer.Option("--output", "-o", callback=check_output, help="New folder; there only if the proof holds.")
    ],
    to: Annotated[
        FormatName, typer.Option(help="; ".join(f"{name}: {form.summary}" for name, form in EXPORT_FORMATS.items()))
    ],
    *,
    bits: Annotated[
        int | None,
        typer.Option(metavar="8|4", help="onnx, openvino, gguf: weights in so many bits, which costs something."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Largest relative distance of a vector; default what rounding explains."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Python of an environment that has the library, which runs the proof there."),
    ] = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Write an encoder in another library's format, and prove that it is the same there.

    The folder is loaded by that library, in a process of its own without
    bellm, and embeds texts of many lengths. Where a vector is not the
    encoder's, the command fails and leaves no folder. parity.json has the
    distances; bellm doctor DIR measures them again.

    A format that cannot hold a setting says so, with the nearest that it can.
    docs/export.md has the table.

    Example: bellm export my-encoder --to sentence-transformers -o for-st/

    Example: bellm export smollm2 --to transformers -o decoder/ --bidirectional last:8 --pooling mean
    """
    if bits not in (None, 8, 4):
        raise BellmError(f"--bits {bits} is not one of 8, 4.")
    if bits and not EXPORT_FORMATS[to].bits:
        names = ", ".join(name for name, form in EXPORT_FORMATS.items() if form.bits)
        raise BellmError(f"--bits {bits} is for {names}. For other formats quantize first: bellm quantize.")
    if Path(output).exists():
        raise SourceError(f"{output} exists already. Choose another name or remove it.")
    from bellm.export import export

    encoder = options.load_encoder(source)
    with status_line(f"writing {output}, and running it with {to}"):
        width: Literal[8, 4] | None = 8 if bits == 8 else 4 if bits else None
        parity = export(encoder, to, output, bits=width, tolerance=tolerance, python=python)
    record: dict[str, Any] = {"output": output, "parity": parity.to_json()}
    print_result({**record, "encoder": {"source": source, **encoder.describe()}}, as_json, f"{output}: {parity}")
