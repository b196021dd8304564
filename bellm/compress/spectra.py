"""Heavy tails in the spectra of weight matrices: PL_Alpha_Hill, by which AlphaPruning (arXiv 2410.10912) prunes.

Shapes: O outputs, I inputs, N eigenvalues.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers
from bellm.backbone.weight_matrices import find_matrices
from bellm.errors import BellmError, check_choice

TailName = Literal["peak", "mid"]
"""Where the tail begins: at the peak of the spectrum's histogram (the paper's fixed finger), or in its middle."""

_BINS = 100
_FINGER = (0.95, 1.5)
"""Tails that begin between these multiples of the peak are tried.

The authors' code, like weightwatcher's, compares eigenvalues with log10(0.95 * peak): as good as no lower bound.
"""


@dataclass(frozen=True)
class MatrixSpectrum:
    """Exponents of the spectrum of one weight matrix; the lower, the heavier its tail, and the better it is trained."""

    layer: int
    name: str
    shape: tuple[int, int]
    peak: float
    mid: float


def hill_alpha(eigenvalues_N: NDArray[np.float64], tail: TailName = "peak") -> float:
    """Hill's estimate of the exponent of a power law p(x) ~ x^-alpha in the tail of a spectrum.

    1 + k / sum(ln(x_i / x_min)) over the k eigenvalues x_i from x_min on, as the authors' code and weightwatcher have
    it; the paper does not count x_min itself. The scale of the spectrum does not matter.

    Args:
        eigenvalues_N: Eigenvalues of W^T W, in any order; those that are zero but for rounding do not count.
        tail: `mid` takes the upper half. `peak` begins near the peak of the histogram of log10(x), where the
            Kolmogorov-Smirnov distance between spectrum and power law is least.

    Raises:
        BellmError: There are not two different eigenvalues.
    """
    check_choice("tail", tail, TailName)
    values_N = np.sort(eigenvalues_N)
    values_N = values_N[values_N > max(values_N.max(initial=0), 0) * 1e-12]
    if len(values_N) < 2 or values_N[0] == values_N[-1]:
        raise BellmError("A spectrum without two different eigenvalues has no tail: its matrix is zero or orthogonal.")
    logs_N = np.log(values_N)
    counts_N = np.arange(len(values_N), 0, -1)  # Of the tail from each on.
    sums_N = np.cumsum(logs_N[::-1])[::-1] - counts_N * logs_N
    with np.errstate(divide="ignore"):
        alphas_N = 1 + counts_N / sums_N.clip(min=0)
    middle = len(values_N) // 2
    if tail == "mid":
        return float(alphas_N[middle])
    counts, edges = np.histogram(np.log10(values_N), _BINS)
    peak = 10 ** edges[counts.argmax()]
    starts = [
        start
        for start in np.flatnonzero((values_N >= _FINGER[0] * peak) & (values_N <= _FINGER[1] * peak))
        if np.isfinite(alphas_N[start])
    ]
    best = min(starts, key=lambda start: _distance(values_N[start:], alphas_N[start]), default=middle)
    return float(alphas_N[best])


def eigenvalues(weight_OI: Tensor) -> NDArray[np.float64]:
    """Eigenvalues of W^T W that need not be zero, ascending, (min(O, I),); those of W W^T are the same."""
    wide = weight_OI.detach().double()
    wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
    values: NDArray[np.float64] = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).cpu().numpy()
    return values


def measure_spectra(
    model: PreTrainedModel, progress: Callable[[str, int, int], None] = lambda *_: None
) -> tuple[MatrixSpectrum, ...]:
    """Exponents of every weight matrix in the decoder layers of a model, layer after layer.

    Raises:
        LayerError: Weights are fused or quantized.
        BellmError: A matrix is zero.
    """
    layers = get_layers(model)
    matrices = find_matrices(model)
    found = []
    for layer in layers:
        progress("spectra", layer.index, len(layers))
        for matrix in matrices[layer.index]:
            values_N = eigenvalues(matrix.weight_OI)
            try:
                peak, mid = (hill_alpha(values_N, tail) for tail in get_args(TailName))
            except BellmError as error:
                raise BellmError(f"{matrix.name} of layer {layer.index}: {error}") from error
            rows, columns = matrix.weight_OI.shape
            found.append(MatrixSpectrum(layer.index, matrix.name, (rows, columns), peak, mid))
    return tuple(found)


def layer_alphas(spectra: Sequence[MatrixSpectrum], tail: TailName = "peak") -> list[float]:
    """Mean exponent of each layer's matrices, first layer to last."""
    layers = dict.fromkeys(spectrum.layer for spectrum in spectra)
    return [float(np.mean([getattr(each, tail) for each in spectra if each.layer == layer])) for layer in layers]


def _distance(tail_K: NDArray[np.float64], alpha: float) -> float:
    """Kolmogorov-Smirnov distance of a tail, ascending from its x_min, from a power law with that exponent."""
    below_K = np.arange(len(tail_K)) / len(tail_K)
    return float(np.abs(1 - (tail_K / tail_K[0]) ** (1 - alpha) - below_K).max())
