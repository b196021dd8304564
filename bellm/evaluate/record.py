"""A report as JSON: `results.json`, and what the page and other programs read."""

from dataclasses import asdict
from typing import Any

from bellm.evaluate.results import Report, Run

DIGITS = 4
"""Decimals of a point that are kept."""


def report_to_json(report: Report) -> dict[str, Any]:
    """The first run at the top, the others under `compared` with their differences to it."""
    first, *others = [_run(run) for run in report.runs]
    del first["differences"]
    return {**first, "compared": others}


def _run(run: Run) -> dict[str, Any]:
    rounded: dict[str, Any] = _rounded(
        {
            "model": run.model,
            "scores": {task: asdict(score) for task, score in run.scores.items()},
            "averages": {name: asdict(score) for name, score in run.averages.items()},
            "differences": {task: asdict(one) for task, one in run.differences.items()},
            "geometry": dict(run.geometry),
        }
    )
    return {**rounded, "facts": dict(run.facts)}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value
