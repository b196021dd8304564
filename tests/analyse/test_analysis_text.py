import dataclasses

import pytest

from bellm.analyse import Analysis, analysis_tables, summarize_analysis
from bellm.analyse.analysis_text import format_number
from tests.analyse.analyses import across_layers, of_layers, of_models, pair


def test_models_in_sentences() -> None:
    closest, chance, unrelated, agreement = summarize_analysis(of_models("heron", "crane", "stork", "ibis"))
    assert closest == (
        "Debiased CKA, 0 by chance and 1 for equal vectors, is 0.81 for heron and crane, the closest, and "
        "\N{MINUS SIGN}0.02 for stork and ibis."
    )
    assert chance.startswith("Chance alone makes up half or more of ")
    assert chance.endswith("rather than what the two have in common.")
    assert " of 84 scores (orthogonal Procrustes, " in chance
    assert unrelated == "13 of 84 scores cannot be told from chance (p of 0.05 or more)."
    assert agreement == "Measures agree by a Spearman correlation of 1.00 in the mean, over 6 comparisons."


def test_one_pair_in_sentences() -> None:
    assert summarize_analysis(of_models("heron", "crane")) == [
        "Debiased CKA, 0 by chance and 1 for equal vectors, is 0.81 for heron and crane."
    ]


def test_measures_that_disagree_are_said() -> None:
    found = of_models("heron", "crane", "stork", "ibis")
    turned = [
        dataclasses.replace(one, measures={**one.measures, "cka": other.measures["cka"]})
        for one, other in zip(found.comparisons, reversed(found.comparisons), strict=True)
    ]
    two = [dataclasses.replace(one, measures={name: one.measures[name] for name in ("cka", "rsa")}) for one in turned]
    assert summarize_analysis(dataclasses.replace(found, comparisons=tuple(two)))[-1] == (
        "Measures agree by a Spearman correlation of \N{MINUS SIGN}1.00 in the mean, over 6 comparisons: which are "
        "closer depends on the measure."
    )


@pytest.mark.parametrize(
    ("order", "mean", "is_said"), [((0, 1, 4, 3, 2, 5), 0.77, False), ((2, 1, 0, 5, 4, 3), 0.54, True)]
)
def test_measures_that_agree_half_way_are_said(order: tuple[int, ...], mean: float, is_said: bool) -> None:
    found = of_models("heron", "crane", "stork", "ibis")
    pairs = [
        dataclasses.replace(one, measures={"cka": one.measures["cka"], "rsa": found.comparisons[at].measures["rsa"]})
        for one, at in zip(found.comparisons, order, strict=True)
    ]
    said = summarize_analysis(dataclasses.replace(found, comparisons=tuple(pairs)))[-1]
    assert said.startswith(f"Measures agree by a Spearman correlation of {mean} in the mean")
    assert said.endswith("which are closer depends on the measure.") == is_said


def test_layers_in_sentences() -> None:
    assert summarize_analysis(of_layers())[0] == (
        "From one layer to the next most changes between layer 4 and layer 5: debiased CKA, 0 by chance and 1 for "
        "equal vectors, is 0.14. 4 of 5 steps keep 0.90 or more."
    )
    assert summarize_analysis(across_layers())[0] == (
        "The closest layers are heron layer 1 and models/crane layer 2: debiased CKA, 0 by chance and 1 for equal "
        "vectors, is 0.75."
    )


def test_without_a_chance_level_there_is_less_to_say() -> None:
    bare = [
        dataclasses.replace(one, measures={"magnitude_difference": one.measures["magnitude_difference"]})
        for one in of_layers().comparisons
    ]
    assert len(summarize_analysis(dataclasses.replace(of_layers(), comparisons=tuple(bare)))) == 0


def test_the_table_of_a_pair() -> None:
    (table,) = analysis_tables(of_models("heron", "crane"))
    assert table.header == ["measure", "value", "95 %", "by chance", "calibrated", "p"]
    assert len(table.rows) == 17
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["linear CKA"] == ["0.840", "0.790 to 0.890", "0.200 \N{PLUS-MINUS SIGN} 0.010", "0.80", "0.010"]
    dash = "\N{EN DASH}"
    assert rows["magnitude difference"] == ["0.050", "0.000 to 0.100", dash, dash, dash]
    assert table.caption.startswith("heron and crane. value: ")


def test_a_value_of_chance_has_a_sign() -> None:
    (table,) = analysis_tables(_single(0.3))
    assert {row[1][-2:] for row in table.rows if row[3] != "\N{EN DASH}"} == {" !"}


def test_large_values_keep_three_digits() -> None:
    minus = "\N{MINUS SIGN}"
    assert [format_number(value) for value in (99.9994, 123.456, -12.3456, -0.0001, None)] == [
        *("99.999", "123", f"{minus}12.346", "0.000", "\N{EN DASH}"),
    ]


def _single(closeness: float) -> Analysis:
    found = of_models("heron", "crane")
    return dataclasses.replace(
        found, comparisons=(pair("heron", "crane", closeness, ("cka", "rsa", "uniformity_difference")),)
    )


def test_tables_of_layers() -> None:
    (steps,) = analysis_tables(of_layers())
    assert steps.header == ["from", "to", "debiased CKA", "RSA", "kNN Jaccard"]
    assert [row[:2] for row in steps.rows] == [[f"layer {at}", f"layer {at + 1}"] for at in range(5)]
    assert steps.rows[4][2] == "0.310 (0.14)"
    (closest,) = analysis_tables(across_layers())
    assert closest.header == ["layer", "closest layer", "debiased CKA", "RSA"]
    assert closest.rows[1] == ["heron layer 1", "models/crane layer 2", "0.800 (0.75)", "0.810 (0.76)"]
