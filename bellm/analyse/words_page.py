"""Write word scores to a folder: JSON, Markdown, and a page with histograms of cosines and the agreement of models.

Shapes: M models, N pairs of words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bellm.analyse.word_tasks import WordPairsResult
from bellm.evaluate import Report, TaskResult, score_table, write_report_page
from bellm.io.atomic import make_folder, write_bytes, write_json
from bellm.report.figures import HeatMap, Histogram, Mark, make_heat_map, make_histogram
from bellm.report.formatting import Table, format_interval, format_points
from bellm.report.report_files import check_results_folder
from bellm.report.statistics import bootstrap_estimate

_RESULTS, _PAGE, _TABLE = "results.json", "words.html", "words.md"
_KINDS = (Mark("c1", "s0", "pairs of the set"), Mark("c0", "s2", "random pairs of the same words"))


@dataclass(frozen=True)
class WordAgreement:
    """Whether two models put pairs of words in the same order by their cosines."""

    a: str
    b: str
    value: float
    """Spearman's correlation of the cosines, in points."""
    low: float
    high: float
    """Ends of its 95 % bootstrap interval over pairs."""
    n: int


@dataclass(frozen=True)
class CosinePanel:
    """Cosines of a set's pairs and of random ones, by one model."""

    model: str
    result: WordPairsResult
    histogram: Histogram


def word_agreement(report: Report) -> list[WordAgreement]:
    """Agreement of every two models over all pairs that they have cosines of, each once, random ones among them."""
    cosines = [_cosines(results) for results in report.results]
    found = []
    for (a, left), (b, right) in combinations(zip(report.labels, cosines, strict=True), 2):
        left_N, right_N = (np.array([side[pair] for pair in left]) for side in (left, right))
        if len(left_N):
            estimate = bootstrap_estimate(left_N, right_N)
            found.append(WordAgreement(a, b, estimate.value, estimate.low, estimate.high, len(left_N)))
    return found


def _cosines(results: Mapping[str, TaskResult]) -> dict[tuple[str, str], float]:
    """Cosines by pair of words."""
    found: dict[tuple[str, str], float] = {}
    for result in results.values():
        if isinstance(result, WordPairsResult):
            found |= zip(result.texts, result.related_N.tolist(), strict=True)
            found |= zip(result.random_texts, result.random_N.tolist(), strict=True)
        elif result.gold_N is not None:
            found |= zip(result.texts, result.item_scores_N.tolist(), strict=True)
    return found


def agreement_table(found: Sequence[WordAgreement]) -> Table:
    """A row for every two models."""
    rows = [[one.a, one.b, format_points(one.value), format_interval(one)] for one in found]
    caption = (
        f"Agreement: Spearman's correlation, in points, of two models' cosines of {found[0].n} pairs of words. 95 %: "
        "its bootstrap interval over pairs."
    )
    return Table(["model", "model", "agreement", "95 %"], rows, caption, num_left=2)


def check_words_folder(folder: str | Path, models: Sequence[str], *, force: bool = False) -> None:
    """Make sure that a folder can take the word scores of these models.

    Raises:
        SourceError: It is a file, cannot be made, or holds other results and `force` is not given.
    """
    refusal = "holds results of {}. Choose another folder, or replace with --force."
    check_results_folder(Path(folder) / _RESULTS, models, refusal, holds="words", force=force)


def write_words(
    report: Report,
    folder: str | Path,
    agreement: Sequence[WordAgreement] | None = None,
    *,
    force: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Write `results.json`, `words.html` and `words.md`; returns what the JSON file holds.

    The scores of each model are its `words`, by set. `agreement` is `word_agreement`, where that is known already;
    `more` are further keys; errors are those of `check_words_folder`.
    """
    folder = Path(folder)
    check_words_folder(folder, [run.model for run in report.runs], force=force)
    make_folder(folder)
    found = report.to_json()
    agreement = word_agreement(report) if agreement is None else agreement
    compared = [_renamed(run) for run in found.pop("compared")]
    listed = [asdict(one) for one in agreement]
    results = {**_renamed(found), "compared": compared, "agreement": listed, **more}
    tables = [score_table(report, metrics=True), *([agreement_table(agreement)] if agreement else [])]
    write_bytes(folder / _TABLE, "\n".join(table.to_markdown() for table in tables).encode("utf-8", "replace"))
    write_json(folder / _RESULTS, results)
    panels = cosine_panels(report)
    write_report_page(
        report,
        folder / _PAGE,
        Path(__file__).parent / "words_page.html.jinja",
        kinds=_KINDS,
        histograms=panels,
        sets=list(dict.fromkeys(panel.result.task for panel in panels)),
        agreement=word_agreement_map(report.labels, agreement) if agreement else None,
        num_pairs=agreement[0].n if agreement else 0,
        results=results,
    )
    return results


def _renamed(run: dict[str, Any]) -> dict[str, Any]:
    return {"words" if name == "scores" else name: value for name, value in run.items()}


def cosine_panels(report: Report) -> list[CosinePanel]:
    """A histogram for each model and each set of related pairs."""
    return [
        CosinePanel(label, result, make_histogram(dict(zip(_KINDS, (result.related_N, result.random_N), strict=True))))
        for label, results in zip(report.labels, report.results, strict=True)
        for result in results.values()
        if isinstance(result, WordPairsResult)
    ]


def word_agreement_map(labels: Sequence[str], found: Sequence[WordAgreement]) -> HeatMap:
    """Correlations of every two models."""
    values_MM = np.eye(len(labels))
    for one in found:
        i, j = labels.index(one.a), labels.index(one.b)
        values_MM[i, j] = values_MM[j, i] = one.value / 100
    return make_heat_map(values_MM, labels, labels, center=0.0)
