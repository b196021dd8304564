"""An analysis in sentences and tables."""

from collections import Counter
from collections.abc import Sequence

from bellm.analyse.analysis import Analysis
from bellm.analyse.comparison import ComparedPair, Measured
from bellm.analyse.measures import MEASURES
from bellm.report.formatting import SIGNIFICANT, Table, format_cell, format_p_value

_HEADLINES = ("cka_debiased", "rsa", "knn_jaccard")
"""Measures that tables of layers show, where they were asked for; the first of them stands for all in sentences."""

_NONE = "\N{EN DASH}"
_ALIKE = 0.9  # Calibrated scores of layers that a sentence calls alike.

CAPTION = (
    "value: as published. 95 %: where it would be on other texts. by chance: its mean and standard deviation with the "
    "texts of one side shuffled. calibrated: 0 by chance, 1 for equal vectors. p: how often chance is as close. "
    "!: chance alone makes up half of the value or more. A distance is 0 for equal vectors; all others are 1."
)


def summarize_analysis(analysis: Analysis) -> list[str]:
    """What was found, in plain sentences."""
    said = [_layers_sentence(analysis) if analysis.layers else _models_sentence(analysis), _chance_sentence(analysis)]
    said.append(_unrelated_sentence(analysis))
    if agreement := analysis.agreement:
        said.append(
            f"Measures agree by a Spearman correlation of {format_cell(agreement.mean)} in the mean, over "
            f"{agreement.num_comparisons} comparisons"
            f"{': which are closer depends on the measure' if agreement.mean < 0.7 else ''}."
        )
    return [sentence[0].upper() + sentence[1:] for sentence in said if sentence]


def headline(analysis: Analysis) -> str | None:
    """The measure that stands for all in a sentence; None where none has a chance level."""
    known = [name for name in (*_HEADLINES, *analysis.measures) if name in analysis.measures]
    return next((name for name in known if analysis.comparisons[0].measures[name].null_mean is not None), None)


def calibrated(pair: ComparedPair, name: str) -> float | None:
    """A pair's calibrated score."""
    return pair.measures[name].calibrated


def _models_sentence(analysis: Analysis) -> str:
    name = headline(analysis)
    scored = [(calibrated(pair, name), pair) for pair in analysis.comparisons] if name else []
    known = sorted(((score, pair) for score, pair in scored if score is not None), key=lambda one: -one[0])
    if not name or not known:
        return ""
    (best, pair), (worst, other) = known[0], known[-1]
    said = (
        f"{MEASURES[name].title}, 0 by chance and 1 for equal vectors, is {format_cell(best)} for {pair.a} and {pair.b}"
    )
    return (
        f"{said}, the closest, and {format_cell(worst)} for {other.a} and {other.b}."
        if other is not pair
        else f"{said}."
    )


def _layers_sentence(analysis: Analysis) -> str:
    name = headline(analysis)
    if not name:
        return ""
    title = f"{MEASURES[name].title}, 0 by chance and 1 for equal vectors"
    if analysis.rows != analysis.columns:
        nearest = [closest(analysis, row, name) for row in analysis.rows]
        best, row, column = max(
            (score, row, column) for row, (column, score) in zip(analysis.rows, nearest, strict=True)
        )
        return f"The closest layers are {row} and {column}: {title}, is {format_cell(best)}."
    steps = [(score, pair) for pair in neighbors(analysis) if (score := calibrated(pair, name)) is not None]
    if not steps:
        return ""
    score, pair = min(steps, key=lambda one: one[0])
    alike = sum(score >= _ALIKE for score, _ in steps)
    return (
        f"From one layer to the next most changes between {short_name(analysis, pair.a)} and "
        f"{short_name(analysis, pair.b)}: {title}, is {format_cell(score)}. {alike} of {len(steps)} steps keep "
        f"{format_cell(_ALIKE)} or more."
    )


def _chance_sentence(analysis: Analysis) -> str:
    found = [
        (name, pair) for pair in analysis.comparisons for name, one in pair.measures.items() if one.is_mostly_chance
    ]
    if not found:
        return ""
    counts = Counter(name for name, _ in found)
    names = ", ".join(MEASURES[name].title for name in counts)
    total = len(analysis.comparisons) * sum(MEASURES[name].is_paired for name in analysis.measures)
    return (
        f"Chance alone makes up half or more of {len(found)} of {total} scores ({names}): there the raw value says how "
        "wide the vectors are, or what all texts share, rather than what the two have in common."
    )


def _unrelated_sentence(analysis: Analysis) -> str:
    p_values = [one.p for pair in analysis.comparisons for one in pair.measures.values() if one.p is not None]
    unclear = sum(not p < SIGNIFICANT for p in p_values)
    return (
        f"{unclear} of {len(p_values)} scores cannot be told from chance (p of {SIGNIFICANT} or more)."
        if unclear
        else ""
    )


def analysis_tables(analysis: Analysis) -> list[Table]:
    """A table for each pair of models, or one with a row for each layer."""
    if not analysis.layers:
        return [pair_table(pair) for pair in analysis.comparisons]
    names = [name for name in _HEADLINES if name in analysis.measures] or list(analysis.measures[:3])
    if analysis.rows == analysis.columns:
        return [_steps_table(analysis, names)]
    return [_closest_table(analysis, names)]


def pair_table(pair: ComparedPair) -> Table:
    """Every measure of a pair."""
    header = ["measure", "value", "95 %", "by chance", "calibrated", "p"]
    rows = [[MEASURES[name].title, *cells(one)] for name, one in pair.measures.items()]
    return Table(header, rows, f"{pair.a} and {pair.b}. {CAPTION}")


def cells(found: Measured) -> list[str]:
    """Value, interval, chance level, calibrated score and p of a measure, in words."""
    mark = " !" if found.is_mostly_chance else ""
    return [
        f"{format_number(found.value)}{mark}",
        _NONE if found.low is None else f"{format_number(found.low)} to {format_number(found.high)}",
        _NONE
        if found.null_mean is None
        else f"{format_number(found.null_mean)} \N{PLUS-MINUS SIGN} {format_number(found.null_sd)}",
        _NONE if found.calibrated is None else format_cell(found.calibrated),
        _NONE if found.p is None else format_p_value(found.p),
    ]


def format_number(value: float | None) -> str:
    """A measure's value to three decimals, or three digits where it is large."""
    if value is None:
        return _NONE
    return (f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:.3g}").replace("-", "\N{MINUS SIGN}")


def _steps_table(analysis: Analysis, names: Sequence[str]) -> Table:
    header = ["from", "to", *(MEASURES[name].title for name in names)]
    rows = [
        [short_name(analysis, pair.a), short_name(analysis, pair.b), *(_score(pair, name) for name in names)]
        for pair in neighbors(analysis)
    ]
    return Table(header, rows, "From one layer to the next: value, and calibrated score (0 by chance, 1 for equal).", 2)


def _closest_table(analysis: Analysis, names: Sequence[str]) -> Table:
    name = headline(analysis) or names[0]
    header = ["layer", "closest layer", *(MEASURES[each].title for each in names)]
    rows = []
    for row in analysis.rows:
        column, _ = closest(analysis, row, name)
        pair = analysis.by_names[row, column]
        rows.append([row, column, *(_score(pair, each) for each in names)])
    caption = f"Closest by {MEASURES[name].title}: value, and calibrated score (0 by chance, 1 for equal)."
    return Table(header, rows, caption, 2)


def _score(pair: ComparedPair, name: str) -> str:
    found = pair.measures[name]
    score = "" if found.calibrated is None else f" ({format_cell(found.calibrated)})"
    return f"{format_number(found.value)}{score}"


def closest(analysis: Analysis, row: str, name: str) -> tuple[str, float]:
    """The column that is closest to a row, and its calibrated score; the raw one where there is none."""

    def score(column: str) -> float:
        found = analysis.by_names[row, column].measures[name]
        raw = -found.value if MEASURES[name].is_distance else found.value
        return raw if found.calibrated is None else found.calibrated

    best = max(analysis.columns, key=score)
    return best, score(best)


def neighbors(analysis: Analysis) -> list[ComparedPair]:
    """Comparisons of each layer with the next."""
    return [analysis.by_names[pair] for pair in zip(analysis.rows, analysis.rows[1:], strict=False)]


def short_name(analysis: Analysis, name: str) -> str:
    """`layer 3` where all layers are of one model."""
    only = next(iter(analysis.models)) if len(analysis.models) == 1 else None
    return name.removeprefix(f"{only} ") if only else name
