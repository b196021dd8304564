"""Measures against other implementations and closed forms, and each of their facts."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ortho_group

from bellm.analyse import MEASURES
from bellm.analyse.representation import Pair, Representation
from bellm.errors import BellmError
from tests.analyse.references import REFERENCES, padded

Floats = NDArray[np.float64]
KINDS = ("orthogonal", "scaling", "translation", "linear")


def related(size: int = 60, left: int = 7, right: int = 5, noise: float = 0.5, seed: int = 0) -> tuple[Floats, Floats]:
    """Two views of the same four numbers of each text, away from the origin, with columns of several sizes."""
    draw = np.random.default_rng(seed)
    common = draw.normal(size=(size, 4))
    views = [common @ draw.normal(size=(4, width)) + noise * draw.normal(size=(size, width)) for width in (left, right)]
    one, other = (view * np.linspace(0.5, 2, view.shape[1]) + draw.normal(size=view.shape[1]) for view in views)
    return one, other


def mapped(matrix: Floats, kind: str) -> Floats:
    draw, width = np.random.default_rng(3), matrix.shape[1]
    if kind == "orthogonal":
        return np.asarray(matrix @ ortho_group.rvs(width, random_state=draw))
    if kind == "linear":
        return np.asarray(matrix @ (draw.normal(size=(width, width)) + 2 * np.eye(width)))
    return matrix * 3.7 if kind == "scaling" else matrix + draw.normal(size=width)


@pytest.mark.parametrize("widths", [(7, 5), (5, 7), (6, 6)], ids=str)
@pytest.mark.parametrize("name", MEASURES)
def test_another_implementation_gives_the_same(name: str, widths: tuple[int, int]) -> None:
    left, right = related(60, *widths)
    assert MEASURES[name](left, right) == pytest.approx(REFERENCES[name](left, right), abs=1e-6)


SUBSPACES = {"svcca", "pwcca", "linear_regression", "eigenspace_overlap"}
"""Compare what the columns span, which is everything where vectors are as wide as there are texts."""


@pytest.mark.parametrize("name", sorted(MEASURES.keys() - SUBSPACES))
def test_so_it_does_where_vectors_are_wider_than_there_are_texts(name: str) -> None:
    left, right = related(20, 90, 50)
    assert MEASURES[name](left, right) == pytest.approx(REFERENCES[name](left, right), abs=1e-6)


@pytest.mark.parametrize("noise", [0, 1e-4, 1e-2])
def test_small_distances_are_exact_where_columns_are_of_many_sizes(noise: float) -> None:
    draw = np.random.default_rng(0)
    left = draw.normal(size=(300, 40)) * np.geomspace(1, 1e-6, 40)
    right = left + noise * draw.normal(size=left.shape)
    assert MEASURES["procrustes"](left, right) == pytest.approx(REFERENCES["procrustes"](left, right), abs=1e-6)


@pytest.mark.parametrize("matrix", [np.eye(20), 3 * np.eye(12) + 5, ortho_group.rvs(20, random_state=1)])
def test_texts_that_are_all_equally_far_apart_have_nothing_in_common_with_others(matrix: Floats) -> None:
    other = np.random.default_rng(0).normal(size=(len(matrix), 5))
    assert MEASURES["cka_debiased"](matrix, other) == 0
    assert MEASURES["cka_debiased"](matrix.astype(np.float32), matrix) == 0


def test_distances_that_are_all_equal_put_nothing_in_order() -> None:
    assert MEASURES["rsa"](np.eye(20), np.random.default_rng(0).normal(size=(20, 5))) == 0


def test_vectors_around_zero_have_no_concentricity() -> None:
    left, _ = related(20)
    mean = left.mean(axis=0)
    cosines = left @ mean / np.linalg.norm(left, axis=1) / np.linalg.norm(mean)
    around = np.vstack([np.eye(10), -np.eye(10)])
    assert MEASURES["concentricity_difference"](left, around) == pytest.approx(cosines.mean())


@pytest.mark.parametrize("name", ["pwcca", "linear_regression", "eigenspace_overlap"])
def test_as_wide_as_there_are_texts_everything_is_explained(name: str) -> None:
    draw = np.random.default_rng(0)
    assert MEASURES[name](*draw.normal(size=(2, 20, 40))) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_invariant_to_what_it_claims_and_to_nothing_else(name: str, kind: str) -> None:
    measure, (left, right) = MEASURES[name], related()
    before = measure(left, right)
    changes = [measure(mapped(left, kind), right) - before, measure(left, mapped(right, kind)) - before]
    is_invariant = max(map(abs, changes)) < 1e-6
    assert is_invariant == (kind in measure.invariances), changes


def test_regression_and_pwcca_are_invariant_to_more_on_one_side() -> None:
    left, right = related()
    for name, sides in (
        ("linear_regression", (mapped(left, "linear"), right)),
        ("pwcca", (left, mapped(right, "linear"))),
    ):
        assert MEASURES[name](*sides) == pytest.approx(MEASURES[name](left, right), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_order_of_texts_and_of_sides(name: str) -> None:
    measure, (left, right) = MEASURES[name], related()
    before, order = measure(left, right), np.random.default_rng(1).permutation(len(left))
    assert measure(left[order], right[order]) == pytest.approx(before, abs=1e-6)
    assert (abs(measure(left, right[order]) - before) > 1e-3) == measure.is_paired
    assert (abs(measure(right, left) - before) < 1e-6) == measure.is_symmetric


@pytest.mark.parametrize("shape", [(60, 7, 5), (20, 90, 50)], ids=str)
@pytest.mark.parametrize("name", MEASURES)
def test_what_is_known_of_an_order_holds_in_another(name: str, shape: tuple[int, int, int]) -> None:
    left, right = map(Representation, related(*shape))
    measure, order = MEASURES[name], np.random.default_rng(1).permutation(len(left))
    measure.of_pair(Pair(left, right))
    permuted = measure.of_pair(Pair(left, right.permuted(order)))
    assert permuted == pytest.approx(measure(left.vectors_ND, right.vectors_ND[order]), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_zero_columns_change_nothing(name: str) -> None:
    left, right = related()
    assert MEASURES[name](*padded(left, right)) == pytest.approx(MEASURES[name](left, right), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_range_and_direction(name: str) -> None:
    measure, (left, _) = MEASURES[name], related()
    assert measure(left, left) == pytest.approx(measure.best, abs=1e-6)
    draw = np.random.default_rng(5)
    noise = draw.normal(size=left.shape)
    noise += 0.3 * np.linalg.svd(left.mean(axis=0)[None])[2][-1] - noise.mean(axis=0)  # Its mean is small, and across.
    values = [measure(left, left + strength * noise) for strength in (0, 0.1, 0.3, 1, 3)]
    assert values == sorted(values, reverse=not measure.is_distance), values
    assert len(set(values)) == 5
    assert all(measure.low - 1e-6 <= value <= measure.high + 1e-6 for value in values)
    assert measure.low <= 0 <= measure.best <= measure.high


@pytest.mark.parametrize("ratio", [0.2, 1, 4])
def test_means_of_independent_matrices_in_closed_form(ratio: float) -> None:
    draw, size = np.random.default_rng(0), 50
    width = int(ratio * size)
    found = {name: [] for name in ("linear_regression", "cka_debiased", "cka")}
    for _ in range(30):
        left, right = draw.normal(size=(2, size, width))
        for name, values in found.items():
            values.append(MEASURES[name](left, right))
    means = {name: np.mean(values) for name, values in found.items()}
    assert means["linear_regression"] == pytest.approx(min(width / (size - 1), 1), abs=0.01)
    assert means["cka_debiased"] == pytest.approx(0, abs=0.02)
    # E||X'Y||^2 = D^2 n and E||X'X||^2 = D n (n + D + 1) of n = N - 1 degrees of freedom.
    assert means["cka"] == pytest.approx(width / (size - 1 + width + 1), abs=0.02)


def test_single_precision_is_enough() -> None:
    left, right = related()
    for name, measure in MEASURES.items():
        assert measure(left.astype(np.float32), right.astype(np.float32)) == pytest.approx(
            measure(left, right), abs=1e-5
        ), name


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if not measure.compares_texts])
@pytest.mark.parametrize("widths", [(7, 5), (40, 90)], ids=str)
def test_the_product_of_bases_in_single_precision_is_enough(name: str, widths: tuple[int, int]) -> None:
    left, right = related(60, *widths)
    left = 100 + left * np.geomspace(10, 1e-3, widths[0])  # As in language models: a large mean, and large columns.
    sides = Representation(left), Representation(right)
    order = np.random.default_rng(0).permutation(60)
    found = MEASURES[name].of_pair(Pair(sides[0], sides[1].permuted(order, exact=False), exact=False))
    assert found == pytest.approx(MEASURES[name](left, right[order]), abs=1e-6)


def test_neighbors_hold_no_order_of_all_texts() -> None:
    """A view of it would keep as much memory as all other matrices of the texts together."""
    left, _ = related()
    assert Representation(left).neighbors_NK.base is None


def test_a_direction_of_rounding_alone_is_none() -> None:
    left, right = related()
    doubled = np.hstack([left, left[:, :1] + left[:, 1:2]]).astype(np.float32)
    assert len(Representation(doubled).centered.scales_R) == left.shape[1]
    for name in ("svcca", "linear_regression", "eigenspace_overlap"):
        assert MEASURES[name](doubled, right) <= 1, name
    assert MEASURES["linear_regression"](doubled, right) == pytest.approx(
        MEASURES["linear_regression"](left, right), 1e-4
    )


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (np.ones((20, 3)), np.eye(20), "All 20 vectors are the same"),
        (np.eye(20), np.full((20, 3), np.nan), "NaN or infinity"),
        (np.eye(20), np.eye(30), "20 vectors and 30"),
        (np.eye(5), np.eye(5), "5 texts cannot be compared: give 12 or more"),
        (np.eye(20), np.ones(20), "is no matrix"),
        (np.eye(20), np.full((20, 2), "a"), "is no matrix"),
        (np.eye(20), np.ones((20, 0)), "is no matrix"),
        (np.eye(20), np.eye(20, dtype=complex), "is no matrix"),
    ],
)
def test_what_cannot_be_compared(left: Floats, right: Floats, message: str) -> None:
    for measure in MEASURES.values():
        with pytest.raises(BellmError, match=message):
            measure(left, right)


@pytest.mark.parametrize("name", ["aligned_cosine", "knn_jaccard", "rsm_difference", "concentricity_difference"])
def test_zeros_have_no_cosine(name: str) -> None:
    left, right = related()
    left[3] = 0
    with pytest.raises(BellmError, match="1 of 60 vectors are zero"):
        MEASURES[name](left, right)


def test_every_measure_says_what_it_is() -> None:
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert len((measure.__doc__ or "").splitlines()[0]) > 40
        assert all((measure.paper, measure.title))
