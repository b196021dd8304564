"""A compression in a folder: results.json, and a page with the front and all rows."""

from pathlib import Path
from typing import Any

from bellm.compress.compression import Compression
from bellm.extras import require_extra
from bellm.io.atomic import write_json
from bellm.report.figures import LinePlot, Mark, Point, make_axis
from bellm.report.formatting import format_metadata

_RESULTS, _PAGE = "results.json", "compress.html"

_MARKS = {
    "chosen": Mark("better", "s3", "chosen"),
    "front": Mark("same", "s1", "on the front: no other costs as little and scores as high"),
    "other": Mark("unclear", "s0", "another is better in something and worse in nothing"),
}


def check_compress_folder(folder: str | Path, source: str) -> None:
    """Make sure that a folder can take the results of a model; those of the same model may be replaced.

    Raises:
        SourceError: It is a file, cannot be written, or holds the results of another model.
        MissingExtraError: Scores and pages need the extra evaluate.
    """
    require_extra("evaluate", "bellm compress")
    from bellm.report.report_files import check_results_folder

    check_results_folder(Path(folder) / _RESULTS, [source], "is about {}. Choose another folder.", holds="rows")


def write_compression(found: Compression, source: str, folder: str | Path) -> dict[str, Any]:
    """Write `results.json` and `compress.html`; returns what the JSON file holds.

    Raises:
        SourceError: The disk refuses.
    """
    from bellm.report.report_files import write_page

    record = {**found.to_json(), "model": source}
    write_json(Path(folder) / _RESULTS, record)
    across = make_axis(row.bytes / 1e6 for row in found.rows)
    up = make_axis(end for row in found.rows for end in (row.low, row.high))
    drawn = sorted(found.rows, key=lambda row: (row is found.chosen, row.pareto))
    points = [
        Point(
            across.percent(row.bytes / 1e6), up.down(row.value), up.down(row.low), up.down(row.high), _mark(found, row)
        )
        for row in drawn
    ]
    write_page(
        Path(folder) / _PAGE,
        Path(__file__).parent / "compress_page.html.jinja",
        heading="What a smaller encoder costs",
        record=record,
        plot=LinePlot("Score", "points", across, up, points),
        marks=list(_MARKS.values()),
        metadata=format_metadata({name: record[name] for name in ("model", "dev", "pairs", "rule", "versions")}),
        results=record,
    )
    return record


def _mark(found: Compression, row: Any) -> Mark:
    return _MARKS["chosen" if row is found.chosen else "front" if row.pareto else "other"]
