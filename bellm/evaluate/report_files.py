"""Write a report to a folder: JSON for programs, a page for people, a table for a model card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bellm.errors import SourceError
from bellm.evaluate.report_page import write_report_page
from bellm.evaluate.report_text import score_table
from bellm.evaluate.results import Report
from bellm.io import atomic

RESULTS, PAGE, TABLE = "results.json", "report.html", "report.md"


def check_report_folder(folder: Path, models: Sequence[str], *, force: bool = False) -> None:
    """Make a folder for reports on these models, unless it holds results of others.

    Raises:
        SourceError: It is a file, cannot be written, or holds results of other models and `force` is not given.
    """
    if folder.exists() and not folder.is_dir():
        raise SourceError(f"{folder} is a file. Name a folder.")
    path = folder / RESULTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if force or not path.exists():
            return
        results = json.loads(path.read_text(encoding="utf-8"))
        known = [results["model"], *(run["model"] for run in results["compared"])]
    except OSError as error:
        raise SourceError(f"{folder} cannot be written: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError):
        known = ["something that bellm cannot read"]
    if known != list(dict.fromkeys(models)):
        raise SourceError(
            f"{path} holds results of {', '.join(known)}. Choose another folder, or replace with --force."
        )


def write_report(report: Report, folder: Path, *, force: bool = False, **more: Any) -> dict[str, Any]:
    """Write `results.json`, `report.html` and `report.md`; results of the same models are replaced.

    Args:
        report: What to write.
        folder: Where to; it is made if it is not there.
        force: Replace results of other models too.
        more: Further keys of `results.json`.

    Returns:
        What `results.json` holds.

    Raises:
        SourceError: See `check_report_folder`.
    """
    check_report_folder(folder, [run.model for run in report.runs], force=force)
    results = {**report.to_json(), **more}
    atomic.write_bytes(folder / TABLE, score_table(report, metrics=True).to_markdown().encode())
    atomic.write_bytes(folder / RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    write_report_page(report, folder / PAGE)
    return results
