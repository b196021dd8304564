"""`bellm spectra`: how heavy the tails of a model's spectra are."""

from pathlib import Path
from typing import Annotated

import typer

from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options
from bellm.cli.terminal import check_output, live_bars, print_result, text_table


@with_model_options
def spectra_command(
    source: Source,
    output: Annotated[
        str, typer.Option("--output", "-o", callback=check_output, help="Folder for spectra.json, spectra.html.")
    ],
    *,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Measure how heavy the tails of the weight matrices' spectra are.

    The exponent of a power law in the tail of each spectrum (PL_Alpha_Hill) says
    how well a layer is trained: the lower, the better. bellm prune --allocation
    alpha removes more where it is high. No text is needed.

    Example: bellm spectra smollm2 -o spectra/
    """
    from bellm.compress import check_spectra_folder, measure_spectra, write_spectra

    check_spectra_folder(output, source)
    encoder = options.load_encoder(source)
    with live_bars() as update:
        spectra = measure_spectra(encoder.model, update)
    record = write_spectra(source, spectra, output)
    rows = [[layer["layer"], f"{layer['peak']:.2f}", f"{layer['mid']:.2f}"] for layer in record["layers"]]
    end = f"{Path(output) / 'spectra.html'} shows it, {Path(output) / 'spectra.json'} has it all."
    print_result(
        record, as_json, text_table(["layer", "from the peak", "from the middle"], rows), record["summary"], end
    )
