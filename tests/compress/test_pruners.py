"""Pruners against a few independent lines, and against each other."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bellm import BellmError
from bellm.compress.pruners import InputStatistics, Pattern, PruneMethod, prune_matrix, relative_error

METHODS: tuple[PruneMethod, ...] = ("magnitude", "wanda", "sparsegpt")
DRAW = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(24, 160, generator=DRAW)
SCALES = torch.linspace(0.1, 3, 160)[torch.randperm(160, generator=DRAW)]
ROWS = torch.randn(400, 160, generator=DRAW) @ torch.randn(160, 160, generator=DRAW) * SCALES


def inputs(rows: Tensor = ROWS) -> InputStatistics:
    statistics = InputStatistics()
    for part in rows.split(150):
        statistics.add(part, with_gram=True)
    return statistics


def gone(weight: Tensor) -> np.ndarray:
    return (weight == 0).numpy()


def test_statistics_are_sums_over_all_parts() -> None:
    found = inputs()
    assert found.num_tokens == 400
    torch.testing.assert_close(found.squares_I, (ROWS**2).sum(0))
    torch.testing.assert_close(found.gram_II, ROWS.T @ ROWS, rtol=1e-3, atol=0.1)


def test_magnitude_removes_the_smallest_of_the_matrix() -> None:
    pruned = prune_matrix(WEIGHT, 1001, "magnitude", InputStatistics())
    threshold = np.sort(np.abs(WEIGHT.numpy()).ravel())[1001]
    np.testing.assert_array_equal(gone(pruned), np.abs(WEIGHT.numpy()) < threshold)
    torch.testing.assert_close(pruned[pruned != 0], WEIGHT[pruned != 0])


def test_wanda_removes_the_smallest_scores_of_each_row() -> None:
    pruned = prune_matrix(WEIGHT, 24 * 70 + 5, "wanda", inputs())
    scores = np.abs(WEIGHT.numpy()) * np.sqrt((ROWS.numpy() ** 2).sum(axis=0))
    for row, row_scores in enumerate(scores):
        wanted = set(np.argsort(row_scores)[: 70 + (row < 5)].tolist())
        assert set(np.flatnonzero(gone(pruned)[row]).tolist()) == wanted
    torch.testing.assert_close(pruned[pruned != 0], WEIGHT[pruned != 0])


def reference_sparsegpt(weight: np.ndarray, gram: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Optimal Brain Surgeon, column by column, with the inverse of what is left computed anew each time."""
    weight, damped = weight.copy(), gram + 0.01 * np.diag(gram).mean() * np.eye(len(gram))
    for column in range(weight.shape[1]):
        inverse = np.linalg.inv(damped[column:, column:])
        error = np.where(masks[:, column], weight[:, column], 0) / inverse[0, 0]
        weight[:, column:] -= np.outer(error, inverse[0])
        weight[:, column] *= ~masks[:, column]
    return weight


def test_sparsegpt_corrects_as_the_surgeon_does() -> None:
    pruned = prune_matrix(WEIGHT, 2000, "sparsegpt", inputs())
    gram = (ROWS.double().T @ ROWS.double()).numpy()
    wanted = reference_sparsegpt(WEIGHT.double().numpy(), gram, gone(pruned))
    np.testing.assert_allclose(pruned.numpy(), wanted, atol=2e-3)


def test_the_first_block_of_sparsegpt_loses_what_the_surgeon_misses_least() -> None:
    pruned = prune_matrix(WEIGHT, 2000, "sparsegpt", inputs())
    gram = (ROWS.double().T @ ROWS.double()).numpy()
    damped = gram + 0.01 * np.diag(gram).mean() * np.eye(160)
    loss = np.stack([WEIGHT.numpy()[:, at] ** 2 / np.linalg.inv(damped[at:, at:])[0, 0] for at in range(128)], axis=1)
    count = 1600  # 128 of 160 columns.
    wanted = loss < np.sort(loss.ravel())[count]
    assert (gone(pruned)[:, :128] != wanted).sum() <= 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1, 1777, WEIGHT.numel() - 1])
def test_as_many_weights_go_as_are_asked_for(method: PruneMethod, count: int) -> None:
    assert gone(prune_matrix(WEIGHT, count, method, inputs())).sum() == count


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ["2:4", "1:8", "4:5"])
def test_patterns(method: PruneMethod, text: str) -> None:
    pattern = Pattern.parse(text)
    pruned = gone(prune_matrix(WEIGHT, 0, method, inputs(), pattern)).reshape(24, -1, pattern.group)
    assert (pruned.sum(axis=2) == pattern.group - pattern.kept).all()
    assert pruned.mean() == pytest.approx(pattern.sparsity)
    if method == "magnitude":
        groups = np.abs(WEIGHT.numpy()).reshape(24, -1, pattern.group)
        kept = np.sort(groups, axis=2)[:, :, -pattern.kept, None]
        np.testing.assert_array_equal(pruned, groups < kept)


def test_the_better_informed_reconstruct_better() -> None:
    statistics = inputs()
    gram = torch.as_tensor(statistics.gram_II)
    magnitude, wanda, sparsegpt = (
        relative_error(WEIGHT, prune_matrix(WEIGHT, 1920, method, statistics), gram) for method in METHODS
    )
    outputs, pruned = (ROWS @ weight.T for weight in (WEIGHT, prune_matrix(WEIGHT, 1920, "wanda", statistics)))
    assert wanda == pytest.approx(float(((outputs - pruned) ** 2).sum() / (outputs**2).sum()), rel=1e-3)
    assert sparsegpt < 0.8 * wanda
    assert wanda < 0.9 * magnitude


def test_inputs_that_never_came_cost_nothing() -> None:
    rows = ROWS.clone()
    rows[:, 40:80] = 0
    for method in METHODS[1:]:
        pruned = prune_matrix(WEIGHT, 24 * 40, method, inputs(rows))
        assert np.isfinite(pruned.numpy()).all()
        assert relative_error(WEIGHT, pruned, rows.T @ rows) < 0.2


def test_half_precision_stays() -> None:
    pruned = prune_matrix(WEIGHT.bfloat16(), 1000, "sparsegpt", inputs())
    assert pruned.dtype == torch.bfloat16
    assert gone(pruned).sum() == 1000


@pytest.mark.parametrize("text", ["4:2", "0:4", "2", "2:4:8", "2:400", ""])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(BellmError, match="is not KEPT:GROUP"):
        Pattern.parse(text)


def test_rows_that_are_no_groups() -> None:
    with pytest.raises(BellmError, match="q_proj has rows of 30 weights, which are no groups of 4"):
        Pattern(2, 4).check("q_proj", 30)
