"""Chance levels, intervals and agreement, in worlds where the truth is known."""

import tracemalloc
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from bellm.analyse import MEASURES, ComparedPair, Measured, compare_vectors, measure_agreement
from bellm.analyse import comparison as comparison_module
from bellm.errors import BellmError

Floats = NDArray[np.float64]
PAIRED = [name for name, measure in MEASURES.items() if measure.is_paired]
QUICK: dict[str, Any] = {"permutations": 20, "resamples": 0}


def world(size: int = 60, width: int = 12, shared: float = 0.0, seed: int = 0) -> dict[str, Floats]:
    """Two matrices that share a part of each text's numbers, through a rotation."""
    draw = np.random.default_rng(seed)
    common, left, right = draw.normal(size=(3, size, width))
    rotation = np.linalg.qr(draw.normal(size=(width, width)))[0]
    keep = np.sqrt(1 - shared)
    return {"a": np.sqrt(shared) * common + keep * left, "b": (np.sqrt(shared) * common + keep * right) @ rotation}


def only(vectors: dict[str, Floats], **options: Any) -> ComparedPair:
    (pair,) = compare_vectors(vectors, **options)
    return pair


@pytest.mark.parametrize("width", [6, 50])
def test_chance_is_what_permuted_texts_give(width: int) -> None:
    vectors = world(30, width)
    found = only(vectors, **QUICK).measures
    draw = np.random.default_rng(9)
    for name in PAIRED:
        nulls = [MEASURES[name](vectors["a"], vectors["b"][draw.permutation(30)]) for _ in range(20)]
        sd = float(np.std(nulls, ddof=1))
        assert found[name].null_sd == pytest.approx(sd, rel=0.7, abs=1e-6), name
        assert found[name].null_mean == pytest.approx(np.mean(nulls), abs=sd + 1e-6), name


def test_what_is_related_is_told_from_chance_and_what_is_not_is_not() -> None:
    related, unrelated = (only(world(shared=shared), **QUICK).measures for shared in (0.9, 0.0))
    for name in PAIRED:
        assert related[name].p == pytest.approx(1 / 21), name
        assert (related[name].calibrated or 0) > 0.05, name
        assert abs(unrelated[name].calibrated or 0) < 0.2, name
    assert sum((unrelated[name].p or 0) < 0.05 for name in PAIRED) <= 3


def test_a_score_that_the_width_explains_is_said_to_be_one() -> None:
    wide = only(world(30, 120), **QUICK).measures
    assert wide["cka"].value == pytest.approx(0.8, abs=0.02)
    for name in ("cka", "procrustes", "aligned_cosine", "svcca", "pwcca", "linear_regression", "distance_correlation"):
        assert wide[name].is_mostly_chance, name
    assert not wide["cka_debiased"].is_mostly_chance
    more, less = (only(world(30, 12, shared), **QUICK).measures["cka"] for shared in (0.5, 0.8))
    assert (more.is_mostly_chance, less.is_mostly_chance) == (True, False)  # Chance is 62 and 37 % of them.
    some, little = (only(world(size, 12), **QUICK).measures["cka"] for size in (30, 300))
    assert (some.value, some.is_mostly_chance) == (pytest.approx(0.3, abs=0.1), True)
    assert (little.value, little.is_mostly_chance) == (pytest.approx(0.04, abs=0.02), False)  # Nobody is misled by it.
    assert not only(world(200, 6, shared=0.9), **QUICK).measures["cka"].is_mostly_chance


def test_where_chance_reaches_the_best_nothing_is_calibrated() -> None:
    found = only(world(30, 40), **QUICK).measures["pwcca"]
    assert (found.null_mean, found.p, found.calibrated) == (pytest.approx(1), 1, None)


def test_equal_representations_are_at_one() -> None:
    vectors = world()
    for name, found in only({"a": vectors["a"], "b": vectors["a"]}, **QUICK).measures.items():
        assert found.calibrated == (pytest.approx(1, abs=1e-5) if MEASURES[name].is_paired else None), name


def test_what_does_not_see_which_text_is_which_has_no_chance_level() -> None:
    found = only(world(), permutations=20, resamples=10).measures
    for name in MEASURES.keys() - PAIRED:
        chance = (found[name].null_mean, found[name].null_sd, found[name].p, found[name].calibrated)
        assert chance == (None, None, None, None), name
        assert found[name].low is not None


def test_intervals_are_as_wide_as_other_texts_make_them() -> None:
    names = ["cka", "cka_debiased", "procrustes", "rsa", "linear_regression", "knn_jaccard", "concentricity_difference"]
    options: dict[str, Any] = {"measures": names, "permutations": 0}
    draws = [only(world(100, 5, 0.6, seed), **options, resamples=0).measures for seed in range(40)]
    founds = [only(world(100, 5, 0.6, seed), **options, resamples=30).measures for seed in range(5)]
    for name in names:
        values = np.array([found[name].value for found in draws])
        widths = [(found[name].high or 0) - (found[name].low or 0) for found in founds]
        assert np.mean(widths) / (4 * values.std()) == pytest.approx(1, abs=0.5), name
        assert all((found[name].low or 0) <= found[name].value <= (found[name].high or 0) for found in founds)
        assert all((found[name].low or 0) >= MEASURES[name].low for found in founds)


def test_measures_of_pairs_of_texts_take_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_module, "MOST_TEXTS", 40)
    vectors = world(90, 6, 0.8)
    found = only(vectors, permutations=20, resamples=10).measures
    for name, measure in MEASURES.items():
        assert (found[name].value == pytest.approx(measure(*vectors.values()), abs=1e-6)) != measure.compares_texts
    rows = np.sort(np.random.default_rng(0).choice(90, 40, replace=False))
    assert found["rsa"].value == pytest.approx(MEASURES["rsa"](vectors["a"][rows], vectors["b"][rows]), abs=1e-6)
    assert (found["rsa"].low or 0) < found["rsa"].value < (found["rsa"].high or 0)
    assert found["rsa"].null_mean == pytest.approx(0, abs=0.1)


def test_chance_of_many_texts_is_that_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken in float32: what is 1 whatever the vectors hold is no evidence there either."""
    vectors = {name: matrix.astype(np.float32) for name, matrix in world(60, 80).items()}
    names = [name for name in PAIRED if not MEASURES[name].compares_texts]
    few = only(vectors, measures=names, **QUICK).measures
    monkeypatch.setattr(comparison_module, "MOST_TEXTS", 40)
    many = only(vectors, measures=names, **QUICK).measures
    for name in names:
        assert many[name].value == few[name].value, name
        assert many[name].null_mean == pytest.approx(few[name].null_mean, abs=2 * (few[name].null_sd or 0) + 1e-6), name
        assert many[name].null_sd == pytest.approx(few[name].null_sd, rel=1, abs=1e-6), name
    assert [many[name].p for name in ("linear_regression", "pwcca", "eigenspace_overlap")] == [1, 1, 1]


def test_of_many_texts_one_kind_of_matrices_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_module, "MOST_TEXTS", 300)
    draw = np.random.default_rng(0)
    vectors = {name: draw.normal(size=(2000, 50)).astype(np.float32) for name in "abcdefgh"}

    def peak(*measures: str) -> int:
        tracemalloc.start()
        compare_vectors(vectors, measures=measures, **QUICK)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    alone = peak("cka"), peak("rsa")
    assert min(alone) > 8 * 300 * 300 * 4
    assert peak("cka", "rsa") < 1.1 * max(alone)


def test_a_seed_is_a_result_and_pairs_do_not_touch_each_other() -> None:
    vectors = {**world(), "c": world(seed=7)["a"][:, :5]}
    options: dict[str, Any] = {"measures": ["cka", "rsa"], "permutations": 20, "resamples": 10}
    all_pairs = compare_vectors(vectors, **options)
    assert [(pair.a, pair.b) for pair in all_pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert compare_vectors(vectors, pairs=[("a", "c")], **options) == [all_pairs[1]]
    assert (
        compare_vectors(vectors, **options, seed=1)[0].measures["cka"].null_mean
        != all_pairs[0].measures["cka"].null_mean
    )


def test_progress_comes_to_its_end() -> None:
    steps: list[tuple[int, int]] = []
    compare_vectors(world(), measures=["cka"], permutations=20, resamples=10, progress=lambda *at: steps.append(at))
    assert steps == [(step, 31) for step in range(1, 32)]


def test_agreement_is_that_of_rankings() -> None:
    vectors = {str(shared): world(60, 6, shared, seed=4)["b"] for shared in (0.1, 0.5, 0.9)}
    vectors["first"] = world(60, 6, 0.5, seed=4)["a"]
    compared = compare_vectors(vectors, permutations=0, resamples=0)
    found = measure_agreement(compared)
    assert found is not None
    assert found.measures == tuple(MEASURES)
    assert found.num_comparisons == 6
    values = {name: [pair.measures[name].value for pair in compared] for name in MEASURES}
    for (i, one), (j, other) in combinations(enumerate(MEASURES), 2):
        sign = -1 if MEASURES[one].is_distance != MEASURES[other].is_distance else 1
        expected = sign * spearmanr(values[one], values[other]).statistic
        assert found.correlations_MM[i, j] == pytest.approx(expected)
    assert found.mean == pytest.approx(found.correlations_MM[np.triu_indices(len(MEASURES), 1)].mean())


def test_no_agreement_of_few_comparisons_or_of_what_never_differs() -> None:
    pairs = [ComparedPair("a", str(n), {"cka": Measured(n / 9), "rsa": Measured(0.5)}) for n in range(5)]
    assert measure_agreement(pairs) is None
    rounded = [ComparedPair("a", str(n), {"cka": Measured(n / 9), "rsa": Measured(1 - n * 1e-15)}) for n in range(5)]
    assert measure_agreement(rounded) is None  # Regression of wide vectors is 1 but for rounding.
    four = [ComparedPair("a", str(n), {"cka": Measured(n / 9), "rsa": Measured(-n / 9)}) for n in range(4)]
    assert measure_agreement(four[:3]) is None
    found = measure_agreement(four)
    assert found is not None
    assert found.mean == pytest.approx(-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"permutations": 5}, "5 permutations cannot show anything: give 20 or more, or 0"),
        ({"resamples": 3}, "3 half samples make no interval: give 10 or more, or 0"),
        ({"measures": ["cosine"]}, "measures='cosine' is not one of procrustes, "),
        ({"pairs": []}, "2 representations make no pair"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BellmError, match=message):
        compare_vectors(world(), **change)


def test_vectors_that_cannot_be_compared_are_named() -> None:
    vectors = world(20)
    with pytest.raises(BellmError, match="20 texts are too few for intervals: give 24 or more, or resamples=0"):
        compare_vectors(vectors)
    with pytest.raises(BellmError, match="a: 20, b: 20, heron: 30"):
        compare_vectors({**vectors, "heron": np.eye(30)})
    with pytest.raises(BellmError, match="heron: All 20 vectors are the same"):
        compare_vectors({**vectors, "heron": np.ones((20, 3))}, **QUICK)
    vectors["b"][2] = 0
    with pytest.raises(BellmError, match="a and b: 1 of 20 vectors are zero"):
        compare_vectors(vectors, **QUICK)
