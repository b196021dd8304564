"""Mean and principal axes of the vectors of some texts, by which other vectors are centered or whitened.

Shapes: N texts, D width of a vector.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bellm.types import CenteringName, Vectors

Hashes = NDArray[np.uint64]

_FLOOR = 1e-6
"""Least variance of an axis, by the largest: a direction that the texts hardly have is not blown up to noise."""


@dataclass(frozen=True, eq=False)
class VectorStatistics:
    """What vectors of some texts have in common, and which texts."""

    mean_D: Vectors
    whitening_DD: Vectors | None
    """Principal axes as columns, that of the largest variance first, each divided by its standard deviation; None where
    there are no more texts than a vector has numbers."""
    hashes: Hashes
    """Of the texts, in order."""
    settings: str
    """Digest of the settings that the vectors were made with."""

    @classmethod
    def measure(cls, vectors_ND: Vectors, texts: Iterable[str], settings: str) -> "VectorStatistics":
        """Measure vectors of different texts."""
        mean_D = vectors_ND.mean(0, dtype=np.float64)
        whitening_DD = None
        if len(vectors_ND) > len(mean_D):
            variance_D, axes_DD = np.linalg.eigh(np.cov(vectors_ND.T.astype(np.float64)).reshape(len(mean_D), -1))
            variance_D, axes_DD = variance_D[::-1], axes_DD[:, ::-1]
            # The sign of an axis is arbitrary: its largest part points forward.
            axes_DD = axes_DD * np.sign(axes_DD[np.abs(axes_DD).argmax(0), np.arange(len(mean_D))])
            whitening_DD = (axes_DD / np.sqrt(variance_D.clip(_FLOOR * variance_D[0]))).astype(np.float32)
        return cls(mean_D.astype(np.float32), whitening_DD, np.sort(hash_texts(texts)), settings)

    def apply(self, vectors_ND: Vectors, centering: CenteringName) -> Vectors:
        """Subtract the mean, and for `whitening` turn vectors to the principal axes, each of variance 1."""
        if centering == "none":
            return vectors_ND
        centered_ND = vectors_ND - self.mean_D
        if centering == "mean":
            return centered_ND
        assert self.whitening_DD is not None
        return np.asarray(centered_ND @ self.whitening_DD, dtype=np.float32)

    def num_seen(self, texts: Iterable[str]) -> int:
        """Count the texts that the statistics were measured on."""
        return int(np.isin(hash_texts(texts), self.hashes).sum())

    @cached_property
    def digest(self) -> str:
        """The same for the same numbers."""
        return hashlib.sha256(b"".join(array.tobytes() for array in self.to_arrays().values())).hexdigest()[:16]

    def to_arrays(self) -> dict[str, Any]:
        """All arrays by name, as a file keeps them."""
        whitening = {} if self.whitening_DD is None else {"whitening": self.whitening_DD}
        return {"mean": self.mean_D, **whitening, "texts": self.hashes}


def hash_texts(texts: Iterable[str]) -> Hashes:
    """64 bits of each text: two of a million texts are alike once in 40 million times."""
    digests = (hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
