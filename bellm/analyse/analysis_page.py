"""Write an analysis to a folder: JSON, Markdown, and a page with heat maps and the forest of calibrated scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bellm.analyse.agreement import Agreement
from bellm.analyse.analysis import Analysis
from bellm.analyse.analysis_text import analysis_tables, cells, headline, short_name, summarize_analysis
from bellm.analyse.comparison import Measured
from bellm.analyse.measures import MEASURES
from bellm.io.atomic import make_folder, write_bytes, write_json
from bellm.report.figures import Forest, ForestBar, HeatMap, Mark, make_axis, make_heat_map
from bellm.report.formatting import SIGNIFICANT, format_interval, format_metadata
from bellm.report.report_files import check_results_folder, write_page
from bellm.report.statistics import Difference

_RESULTS, _PAGE, _TABLE = "results.json", "analysis.html", "analysis.md"
_MOST_BARS = 5  # Colors of the style sheet.


@dataclass(frozen=True)
class MeasureMap:
    """A heat map of a measure."""

    title: str
    about: str
    map: HeatMap


def check_analysis_folder(folder: str | Path, models: Sequence[str], *, force: bool = False) -> None:
    """Make sure that a folder can take the analysis of these models.

    Raises:
        SourceError: It is a file, cannot be made, or holds other results and `force` is not given.
    """
    refusal = "holds results of {}. Choose another folder, or replace with --force."
    check_results_folder(Path(folder) / _RESULTS, models, refusal, holds="comparisons", force=force)


def write_analysis(analysis: Analysis, folder: str | Path, *, force: bool = False) -> dict[str, Any]:
    """Write `results.json`, `analysis.html` and `analysis.md`; returns what the JSON file holds.

    Raises:
        SourceError: As `check_analysis_folder`, or the disk refuses.
    """
    folder, results = Path(folder), analysis.to_json()
    check_analysis_folder(folder, list(analysis.models), force=force)
    make_folder(folder)
    said = "".join(f"- {sentence}\n" for sentence in summarize_analysis(analysis))
    tables = "\n".join(table.to_markdown() for table in analysis_tables(analysis))
    write_bytes(folder / _TABLE, f"{said}\n{tables}".encode("utf-8", "replace"))
    write_json(folder / _RESULTS, results)
    write_analysis_page(analysis, results, folder / _PAGE)
    return results


def write_analysis_page(analysis: Analysis, results: dict[str, Any], path: Path) -> None:
    """Write an analysis as one HTML file without links to anything else; `results`, its JSON, goes in for programs.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    marks = pair_marks(analysis)
    metadata = {"texts": analysis.num_texts, **analysis.metadata, "seconds": round(analysis.seconds, 1)}
    write_page(
        path,
        Path(__file__).parent / "analysis_page.html.jinja",
        heading=_heading(analysis),
        analysis=analysis,
        sentences=summarize_analysis(analysis),
        marks=marks,
        forest=calibrated_forest(analysis) if marks else None,
        maps=measure_maps(analysis),
        agreement=agreement_map(analysis.agreement) if analysis.agreement else None,
        titles={name: measure.title for name, measure in MEASURES.items()},
        measures=MEASURES,
        cells=cells,
        metadata=format_metadata(metadata),
        models=[format_metadata({"model": name, **facts}) for name, facts in analysis.models.items()],
        results=results,
    )


def pair_marks(analysis: Analysis) -> list[Mark]:
    """A mark for each pair of models; none where layers are compared, or too many pairs."""
    if analysis.layers or len(analysis.comparisons) > _MOST_BARS:
        return []
    pairs = enumerate(analysis.comparisons)
    return [Mark(f"c{number + 1}", f"s{number % 4}", f"{pair.a} and {pair.b}") for number, pair in pairs]


def calibrated_forest(analysis: Analysis) -> Forest | None:
    """Calibrated scores in per cent with their intervals, a row for each measure; None where there is no score."""
    marks, rows = pair_marks(analysis), dict[str, list[ForestBar]]()
    for name in analysis.measures:
        found = [pair.measures[name] for pair in analysis.comparisons]
        if all(one.calibrated is not None for one in found):
            rows[MEASURES[name].title] = [_bar(name, *each) for each in zip(found, marks, strict=True)]
    if not rows:
        return None
    ends = [end for bars in rows.values() for bar in bars for end in (bar.difference.low, bar.difference.high)]
    return Forest(make_axis([0, 100, *ends], least_step=50), rows, frozenset())


def _bar(name: str, found: Measured, mark: Mark) -> ForestBar:
    assert found.null_mean is not None
    assert found.p is not None
    scale = MEASURES[name].best - found.null_mean
    ends = [found.value if end is None else end for end in (found.value, found.low, found.high)]
    value, *around = (100 * (end - found.null_mean) / scale for end in ends)
    difference = Difference(value, min(around), max(around), found.p)
    color = mark.color if found.p < SIGNIFICANT else f"{mark.color} open"
    note = "" if found.low is None else format_interval(difference)
    return ForestBar(difference, Mark(color, mark.symbol, mark.label), note, has_interval=found.low is not None)


def measure_maps(analysis: Analysis) -> list[MeasureMap]:
    """A heat map for each measure, the one that stands for all first; none where there are two models alone."""
    if len(analysis.comparisons) < 2:
        return []
    first = headline(analysis)
    return [_measure_map(analysis, name) for name in sorted(analysis.measures, key=lambda name: name != first)]


def _measure_map(analysis: Analysis, name: str) -> MeasureMap:
    measure = MEASURES[name]
    is_calibrated = any(pair.measures[name].calibrated is not None for pair in analysis.comparisons)
    values_RC = np.full((len(analysis.rows), len(analysis.columns)), np.nan)
    rows, columns = ({label: at for at, label in enumerate(side)} for side in (analysis.rows, analysis.columns))
    for (a, b), pair in analysis.by_names.items():
        found = pair.measures[name]
        value = found.calibrated if is_calibrated else found.value
        values_RC[rows[a], columns[b]] = np.nan if value is None else value
        if analysis.rows == analysis.columns and measure.is_symmetric:
            values_RC[rows[b], columns[a]] = values_RC[rows[a], columns[b]]
    labels = ([short_name(analysis, label).removeprefix("layer ") for label in side] for side in (rows, columns))
    about = "0 by chance, 1 for equal vectors" if is_calibrated else "0 for equal vectors; the darker, the further"
    title = f"{measure.title}{', calibrated' if is_calibrated else ''}"
    return MeasureMap(title, about, make_heat_map(values_RC, *labels, center=0.0))


def agreement_map(agreement: Agreement) -> HeatMap:
    """Correlations of the measures' rankings."""
    titles = [MEASURES[name].title for name in agreement.measures]
    return make_heat_map(agreement.correlations_MM, titles, titles, center=0.0)


def _heading(analysis: Analysis) -> str:
    models = list(analysis.models)
    if analysis.layers:
        return f"The layers of {' and '.join(models)}"
    return (
        f"What {' and '.join(models)} have in common"
        if len(models) == 2
        else f"What {len(models)} models have in common"
    )
