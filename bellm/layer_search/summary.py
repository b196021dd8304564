"""The findings of a layer search in plain sentences."""

from typing import TYPE_CHECKING

from bellm.layer_search.candidates import Candidate, CandidateScores
from bellm.layer_search.degradation import Degradation
from bellm.report.formatting import SIGNIFICANT, format_interval, format_p_value, format_points
from bellm.report.statistics import Difference

if TYPE_CHECKING:
    from bellm.layer_search.halving_result import HalvingResult


def summarize_candidates(search: CandidateScores) -> str:
    """Which candidate is best, and whether it beats the causal model; and which maps can do nothing.

    The interval is that of the one comparison; the p-value is corrected for all. A winner among many owes part of its
    lead to luck on these very pairs.
    """
    if not search.tested:
        return f"No candidate can change these vectors. {_no_ops(search)}".strip()
    best = search.tested[0]
    gain = _gain(best.over_causal)
    if best.over_causal.value > 0 and best.over_causal.p_value < SIGNIFICANT:
        said = (
            f"Best on {search.task} is {best.name}: {format_points(best.score.value)}, {gain}, corrected for "
            f"{len(search.tested)} candidates. {_how_to(best)}; it was chosen on these pairs, so score it on others "
            "before you believe its lead."
        )
    else:
        said = (
            f"No candidate beats causal on {search.task}, which scores {format_points(search.causal.score.value)}. "
            f"The best, {best.name}, is {gain}, corrected for {len(search.tested)} candidates."
        )
    return f"{said} {_no_ops(search)}".strip()


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
    return f"{said}: {'a no-op' if one.no_op else _gain(one.over_causal)}."


def summarize_training(halving: "HalvingResult") -> str:
    """Which map is best after the same training, and whether it beats the causal model.

    The interval is over pairs; that another seed would train other weights is not in it.
    """
    best = halving.best
    gain = f"{_gain(best.last.over_causal)}, corrected for {len(halving.maps) - 1} maps"
    after = f"After {best.last.steps} steps of {halving.batch_size} rows"
    once = "Each map was trained once, so that intervals are over pairs and not over trainings"
    if best.last.over_causal.value > 0 and best.last.over_causal.p_value < SIGNIFICANT:
        return (
            f"{after}, best on {halving.task} is {best.name}: {format_points(best.last.score.value)}, {gain}. Train "
            f"with --bidirectional {best.bidirectional}. {once}, and it was chosen on these very pairs: train it and "
            "causal with other seeds, and score them on other pairs, before you believe its lead."
        )
    return (
        f"{after}, no map beats causal on {halving.task}, which scores "
        f"{format_points(halving.causal.last.score.value)}. The best, {best.name}, is {gain}. {once}."
    )


def _how_to(best: Candidate) -> str:
    if not best.prepending:
        return f"Open it with --bidirectional {best.bidirectional}"
    return (
        "It opens no layer: before each of the layers 2 to "
        f"{best.prepending}, a placeholder in front of the text is given the last token's state (Token Prepending). "
        f"Use it with --token-prepending {best.prepending}"
    )


def _gain(difference: Difference) -> str:
    p = format_p_value(difference.p_value)
    return (
        f"{format_points(difference.value, signed=True)} points over causal (95 % interval "
        f"{format_interval(difference)}, p {p if p.startswith('<') else f'= {p}'})"
    )


def _no_ops(search: CandidateScores) -> str:
    names = [one.name for one in search.candidates if one.no_op]
    return f"A no-op, exactly causal: {', '.join(names)}." if names else ""
