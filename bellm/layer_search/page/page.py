"""The page, filled in from a finding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bellm.evaluate.tables import BETTER, WORSE, format_interval, format_points, significance_mark
from bellm.layer_search.candidates import Candidate
from bellm.layer_search.degradation import Degradation
from bellm.layer_search.finder import Finding
from bellm.layer_search.page import figures
from bellm.layer_search.summary import format_p_value
from bellm.report import html
from bellm.report.formatting import format_metadata

_BESIDES = ("dev", "seed", "versions", "seconds")  # What a record says besides the encoder's facts.


def write_layer_page(finding: Finding, found: Mapping[str, Any], file: Path) -> None:
    """Write a finding as one HTML file without links to anything else, whole or not at all.

    Args:
        finding: What was found.
        found: The same as `finder.record` has it, which goes into the page for programs.
        file: Where to.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    html.write_html(render_finding(finding, found), file)


def render_finding(finding: Finding, found: Mapping[str, Any]) -> str:
    """The page's HTML."""
    degradation, search = finding.degradation, finding.search
    facts = {**found["facts"], **{name: found[name] for name in _BESIDES if name in found}}
    return html.render_page(
        Path(__file__).parent,
        (effect_class, format_interval, significance_mark, format_p_value, format_points),
        heading=_heading(finding),
        model=found["model"],
        finding=finding,
        search=search,
        profile=finding.profile,
        curve=figures.degradation_curve(degradation) if degradation else None,
        stack=figures.layer_plots(finding),
        forest=figures.candidate_forest(search) if search else None,
        facts=format_metadata(facts),
        results=html.json_for_script(found),
        BETTER=BETTER,
        WORSE=WORSE,
    )


def effect_class(one: Candidate) -> str:
    """The class of a candidate's mark: `better` or `worse` if significantly so, `same` for a no-op, else `unclear`."""
    if one.no_op:
        return "same"
    return {BETTER: "better", WORSE: "worse"}.get(significance_mark(one.over_causal), "unclear")


def _heading(finding: Finding) -> str:
    if finding.search is None:
        return _of_curve(finding.degradation) if finding.degradation else "What the layers share, and where they look"
    if not finding.search.tested:
        return "No candidate can change the vectors"
    best = finding.search.tested[0]
    return f"Without training, {best.name if effect_class(best) == 'better' else 'no candidate'} beats causal"


def _of_curve(degradation: Degradation) -> str:
    if degradation.turning.depth is None:
        return "The score has no turning point"
    return f"The score breaks away below {degradation.turning.depth} of {len(degradation.scores)} layers"
