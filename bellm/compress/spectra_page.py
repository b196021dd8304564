"""Exponents of a model's spectra in a folder: JSON, and a page with the layers as lines and the matrices as a map."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bellm.compress.spectra import MatrixSpectrum, TailName, layer_alphas
from bellm.extras import require_extra
from bellm.io.atomic import make_folder, write_json
from bellm.metadata import package_versions

_RESULTS, _PAGE = "spectra.json", "spectra.html"

_PANELS: dict[TailName, str] = {
    "peak": "Tail from the peak of the histogram, which alpha allots by",
    "mid": "Tail from the middle of the spectrum",
}


def check_spectra_folder(folder: str | Path, source: str) -> None:
    """Make sure that a folder can take the spectra of a model; those of the same model may be replaced.

    Raises:
        SourceError: It is a file, cannot be written, or holds the results of another model.
        MissingExtraError: Pages need the extra evaluate.
    """
    require_extra("evaluate")
    from bellm.report.report_files import check_results_folder

    check_results_folder(Path(folder) / _RESULTS, [source], "is about {}. Choose another folder.", holds="matrices")


def write_spectra(source: str, spectra: Sequence[MatrixSpectrum], folder: str | Path) -> dict[str, Any]:
    """Write `spectra.json` and `spectra.html`; returns what the JSON file holds.

    Raises:
        SourceError: As `check_spectra_folder`, or the disk refuses.
    """
    check_spectra_folder(folder, source)
    from bellm.report.formatting import format_metadata
    from bellm.report.report_files import write_page

    peaks, mids = (layer_alphas(spectra, tail) for tail in _PANELS)
    record = {
        "model": source,
        "summary": summarize_spectra(spectra),
        "layers": [
            {"layer": index, "peak": peak, "mid": mid}
            for index, (peak, mid) in enumerate(zip(peaks, mids, strict=True))
        ],
        "matrices": [{**asdict(spectrum), "shape": list(spectrum.shape)} for spectrum in spectra],
        "versions": package_versions(),
    }
    folder = Path(folder)
    make_folder(folder)
    write_json(folder / _RESULTS, record)
    from bellm.report.figures import LinePlot, Point, make_axis, make_heat_map

    across = make_axis((0, len(peaks) - 1), least_step=1)
    positions = [across.percent(layer) for layer in range(len(peaks))]
    panels = []
    for words, alphas in zip(_PANELS.values(), (peaks, mids), strict=True):
        up = make_axis(alphas)
        points = [Point(x, up.down(alpha)) for x, alpha in zip(positions, alphas, strict=True)]
        panels.append(LinePlot(words, "mean exponent", across, up, points))
    names = list(dict.fromkeys(spectrum.name for spectrum in spectra))
    values_LM = np.full((len(peaks), len(names)), np.nan)
    for spectrum in spectra:
        values_LM[spectrum.layer, names.index(spectrum.name)] = spectrum.peak
    write_page(
        folder / _PAGE,
        Path(__file__).parent / "spectra_page.html.jinja",
        heading="How heavy the tails of the spectra are",
        record=record,
        panels=panels,
        positions=positions,
        map=make_heat_map(values_LM, [*map(str, range(len(peaks)))], names),
        metadata=format_metadata({name: record[name] for name in ("model", "versions")}),
        results=record,
    )
    return record


def summarize_spectra(spectra: Sequence[MatrixSpectrum]) -> str:
    """Which layers are best and least trained, by the means of their exponents."""
    alphas = layer_alphas(spectra)
    heavy, light = int(np.argmin(alphas)), int(np.argmax(alphas))
    return (
        f"Layer {heavy} has the heaviest tails (mean exponent {alphas[heavy]:.2f}) and layer {light} the lightest "
        f"({alphas[light]:.2f}): --allocation alpha removes the least of the former and the most of the latter."
    )
