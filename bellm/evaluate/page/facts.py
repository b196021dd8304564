"""What is needed to do the runs of a report again, in words."""

from bellm.evaluate.results import Report, Run
from bellm.report.formatting import format_metadata


def shared_metadata(report: Report) -> dict[str, str]:
    """Facts that all runs have in common; none where there is one run."""
    first, *others = [_facts(run) for run in report.runs]
    return {name: value for name, value in first.items() if others and all(it.get(name) == value for it in others)}


def run_metadata(report: Report) -> list[dict[str, str]]:
    """Facts of each run that are not shared."""
    common = shared_metadata(report)
    return [{name: value for name, value in _facts(run).items() if name not in common} for run in report.runs]


def _facts(run: Run) -> dict[str, str]:
    cut = {task: score.num_truncated for task, score in run.scores.items() if score.num_truncated}
    settings = dict(run.facts)
    evaluation = settings.pop("evaluation", {})
    known = {"model": run.model, **settings, **evaluation, "texts_cut_to_fit": cut}
    return format_metadata(known)
