"""The page, filled in from a finding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bellm.evaluate.tables import BETTER, WORSE, interval, mark, points
from bellm.layers.degradation import Degradation
from bellm.layers.finder import Finding
from bellm.layers.page import figures
from bellm.layers.search import Candidate
from bellm.layers.verdict import p_value
from bellm.page import house
from bellm.page.words import in_words

_BESIDES = ("dev", "seed", "versions", "seconds")  # What a record says besides the encoder's facts.


def write_page(finding: Finding, found: Mapping[str, Any], file: Path) -> None:
    """Write a finding as one HTML file without links to anything else, whole or not at all.

    Args:
        finding: What was found.
        found: The same as `finder.record` has it, which goes into the page for programs.
        file: Where to.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    house.write(render(finding, found), file)


def render(finding: Finding, found: Mapping[str, Any]) -> str:
    """The page's HTML."""
    degradation, search = finding.degradation, finding.search
    facts = {**found["facts"], **{name: found[name] for name in _BESIDES if name in found}}
    return house.render(
        Path(__file__).parent,
        (effect, interval, mark, p_value, points),
        heading=_heading(finding),
        model=found["model"],
        finding=finding,
        search=search,
        profile=finding.profile,
        curve=figures.curve(degradation) if degradation else None,
        stack=figures.stack(finding),
        forest=figures.forest(search) if search else None,
        facts=in_words(facts),
        results=house.for_script(found),
        BETTER=BETTER,
        WORSE=WORSE,
    )


def effect(one: Candidate) -> str:
    """The class of a candidate's mark: `better` or `worse` if significantly so, `same` for a no-op, else `unclear`."""
    if one.no_op:
        return "same"
    return {BETTER: "better", WORSE: "worse"}.get(mark(one.over_causal), "unclear")


def _heading(finding: Finding) -> str:
    if finding.search is None:
        return _of_curve(finding.degradation) if finding.degradation else "What the layers share, and where they look"
    if not finding.search.tested:
        return "No candidate can change the vectors"
    best = finding.search.tested[0]
    return f"Without training, {best.name if effect(best) == 'better' else 'no candidate'} beats causal"


def _of_curve(degradation: Degradation) -> str:
    if degradation.turning.depth is None:
        return "The score has no turning point"
    return f"The score breaks away below {degradation.turning.depth} of {len(degradation.scores)} layers"
