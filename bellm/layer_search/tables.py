"""A finding as tables for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from bellm.evaluate.results import Score
from bellm.evaluate.tables import SIGNIFICANT, format_interval, format_points, significance_mark
from bellm.layer_search.candidates import Candidate, CandidateScores
from bellm.layer_search.degradation import Degradation
from bellm.layer_search.layer_stats import LayerStats
from bellm.layer_search.summary import format_p_value

if TYPE_CHECKING:
    from bellm.layer_search.halving_result import HalvingResult

_BAR = 20  # Characters of the longest bar.


def degradation_table(degradation: Degradation | None, profile: LayerStats | None) -> Table:
    """Score and profile by number of layers, all layers first, with the turning point marked; what there is of them."""
    columns: dict[str, Sequence[str]] = {}
    captions: list[str] = []
    if degradation:
        columns["score"] = [_with_half(score) for score in degradation.scores]
        captions.append(_PLUS_MINUS)
    if profile:
        columns["dependency"] = [format_points(share) for share in profile.dependency]
        columns["ahead"] = ["-" if share is None else format_points(share) for share in profile.looks_ahead]
        captions.append(
            "Dependency: what the last token has in common with the others after so many layers. Ahead: share of its "
            "attention that the last of these layers pays to later tokens if it alone is open. Both in percent, means "
            f"over {profile.num_texts} texts."
        )
    table = _table("layers", *columns, caption=" ".join(captions))
    if degradation:
        table.add_column("")
        columns["bar"] = _bars(degradation)
    rows = list(enumerate(zip(*columns.values(), strict=True), 1))
    for depth, cells in reversed(rows):
        table.add_row(str(depth), *cells)
    return table


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
    table = _table("candidate", "score", "over causal", "interval", "p", "over all", "moved", caption=caption)
    for one in search.candidates:
        table.add_row(one.name, _with_half(one.score), *_against(one), f"{one.moved:.4f}", style=_style(one))
    return table


def halving_table(halving: "HalvingResult") -> Table:
    """Maps that were trained, those that came furthest first."""
    caption = (
        f"{_PLUS_MINUS} Differences to causal and to all open after as many steps; p after Holm's correction for "
        f"{len(halving.maps) - 1} maps, triangles where it is below {SIGNIFICANT}."
    )
    table = _table("trained", "steps", "score", "over causal", "interval", "p", "over all", caption=caption)
    for one in halving.maps:
        last, gain = one.last, one.last.over_causal
        against = [
            f"{significance_mark(gain)} {format_points(gain.value, signed=True)}",
            format_interval(gain),
            format_p_value(gain.p_value),
        ]
        cells = (str(last.steps), _with_half(last.score), *(against if one.open_layers else [""] * 3))
        style = "" if one.open_layers else "bold"
        table.add_row(one.name, *cells, format_points(last.over_all.value, signed=True), style=style)
    return table


_PLUS_MINUS = "Scores in points; \N{PLUS-MINUS SIGN} is half the width of the 95 % bootstrap interval."


def _table(first: str, *others: str, caption: str) -> Table:
    table = Table(box=None, caption=caption, caption_justify="left", pad_edge=False, header_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _against(one: Candidate) -> tuple[str, ...]:
    over_all = format_points(one.over_all.value, signed=True)
    if one.is_causal:
        return "", "", "", over_all
    if one.no_op:
        return "0.0", "no-op", "", over_all
    gain = one.over_causal
    return (
        f"{significance_mark(gain)} {format_points(gain.value, signed=True)}",
        format_interval(gain),
        format_p_value(gain.p_value),
        over_all,
    )


def _style(one: Candidate) -> str:
    return "bold" if one.is_causal else "dim" if one.no_op else ""


def _with_half(score: Score) -> str:
    return f"{format_points(score.value)} \N{PLUS-MINUS SIGN} {format_points((score.high - score.low) / 2)}"
