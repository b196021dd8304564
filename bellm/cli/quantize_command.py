"""`bellm quantize`: an encoder with weights of 8 or 4 bits."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options
from bellm.cli.terminal import check_output, print_result, status_line
from bellm.errors import BellmError, SourceError


@with_model_options
def quantize_command(
    source: Source,
    output: Annotated[
        str,
        typer.Option("--output", "-o", callback=check_output, help="Folder of the new encoder, a source like others."),
    ],
    *,
    bits: Annotated[int, typer.Option(metavar="8|4", help="Bits of a weight.")] = 8,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Keep the weights of an encoder in 8 or 4 bits.

    The encoder takes a quarter or a sixth of the memory and of the disk that
    it takes in float32. It is not faster: every product is computed in the
    encoder's dtype. The head that predicts tokens is left out.

    In 8 bits vectors hardly change, in 4 bits they do. What that costs, bellm
    evaluate says: bellm evaluate smollm2 DIR --tasks sts

    Example: bellm quantize smollm2 --bits 8 -o small/ --bidirectional last:8

    Example: bellm quantize lower/ --bits 4 -o smaller/
    """
    if bits not in (8, 4):
        raise BellmError(f"--bits {bits} is not one of 8, 4.")
    if Path(output).exists():
        raise SourceError(f"{output} exists already. Choose another name or remove it.")
    from bellm.compress import quantize

    encoder = quantize(options.load_encoder(source), 8 if bits == 8 else 4)
    with status_line(f"writing {output}"):
        encoder.save_pretrained(output)
    size = sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file())
    record: dict[str, Any] = {
        "output": output,
        "bytes": size,
        "compression": list(encoder.compression),
        "encoder": {"source": source, **encoder.describe()},
    }
    print_result(record, as_json, f"{output}: {encoder.compression[-1]['summary']}; {size / 1e6:.1f} MB on disk.")
