"""The findings of a layer search as tables for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bellm.layer_search.candidates import Candidate, CandidateScores
from bellm.layer_search.degradation import Degradation
from bellm.layer_search.layer_stats import LayerStats
from bellm.report.formatting import (
    SIGNIFICANT,
    format_interval,
    format_p_value,
    format_points,
    format_score,
    significance_mark,
)
from bellm.report.statistics import Difference
from bellm.report.tables import Table

if TYPE_CHECKING:
    from bellm.layer_search.halving_result import HalvingResult

_BAR = 20  # Characters of the longest bar.
_PLUS_MINUS = "Scores in points; \N{PLUS-MINUS SIGN} is half the width of the 95 % bootstrap interval."


def degradation_table(degradation: Degradation | None, profile: LayerStats | None) -> Table:
    """Score and profile by number of layers, all layers first, with the turning point marked; what there is of them."""
    columns: dict[str, Sequence[str]] = {}
    captions: list[str] = []
    if degradation:
        columns["score"] = [format_score(score) for score in degradation.scores]
        captions.append(_PLUS_MINUS)
    if profile:
        columns["dependency"] = [format_points(share) for share in profile.dependency]
        columns["ahead"] = ["-" if share is None else format_points(share) for share in profile.looks_ahead]
        captions.append(
            "Dependency: what the last token has in common with the others after so many layers. Ahead: share of its "
            "attention that the last of these layers pays to later tokens if it alone is open. Both in percent, means "
            f"over {profile.num_texts} texts."
        )
    if degradation:
        columns[""] = _bars(degradation)
    rows = [(str(depth), *cells) for depth, cells in enumerate(zip(*columns.values(), strict=True), 1)]
    return Table(("layers", *columns), rows[::-1], " ".join(captions))


def _bars(degradation: Degradation) -> list[str]:
    highest = max(score.value for score in degradation.scores)
    bars = [
        "\N{FULL BLOCK}" * round(_BAR * max(score.value, 0) / highest) if highest > 0 else ""
        for score in degradation.scores
    ]
    if degradation.turning.depth is not None:
        bars[degradation.turning.depth - 1] += " \N{LEFTWARDS ARROW} turning point"
    return bars


def candidate_table(search: CandidateScores) -> Table:
    """All candidates, best first."""
    caption = (
        f"{_PLUS_MINUS} Differences to causal with their 95 % interval; p after Holm's correction for "
        f"{len(search.tested)} candidates, triangles where it is below {SIGNIFICANT}. Moved: mean of 1 - cosine to the "
        "causal vector."
    )
    if any(one.prepending for one in search.candidates):
        caption += " prepending:K is Token Prepending in the first K layers of the causal model; no layer is open."
    rows = [
        (one.name, format_score(one.score), *_over_causal(one), _signed(one.over_all), f"{one.moved:.4f}")
        for one in search.candidates
    ]
    header = ("candidate", "score", "over causal", "interval", "p", "over all", "moved")
    styles = ["bold" if one.is_causal else "dim" if one.no_op else "" for one in search.candidates]
    return Table(header, rows, caption, styles=styles)


def halving_table(halving: "HalvingResult") -> Table:
    """Maps that were trained, those that came furthest first."""
    caption = (
        f"{_PLUS_MINUS} Differences to causal and to all open after as many steps; p after Holm's correction for "
        f"{len(halving.maps) - 1} maps, triangles where it is below {SIGNIFICANT}."
    )
    rows = [
        (
            one.name,
            str(one.last.steps),
            format_score(one.last.score),
            *(_gain(one.last.over_causal) if one.open_layers else ("", "", "")),
            _signed(one.last.over_all),
        )
        for one in halving.maps
    ]
    header = ("trained", "steps", "score", "over causal", "interval", "p", "over all")
    return Table(header, rows, caption, styles=["" if one.open_layers else "bold" for one in halving.maps])


def _over_causal(one: Candidate) -> tuple[str, str, str]:
    if one.is_causal:
        return "", "", ""
    return ("0.0", "no-op", "") if one.no_op else _gain(one.over_causal)


def _gain(gain: Difference) -> tuple[str, str, str]:
    return f"{significance_mark(gain)} {_signed(gain)}", format_interval(gain), format_p_value(gain.p_value)


def _signed(difference: Difference) -> str:
    return format_points(difference.value, signed=True)
