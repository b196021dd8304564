"""What side information was worth, in a folder: results.json, items.jsonl, a page and a Markdown table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellm.augment.arm_names import PLAIN, PROBE
from bellm.extras import require_extra
from bellm.io.atomic import write_bytes, write_json
from bellm.report.figures import ForestBar, LinePlot, Mark, Point, make_axis, make_forest
from bellm.report.formatting import Table, format_interval, format_metadata, format_p_value, format_points

if TYPE_CHECKING:  # They need torch, and a folder that cannot be written is said before it is imported.
    from bellm.augment.arm_comparison import Arm
    from bellm.augment.augmentation import Augmentation

_RESULTS, _ITEMS, _PAGE, _MARKDOWN = "results.json", "items.jsonl", "augment.html", "augment.md"

_BETTER = Mark("better", "s3", "more items right than with the plain prompt")
_WORSE = Mark("worse", "down", "fewer items right")
_UNCLEAR = Mark("unclear", "s0", "a difference that may be chance")
_BEFORE = Mark("unclear", "s2", "probe as fitted")
_AFTER = Mark("better", "s3", "probe with its temperature")
_OUT_OF_FOLD = Mark("same", "s1", "the same on the training items, out of fold")
_ALONE = Mark("unclear", "s2", "receipt alone")
_PLAIN = Mark("same", "s1", "plain prompt")
_WITH = Mark("better", "s3", "prompt with the receipt")
_AMR = Mark("better", "s3", "share of the graph's words")
_TEXT = Mark("same", "s1", "share of the text's words")


def check_augment_folder(folder: str | Path, source: str) -> None:
    """Make sure that a folder can take the results of a model; those of the same model may be replaced.

    Raises:
        SourceError: It is a file, cannot be written, or holds the results of another model.
        MissingExtraError: The probe and pages need the extra evaluate.
    """
    require_extra("evaluate", "bellm augment")
    from bellm.report.report_files import check_results_folder

    check_results_folder(
        Path(folder) / _RESULTS, [source], "is about {}. Choose another folder.", holds="by_confidence"
    )


def write_augmentation(found: "Augmentation", source: str, folder: str | Path) -> dict[str, Any]:
    """Write `results.json`, `items.jsonl`, `augment.html` and `augment.md`; returns what the first holds.

    Raises:
        SourceError: The disk refuses.
    """
    from bellm.report.report_files import write_page

    record, folder = {**found.to_json(), "model": source}, Path(folder)
    write_json(folder / _RESULTS, record)
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.item_rows())
    write_bytes(folder / _ITEMS, rows.encode())
    sections = "\n".join(f"- {sentence}" for sentence in found.summary)
    markdown = f"# Side information for {found.task}\n\n{sections}\n\n{arm_table(found).to_markdown()}"
    write_bytes(folder / _MARKDOWN, markdown.encode("utf-8", "replace"))
    arms = found.comparison.arms
    bars = {
        name: [ForestBar(arm.to_plain, _mark(arm), format_p_value(arm.to_plain.p_value))]
        for name, arm in arms.items()
        if arm.to_plain
    }
    write_page(
        folder / _PAGE,
        Path(__file__).parent / "augment_page.html.jinja",
        heading=f"Side information for {found.task}",
        record=record,
        forest=make_forest(bars),
        forest_marks=[_BETTER, _WORSE, _UNCLEAR],
        diagram=_diagram(found),
        diagram_marks=[_BEFORE, _AFTER, _OUT_OF_FOLD] if found.reliability_before else [_AFTER],
        by_confidence=_by_confidence(found),
        confidence_marks=[_ALONE, _PLAIN, _WITH],
        ablation=_ablation(found),
        ablation_marks=[_AMR, _TEXT],
        metadata=format_metadata({**record["settings"], **record["probe"], "versions": record["versions"]}),
        results=record,
    )
    return record


def arm_table(found: "Augmentation") -> Table:
    """A row for each arm."""
    header = ("arm", "accuracy", "95 %", "against plain", "p", "against probe", "p", "F1", "95 %", "ECE")
    rows = []
    for name, arm in found.comparison.arms.items():
        cells = [name, format_points(arm.score.value), format_interval(arm.score)]
        for difference in (arm.to_plain, arm.to_probe):
            if difference is None:
                cells += ["", ""]
            else:
                gain = f"{format_points(difference.value, signed=True)} ({format_interval(difference)})"
                cells += [gain, format_p_value(difference.p_value)]
        rows.append([*cells, format_points(arm.f1.value), format_interval(arm.f1), format_points(100 * arm.ece)])
    caption = (
        f"{found.comparison.arms[PLAIN].score.n} items; paired bootstrap intervals, p-values Holm-corrected over the "
        "arms; ECE in points."
    )
    return Table(header, rows, caption)


def _mark(arm: "Arm") -> Mark:
    assert arm.to_plain
    if arm.to_plain.p_value >= 0.05:
        return _UNCLEAR
    return _BETTER if arm.to_plain.value > 0 else _WORSE


def _plot(name: str, unit: str, points: Sequence[tuple[float, float, Mark]], low: float = 0.0) -> LinePlot:
    """Shares, from 0 to 1, by another share or confidence, in per cent."""
    across, up = make_axis([100 * low, 100]), make_axis([0, 100])
    placed = [Point(across.percent(100 * x), up.down(100 * y), mark=mark) for x, y, mark in points]
    return LinePlot(name, unit, across, up, placed)


def _diagram(found: "Augmentation") -> LinePlot:
    of_mark = (
        (found.reliability_before, _BEFORE),
        (found.comparison.arms[PROBE].reliability, _AFTER),
        (found.reliability_out_of_fold, _OUT_OF_FOLD),
    )
    points = [(each.confidence, each.accuracy, mark) for bins, mark in of_mark for each in bins]
    return _plot("Accuracy", "% of the items in a bin", points)


def _by_confidence(found: "Augmentation") -> LinePlot | None:
    bins = found.comparison.by_confidence
    points = [
        ((each.low + each.high) / 2, value, mark)
        for each in bins
        for value, mark in ((each.receipt, _ALONE), (each.plain, _PLAIN), (each.with_receipt, _WITH))
    ]
    return _plot("Accuracy", "%", points, min(each.low for each in bins)) if bins else None


def _ablation(found: "Augmentation") -> LinePlot | None:
    points = found.comparison.ablation
    if not points:
        return None
    across, up = make_axis([0, 100]), make_axis(end for each in points for end in (each.score.low, each.score.high))
    placed = [
        Point(
            across.percent(100 * each.share + (1 if each.part == "text" else -1)),  # Beside each other.
            up.down(each.score.value),
            up.down(each.score.low),
            up.down(each.score.high),
            _AMR if each.part == "amr" else _TEXT,
        )
        for each in points
    ]
    return LinePlot("Accuracy", "%", across, up, placed)
