"""A finding as JSON and as a page: the degradation curve, each layer, and every candidate against causal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bellm.io.atomic import make_folder, write_json
from bellm.layer_search.candidates import Candidate, CandidateScores
from bellm.layer_search.finder import Finding
from bellm.layer_search.layer_stats import Degradation
from bellm.report.figures import (
    Axis,
    Forest,
    ForestBar,
    LinePlot,
    Mark,
    Point,
    difference_axis,
    estimate_point,
    make_axis,
    make_forest,
)
from bellm.report.formatting import BETTER, WORSE, format_interval, format_metadata, significance_mark
from bellm.report.report_files import check_results_folder, write_page

_RESULTS, _PAGE = "layers.json", "layers.html"

_BESIDES = ("dev", "seed", "versions", "seconds")  # What a record says besides the encoder's metadata.

EFFECTS = {
    BETTER: Mark("better", "s3", "significantly better"),
    WORSE: Mark("worse", "down", "significantly worse"),
    "": Mark("unclear", "s0", "no difference can be told"),
    "no-op": Mark("same", "cross", "no-op: exactly causal"),
}
"""The marks of candidates by what they do."""


@dataclass(frozen=True)
class DegradationCurve:
    """Score against the number of layers kept.

    With it, where the turning point and the ends of its interval stand, and the layers that the paper's rule opens.
    """

    plot: LinePlot
    turning: tuple[float, float, float] | None
    opened: tuple[float, float] | None


@dataclass(frozen=True)
class LayerPlots:
    """Figures above each other whose horizontal axis is the layer."""

    positions: list[float]
    singles: list[Candidate | None]
    """What opens each layer alone; None where no candidate does."""
    alone: LinePlot | None
    """Its difference to causal; None where no candidate was scored."""
    panels: list[LinePlot]


def check_finding_folder(folder: str | Path, source: str) -> None:
    """Make sure that a folder can take a finding; one for the same model may be replaced, that of another is kept.

    Raises:
        SourceError: It is a file, cannot be written, or holds the finding of another model.
    """
    check_results_folder(Path(folder) / _RESULTS, [source], "is about {}. Choose another folder.", holds="summary")


def write_finding(finding: Finding, folder: str | Path) -> dict[str, Any]:
    """Write a finding as JSON and as a page; returns what the JSON file holds.

    Raises:
        SourceError: The disk refuses.
    """
    folder, record = Path(folder), finding.to_json()
    make_folder(folder)
    write_json(folder / _RESULTS, record)
    write_layer_page(finding, record, folder / _PAGE)
    return record


def write_layer_page(finding: Finding, results: Mapping[str, Any], path: Path) -> None:
    """Write a finding as one HTML file without links to anything else; `results`, its JSON, goes in for programs.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    search = finding.search
    metadata = {**results["metadata"], **{name: results[name] for name in _BESIDES if name in results}}
    forest = candidate_forest(search) if search else None
    write_page(
        path,
        Path(__file__).parent / "layer_page.html.jinja",
        heading=_heading(finding),
        model=results["model"],
        finding=finding,
        search=search,
        stats=finding.layer_stats,
        curve=degradation_curve(finding.degradation) if finding.degradation else None,
        stack=layer_plots(finding),
        forest=forest if forest and forest.rows else None,
        metadata=format_metadata(metadata),
        results=results,
        effects=EFFECTS,
    )


def effect(candidate: Candidate) -> Mark:
    """The mark of what a candidate does."""
    return EFFECTS["no-op" if candidate.no_op else significance_mark(candidate.over_causal)]


def degradation_curve(degradation: Degradation) -> DegradationCurve:
    """Draw the degradation curve."""
    scores, turning = degradation.scores, degradation.turning
    across = make_axis((1, len(scores)), least_step=1)
    up = make_axis(end for score in scores for end in (score.low, score.high))
    points = [estimate_point(across.percent(depth), up, score) for depth, score in enumerate(scores, 1)]
    plot = LinePlot("Score", "points", across, up, points)
    if turning.depth is None or turning.low is None or turning.high is None:
        return DegradationCurve(plot, None, None)
    ends = across.percent(turning.depth), across.percent(turning.low), across.percent(turning.high)
    # A layer takes its place as the last that is kept; half a layer belongs to it on both sides.
    opened = (across.percent(turning.depth + 0.5), min(across.percent(len(scores) + 0.5), 100.0))
    return DegradationCurve(plot, ends, opened)


def layer_plots(finding: Finding) -> LayerPlots:
    """Draw what is known of each layer; a number that no layer has gets no panel."""
    search, stats = finding.search, finding.layer_stats
    layers = range(finding.num_layers)
    across = make_axis((0, finding.num_layers - 1), least_step=1)
    opened = {it.open_layers[0]: it for it in search.candidates if len(it.open_layers) == 1} if search else {}
    singles = [opened.get(layer) for layer in layers]
    alone = _alone(across, singles) if search else None
    powers = [math.log10(single.moved) if single and single.moved > 0 else None for single in singles]
    known = [power for power in powers if power is not None] or [0.0]
    # By powers of ten: some layers move the vectors a thousand times as far as others.
    up = make_axis((math.floor(min(known)), math.ceil(max(known))), least_step=1, label=_power_of_ten)
    name, unit = "How far opening it alone moves the vectors", "mean of 1 \N{MINUS SIGN} cosine"
    panels = [_panel(name, unit, across, up, powers)]
    if stats:
        ahead = make_axis([0, *(share for share in stats.looks_ahead if share is not None)])
        panels.append(_panel("Attention to later tokens, opened alone", "%", across, ahead, stats.looks_ahead))
        common, name = make_axis([0, *stats.dependency]), "What the last token has in common with the others"
        panels.append(_panel(name, "%", across, common, stats.dependency))
    panels = [panel for panel in panels if any(panel.points)]
    return LayerPlots([*map(across.percent, layers)], singles, alone, panels)


def _alone(across: Axis, singles: Sequence[Candidate | None]) -> LinePlot:
    up = difference_axis(single.over_causal for single in singles if single)
    points: list[Point | None] = []
    for layer, single in enumerate(singles):
        mark = effect(single) if single else None
        if mark is EFFECTS[""]:
            mark = replace(mark, symbol="")
        points.append(estimate_point(across.percent(layer), up, single.over_causal, mark) if single else None)
    return LinePlot("Opened alone, against causal", "points", across, up, points)


def _panel(name: str, unit: str, across: Axis, up: Axis, values: Sequence[float | None]) -> LinePlot:
    points = [None if v is None else Point(across.percent(layer), up.down(v)) for layer, v in enumerate(values)]
    return LinePlot(name, unit, across, up, points)


def _power_of_ten(power: float) -> str:
    """A power of ten in few letters.

    >>> _power_of_ten(-3.0), _power_of_ten(0.0)
    ('10⁻³', '1')
    """
    return f"10{str(round(power)).translate(_RAISED)}" if round(power) else "1"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def candidate_forest(search: CandidateScores) -> Forest:
    """Draw all candidates but those of single layers, best first."""
    others = [it for it in search.candidates if len(it.open_layers) != 1 and it is not search.causal]
    return make_forest({candidate.name: [_bar(candidate)] for candidate in others})


def _bar(candidate: Candidate) -> ForestBar:
    note = "no-op" if candidate.no_op else format_interval(candidate.over_causal)
    return ForestBar(candidate.over_causal, effect(candidate), note, has_interval=not candidate.no_op)


def _heading(finding: Finding) -> str:
    if search := finding.search:
        if not search.tested:
            return "No candidate can change the vectors"
        best = search.tested[0]
        return f"Without training, {best.name if effect(best) is EFFECTS[BETTER] else 'no candidate'} beats causal"
    if not finding.degradation:
        return "What the layers share, and where they look"
    depth = finding.degradation.turning.depth
    return (
        f"The score breaks away below {depth} of {finding.num_layers} layers"
        if depth
        else "The score has no turning point"
    )
