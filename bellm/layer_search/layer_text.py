"""The findings of a layer search in plain sentences and as tables for a terminal."""

from collections.abc import Sequence

from bellm.layer_search.candidates import Candidate, CandidateScores
from bellm.layer_search.halving_rounds import HalvingResult
from bellm.layer_search.layer_stats import Degradation, LayerStats
from bellm.report.formatting import (
    BETTER,
    SIGNIFICANT,
    Table,
    format_interval,
    format_p_value,
    format_points,
    format_score,
    significance_mark,
)
from bellm.report.statistics import Difference

_BAR = 20  # Characters of the longest bar.
_PLUS_MINUS = "Scores in points; \N{PLUS-MINUS SIGN} is half the width of the 95 % bootstrap interval."


def summarize_candidates(search: CandidateScores) -> str:
    """Which candidate is best, and whether it beats the causal model; and which maps can do nothing.

    The interval is that of the one comparison; the p-value is corrected for all. A winner among many owes part of its
    lead to luck on these very pairs.
    """
    no_ops = ", ".join(one.name for one in search.candidates if one.no_op)
    end = f" A no-op, exactly causal: {no_ops}." if no_ops else ""
    if not search.tested:
        return f"No candidate can change these vectors.{end}"
    best = search.tested[0]
    gain = f"{_gain_in_words(best.over_causal)}, corrected for {len(search.tested)} candidates"
    if significance_mark(best.over_causal) != BETTER:
        causal = format_points(search.causal.score.value)
        return (
            f"No candidate beats causal on {search.task}, which scores {causal}. The best, {best.name}, is {gain}.{end}"
        )
    how = f"Open it with --bidirectional {best.bidirectional}"
    if best.prepending:
        how = (
            f"It opens no layer: before each of the layers 2 to {best.prepending}, a placeholder in front of the text "
            f"is given the last token's state (Token Prepending). Use it with --token-prepending {best.prepending}"
        )
    return (
        f"Best on {search.task} is {best.name}: {format_points(best.score.value)}, {gain}. {how}; it was chosen on "
        f"these pairs, so score it on others before you believe its lead.{end}"
    )


def summarize_turning_point(degradation: Degradation, search: CandidateScores | None) -> str:
    """Where the degradation curve turns, and what came of the map that the paper's rule opens, if it was tried."""
    turning = degradation.turning
    if degradation.rule is None:
        return f"No turning point: {turning.reason}. The paper's rule opens nothing."
    said = (
        f"Turning point: {turning.depth} of {len(degradation.scores)} layers (95 % interval {turning.low} to "
        f"{turning.high}). The paper's rule opens the layers after it, {degradation.rule}"
    )
    if search is None:
        return f"{said}; whether that helps was not tried."
    one = search.find(degradation.rule)
    return f"{said}: {'a no-op' if one.no_op else _gain_in_words(one.over_causal)}."


def summarize_training(halving: HalvingResult) -> str:
    """Which map is best after the same training, and whether it beats the causal model.

    The interval is over pairs; that another seed would train other weights is not in it.
    """
    best = halving.best
    gain = f"{_gain_in_words(best.last.over_causal)}, corrected for {len(halving.candidates) - 1} maps"
    after = f"After {best.last.steps} steps of {halving.batch_size} rows"
    once = "Each map was trained once, so that intervals are over pairs and not over trainings"
    if significance_mark(best.last.over_causal) == BETTER:
        return (
            f"{after}, best on {halving.task} is {best.name}: {format_points(best.last.score.value)}, {gain}. Train "
            f"with --bidirectional {best.bidirectional}. {once}, and it was chosen on these very pairs: train it and "
            "causal with other seeds, and score them on other pairs, before you believe its lead."
        )
    return (
        f"{after}, no map beats causal on {halving.task}, which scores "
        f"{format_points(halving.causal.last.score.value)}. The best, {best.name}, is {gain}. {once}."
    )


def _gain_in_words(difference: Difference) -> str:
    p = format_p_value(difference.p_value)
    return (
        f"{format_points(difference.value, signed=True)} points over causal (95 % interval "
        f"{format_interval(difference)}, p {p if p.startswith('<') else f'= {p}'})"
    )


def degradation_table(degradation: Degradation | None, stats: LayerStats | None) -> Table:
    """Scores and statistics by number of layers, as far as given, all layers first, with the turning point marked."""
    columns: dict[str, Sequence[str]] = {}
    captions: list[str] = []
    if degradation:
        columns["score"] = [format_score(score) for score in degradation.scores]
        captions.append(_PLUS_MINUS)
    if stats:
        columns["dependency"] = [format_points(share) for share in stats.dependency]
        columns["ahead"] = ["-" if share is None else format_points(share) for share in stats.looks_ahead]
        captions.append(
            "Dependency: what the last token has in common with the others after so many layers. Ahead: share of its "
            "attention that the last of these layers pays to later tokens if it alone is open. Both in percent, means "
            f"over {stats.num_texts} texts."
        )
    if degradation:
        columns[""] = _bars(degradation)
    rows = [(str(depth), *cells) for depth, cells in enumerate(zip(*columns.values(), strict=True), 1)]
    return Table(("layers", *columns), rows[::-1], " ".join(captions))


def _bars(degradation: Degradation) -> list[str]:
    highest = max(score.value for score in degradation.scores)
    scale = _BAR / highest if highest > 0 else 0
    bars = ["\N{FULL BLOCK}" * round(scale * score.value) for score in degradation.scores]
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


def halving_table(halving: HalvingResult) -> Table:
    """Maps that were trained, those that came furthest first."""
    caption = (
        f"{_PLUS_MINUS} Differences to causal and to all open after as many steps; p after Holm's correction for "
        f"{len(halving.candidates) - 1} maps, triangles where it is below {SIGNIFICANT}."
    )
    rows = [
        (
            one.name,
            str(one.last.steps),
            format_score(one.last.score),
            *(_gain(one.last.over_causal) if one.open_layers else ("", "", "")),
            _signed(one.last.over_all),
        )
        for one in halving.candidates
    ]
    header = ("trained", "steps", "score", "over causal", "interval", "p", "over all")
    return Table(header, rows, caption, styles=["" if one.open_layers else "bold" for one in halving.candidates])


def _over_causal(one: Candidate) -> tuple[str, str, str]:
    if one.is_causal:
        return "", "", ""
    return ("0.0", "no-op", "") if one.no_op else _gain(one.over_causal)


def _gain(gain: Difference) -> tuple[str, str, str]:
    return f"{significance_mark(gain)} {_signed(gain)}", format_interval(gain), format_p_value(gain.p_value)


def _signed(difference: Difference) -> str:
    return format_points(difference.value, signed=True)
