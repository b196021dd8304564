"""The grid of smaller encoders that `compress` tries: variants of the weights, and forms of their vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast, get_args

import numpy as np

from bellm.backbone.quantized_modules import Bits
from bellm.backbone.weight_matrices import check_not_quantized, find_matrices
from bellm.compress.allocation import check_sparsity
from bellm.compress.centering import center
from bellm.compress.layer_dropping import check_num_dropped, drop_layers
from bellm.compress.pruning import prune
from bellm.compress.quantization import quantize
from bellm.encoder import Encoder
from bellm.errors import BellmError, LayerError
from bellm.types import Vectors

Recover = Callable[[Encoder, int], Encoder]
"""Trains an encoder with fewer layers for so many steps."""


@dataclass(frozen=True)
class WeightsVariant:
    """What is done to the weights of an encoder, in this order."""

    dropped: int = 0
    """Layers, from the top."""
    recovery: int = 0
    """Steps of training after that."""
    sparsity: float = 0.0
    """Share of the weights that Wanda takes."""
    bits: int | None = None
    """Of a weight; None as it is."""

    @property
    def name(self) -> str:
        """In words, as rows are called."""
        parts = [f"{self.dropped} layers dropped"] if self.dropped else []
        parts += [f"{self.recovery} steps of recovery"] if self.recovery else []
        parts += [f"{self.sparsity:.0%} zeros"] if self.sparsity else []
        parts += [f"{self.bits} bits"] if self.bits else []
        return ", ".join(parts) or "weights as they are"

    @property
    def key(self) -> str:
        """A file name."""
        recovery = f"-recovery{self.recovery}" if self.recovery else ""
        return f"drop{self.dropped}{recovery}-sparsity{round(1000 * self.sparsity)}-bits{self.bits or 0}"

    def make(self, encoder: Encoder, texts: Sequence[str], recover: Recover) -> Encoder:
        """The encoder with all of it done; the given one stays as it is."""
        if self.dropped:
            encoder = drop_layers(encoder, self.dropped)
        if self.recovery:
            encoder = recover(encoder, self.recovery)
        if self.sparsity:
            encoder = prune(encoder, self.sparsity, method="wanda" if texts else "magnitude", texts=texts)
        return quantize(encoder, cast(Bits, self.bits)) if self.bits else encoder


@dataclass(frozen=True)
class VectorForm:
    """What is done to vectors, in this order; `binary` keeps the sign of each number."""

    centered: bool = False
    dim: int | None = None
    binary: bool = False

    @property
    def name(self) -> str:
        """In words; empty for vectors as they are."""
        parts = ["centered"] if self.centered else []
        parts += [f"{self.dim} numbers"] if self.dim else []
        return ", ".join([*parts, "binary"] if self.binary else parts)

    def apply(self, vectors_ND: Vectors, mean_D: Vectors | None) -> Vectors:
        """Vectors in this form."""
        if self.centered:
            assert mean_D is not None
            vectors_ND = vectors_ND - mean_D
        vectors_ND = vectors_ND[:, : self.dim]
        return np.where(vectors_ND > 0, np.float32(1), np.float32(-1)) if self.binary else vectors_ND

    def num_bytes(self, width: int) -> int:
        """Of a vector."""
        dim = self.dim or width
        return -(-dim // 8) if self.binary else 4 * dim

    def finish(self, encoder: Encoder, texts: Sequence[str]) -> Encoder:
        """An encoder of vectors in this form, which binary ones become when they are kept."""
        encoder = encoder.replace(truncate_dim=self.dim) if self.dim else encoder
        return center(encoder, texts) if self.centered else encoder


@dataclass(frozen=True)
class Grid:
    """The values of each dimension that are tried besides doing nothing."""

    dropped: tuple[int, ...]
    sparsity: tuple[float, ...]
    bits: tuple[int, ...]
    dims: tuple[int, ...]
    centered: bool
    recovery: int = 0
    """Steps of training after layers were dropped, which is tried besides not training; 0 trains nothing."""

    def check(self, encoder: Encoder) -> None:
        """Raise a BellmError where a value does not suit an encoder, before the first of them is measured."""
        layers, width = encoder.num_layers, encoder.embedding_dim
        for number in self.dropped:
            check_num_dropped(number, layers)
        for share in self.sparsity:
            check_sparsity(share)
        if wrong := [bits for bits in self.bits if bits not in get_args(Bits)]:
            raise BellmError(f"Weights cannot have {wrong[0]} bits: give 8 or 4.")
        if wrong := [dim for dim in self.dims if not 0 < dim <= width]:
            raise BellmError(f"Vectors cannot be cut to {wrong[0]} numbers: they have {width}.")
        if self.dropped:
            check_not_quantized(encoder.model)
        if self.sparsity or self.bits:
            try:
                find_matrices(encoder.model)
            except LayerError as error:
                raise LayerError(f"{error} Or leave sparsity and bits out (--sparsity '' --bits '').") from error

    def weights(self) -> list[WeightsVariant]:
        """All variants of the weights, the untouched first."""
        depths = [(0, 0), *product(self.dropped, (0, self.recovery) if self.recovery else (0,))]
        others = list(product((0.0, *self.sparsity), (None, *self.bits)))
        return list(dict.fromkeys(WeightsVariant(*depth, *other) for depth in depths for other in others))

    def forms(self) -> list[VectorForm]:
        """All forms of vectors, the untouched first."""
        centered = (False, True) if self.centered else (False,)
        return list(dict.fromkeys(VectorForm(*each) for each in product(centered, (None, *self.dims), (False, True))))


def default_grid(num_layers: int, width: int, *, with_texts: bool, quick: bool) -> Grid:
    """A tenth to a half of the layers dropped, 8 and 4 bits, half to a ninth of the numbers.

    Zeros are tried where texts can say which weights go, vectors are centered by the same texts. `quick` tries the
    fewest of each.
    """
    shares = (0.2,) if quick else (0.1, 0.2, 0.3, 0.5)
    dropped = tuple(sorted({round(share * num_layers) for share in shares} - {0, num_layers}))
    sparsity = (0.5,) if with_texts and not quick else ()
    dims = tuple(dict.fromkeys(max(1, width // part) for part in ((4,) if quick else (2, 4, 9)) if width > part))
    return Grid(dropped, sparsity, (8,) if quick else (8, 4), dims, with_texts)
