"""Exponents of spectra against planted ones."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from bellm import BellmError
from bellm.compress import hill_alpha, layer_alphas, measure_spectra
from bellm.compress.spectra import eigenvalues
from tests.decoders import decoder


def planted(exponent: float, rows: int, columns: int) -> Tensor:
    """A matrix whose squared singular values are quantiles of p(x) ~ x^-exponent."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=torch.float64))[0]
        for size in (rows, columns)
    )
    quantiles = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    return (left * quantiles ** (-0.5 / (exponent - 1))) @ right.T


@pytest.mark.parametrize("exponent", [2, 3, 4, 6])
def test_planted_exponents_are_recovered(exponent: int) -> None:
    values = eigenvalues(planted(exponent, 256, 320))
    assert hill_alpha(values, "mid") == pytest.approx(exponent, rel=0.02)
    assert hill_alpha(values, "peak") == pytest.approx(exponent, rel=0.06)


def test_neither_scale_nor_transpose_matters() -> None:
    matrix = torch.randn(48, 80, generator=torch.Generator().manual_seed(1))
    wanted = [hill_alpha(eigenvalues(matrix), tail) for tail in ("peak", "mid")]
    for other in (matrix.T, matrix * 1e-4, matrix * 1e4):
        assert [hill_alpha(eigenvalues(other), tail) for tail in ("peak", "mid")] == pytest.approx(wanted)


def test_hills_formula_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0, 5.0, 8.0, 13.0])
    assert hill_alpha(values, "mid") == pytest.approx(1 + 3 / sum(np.log(x / 5) for x in (5, 8, 13)))
    zeros = np.zeros(5)
    assert hill_alpha(np.concatenate([values, zeros]), "mid") == hill_alpha(values, "mid")


def by_their_code(values: np.ndarray, lowest: float, highest: float) -> float:
    """The loop of AlphaPruning, from the lowest x_min to the highest."""
    values, best = np.sort(values), (np.inf, 0.0)
    for index, start in enumerate(values[:-1]):
        if lowest <= start <= highest:
            tail = values[index:]
            alpha = 1 + len(tail) / np.log(tail / start).sum()
            distance = np.abs(1 - (tail / start) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()
            best = min(best, (distance, alpha))
    return best[1]


NOISE = eigenvalues(torch.randn(90, 300, generator=torch.Generator().manual_seed(3)))
LAW = (np.arange(1, 900) / 900) ** -1.0
BUMP = np.concatenate([LAW[(LAW < 48) | (LAW > 80)], np.linspace(49, 51, 120)])
"""A power law from 1 on, with a gap, and in it the peak of the histogram."""


@pytest.mark.parametrize(("values", "scale"), [(NOISE, 0.3), (NOISE, 1e4), (BUMP, 1.0), (BUMP, 1e-3)])
def test_the_best_tail_near_the_peak_is_theirs(values: np.ndarray, scale: float) -> None:
    """Their code, but that the lowest x_min is 0.95 of the peak, and not the logarithm of that."""
    values = scale * values
    counts, edges = np.histogram(np.log10(values), 100)
    peak = 10 ** edges[counts.argmax()]
    assert hill_alpha(values) == pytest.approx(by_their_code(values, 0.95 * peak, 1.5 * peak))
    if values is not NOISE and scale == 1:
        assert hill_alpha(values) > 1.1 * by_their_code(values, np.log10(0.95 * peak), 1.5 * peak)


def test_weightwatcher_agrees_where_its_bound_does_no_harm() -> None:
    weightwatcher = pytest.importorskip("weightwatcher")
    for exponent in (2, 3, 4, 6):
        values = eigenvalues(planted(exponent, 256, 320))
        fit = weightwatcher.WeightWatcher().fit_powerlaw(
            values, plot=False, fix_fingers="xmin_peak", pl_package="powerlaw"
        )
        assert hill_alpha(values) == pytest.approx(fit[0], rel=1e-3)


@pytest.mark.parametrize("values", [np.zeros(4), np.ones(4), np.array([])], ids=str)
def test_a_spectrum_without_a_tail_is_one_line(values: np.ndarray) -> None:
    with pytest.raises(BellmError, match="has no tail"):
        hill_alpha(values)


def test_every_matrix_of_a_model_is_measured(tiny_model: LlamaForCausalLM) -> None:
    spectra = measure_spectra(tiny_model)
    assert [spectrum.layer for spectrum in spectra] == [layer for layer in range(4) for _ in range(7)]
    first = tiny_model.model.layers[0].self_attn.q_proj.weight
    assert (spectra[0].name, spectra[0].shape) == ("self_attn.q_proj", (32, 32))
    singular = np.linalg.svd(first.detach().double().numpy(), compute_uv=False)
    assert spectra[0].mid == pytest.approx(hill_alpha(singular**2, "mid"))
    wanted = [np.mean([spectrum.mid for spectrum in spectra[start : start + 7]]) for start in range(0, 28, 7)]
    assert layer_alphas(spectra, "mid") == pytest.approx(wanted)


def test_gpt2_holds_its_matrices_the_other_way_round() -> None:
    shapes = {spectrum.name: spectrum.shape for spectrum in measure_spectra(decoder("gpt2"))}
    assert shapes["attn.c_attn"] == (96, 32)


def test_fused_experts_are_one_line() -> None:
    with pytest.raises(BellmError, match="all experts in one fused tensor"):
        measure_spectra(decoder("mixtral"))
