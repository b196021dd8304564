"""The measures a second time, slowly and by other ways: Gram matrices, loops, and other libraries."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, spatial, stats
from scipy.spatial.distance import pdist
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from statsmodels.multivariate.cancorr import CanCorr
from statsmodels.stats.dist_dependence_measures import distance_correlation as statsmodels_distance_correlation

Floats = NDArray[np.float64]


def padded(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """The narrower with zero columns at its end."""
    width = max(left.shape[1], right.shape[1])
    padded_left, padded_right = (np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in (left, right))
    return padded_left, padded_right


def procrustes(left: Floats, right: Floats) -> float:
    # scipy scales one side too, so that its disparity is 1 - (sum of singular values)^2.
    disparity = spatial.procrustes(*padded(left, right))[2]
    return float(np.sqrt(2 - 2 * np.sqrt(1 - disparity)))


def aligned_cosine(left: Floats, right: Floats) -> float:
    left, right = padded(left, right)
    rotation, _ = linalg.orthogonal_procrustes(left, right)
    return float(
        np.mean([cosine_similarity([one @ rotation], [other])[0, 0] for one, other in zip(left, right, strict=True)])
    )


def rsm_difference(left: Floats, right: Floats) -> float:
    return float(np.sqrt(np.mean((pdist(left, "cosine") - pdist(right, "cosine")) ** 2)))


def rsa(left: Floats, right: Floats) -> float:
    return float(stats.spearmanr(pdist(left), pdist(right)).statistic)


def cka(left: Floats, right: Floats) -> float:
    center = np.eye(len(left)) - 1 / len(left)
    grams = [center @ side @ side.T @ center for side in (left, right)]
    return float(np.trace(grams[0] @ grams[1]) / np.sqrt(np.prod([np.trace(gram @ gram) for gram in grams])))


def cka_debiased(left: Floats, right: Floats) -> float:
    def hsic(one: Floats, other: Floats) -> float:
        n = len(one)
        k, l = one @ one.T, other @ other.T  # noqa: E741 - as the paper has it
        np.fill_diagonal(k, 0)
        np.fill_diagonal(l, 0)
        ones = np.ones(n)
        kl = k @ l
        last = 2 / (n - 2) * ones @ kl @ ones
        return (np.trace(kl) + ones @ k @ ones * (ones @ l @ ones) / (n - 1) / (n - 2) - last) / n / (n - 3)

    return float(hsic(left, right) / np.sqrt(hsic(left, left) * hsic(right, right)))


def neighbors(matrix: Floats) -> list[list[int]]:
    found = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(matrix)
    return [row.tolist() for row in found.kneighbors(return_distance=False)]


def neighbor_rows(left: Floats, right: Floats) -> Iterator[tuple[int, list[int], list[int]]]:
    for i, (one, other) in enumerate(zip(neighbors(left), neighbors(right), strict=True)):
        yield i, one, other


def knn_jaccard(left: Floats, right: Floats) -> float:
    rows = neighbor_rows(left, right)
    return float(np.mean([len({*one} & {*other}) / len({*one} | {*other}) for _, one, other in rows]))


def second_order_cosine(left: Floats, right: Floats) -> float:
    cosines = [cosine_similarity(side) for side in (left, right)]
    values = []
    for i, one, other in neighbor_rows(left, right):
        union = sorted({*one, *other})
        values.append(cosine_similarity([cosines[0][i, union]], [cosines[1][i, union]])[0, 0])
    return float(np.mean(values))


def rank_similarity(left: Floats, right: Floats) -> float:
    values = []
    for _, one, other in neighbor_rows(left, right):
        shared = {*one} & {*other}
        ranks = [(one.index(j) + 1, other.index(j) + 1) for j in shared]
        total = sum(2 / ((1 + abs(r - s)) * (r + s)) for r, s in ranks)
        values.append(total / sum(1 / k for k in range(1, len(shared) + 1)) if shared else 0)
    return float(np.mean(values))


def distance_correlation(left: Floats, right: Floats) -> float:
    return float(statsmodels_distance_correlation(left, right))


def components(matrix: Floats, share: float) -> Floats:
    centered = matrix - matrix.mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    order = np.argsort(-values)
    count = int(np.argmax(np.cumsum(values[order]) >= share * values.sum())) + 1
    return centered @ vectors[:, order[:count]]


def svcca(left: Floats, right: Floats) -> float:
    return float(np.mean(CanCorr(components(left, 0.99), components(right, 0.99)).cancorr))


def pwcca(left: Floats, right: Floats) -> float:
    found = CanCorr(left, right)
    centered = left - left.mean(axis=0)
    directions = centered @ found.y_cancoef[:, : len(found.cancorr)]
    directions /= np.linalg.norm(directions, axis=0)
    weights = np.array([sum(abs(h @ column) for column in centered.T) for h in directions.T])
    return float(weights @ found.cancorr / weights.sum())


def linear_regression(left: Floats, right: Floats) -> float:
    fitted = LinearRegression().fit(left, right).predict(left)
    return float(1 - ((right - fitted) ** 2).sum() / ((right - right.mean(axis=0)) ** 2).sum())


def eigenspace_overlap(left: Floats, right: Floats) -> float:
    ranks = [np.linalg.matrix_rank(side) for side in (left, right)]
    return float((np.cos(linalg.subspace_angles(left, right)) ** 2).sum() / max(ranks))


def uniformity_difference(left: Floats, right: Floats) -> float:
    def uniformity(matrix: Floats) -> float:
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        return float(np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean()))

    return abs(uniformity(left) - uniformity(right))


def magnitude_difference(left: Floats, right: Floats) -> float:
    return float(abs(np.linalg.norm(left.mean(axis=0)) - np.linalg.norm(right.mean(axis=0))))


def concentricity_difference(left: Floats, right: Floats) -> float:
    def concentricity(matrix: Floats) -> float:
        return float(np.mean(cosine_similarity(matrix, matrix.mean(axis=0)[None])))

    return abs(concentricity(left) - concentricity(right))


REFERENCES: dict[str, Callable[[Floats, Floats], float]] = {
    function.__name__: function
    for function in (
        procrustes,
        aligned_cosine,
        rsm_difference,
        rsa,
        cka,
        cka_debiased,
        knn_jaccard,
        second_order_cosine,
        rank_similarity,
        distance_correlation,
        svcca,
        pwcca,
        linear_regression,
        eigenspace_overlap,
        uniformity_difference,
        magnitude_difference,
        concentricity_difference,
    )
}
