"""A batch of examples, once it is embedded.

Shapes: B anchors, P positives, N negatives, K candidates of a row, T texts of a process, J layers, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bellm.train.examples import Example


@dataclass(frozen=True)
class EmbeddedBatch:
    """Vectors of a batch of examples, of all processes where there are several.

    Where an objective asks for all layers, each is (rows, J, D): the token embeddings' first, the encoder's own last.
    """

    anchors_BD: Tensor
    positives_PD: Tensor
    owners_P: Tensor
    """Which anchor each positive belongs to; an anchor has one or more."""
    negatives_ND: Tensor
    """Hard negatives of all examples."""
    scores_B: Tensor | None = None
    """How alike each anchor and its positive are rated; None for examples without ratings."""
    examples: Sequence[Example] = ()
    """The texts themselves, in the same order."""

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of anchors, positives and negatives."""
        return self.anchors_BD, self.positives_PD, self.negatives_ND

    @property
    def texts(self) -> tuple[list[str], list[str], list[str]]:
        """Of anchors, positives and negatives."""
        return split_texts(self.examples)


@dataclass(frozen=True)
class ResponseLogProbs:
    """How likely the causal model finds each row's candidates, its positive first, as answers to its anchor."""

    sum_BK: Tensor
    """Log-probability of the whole answer."""
    mean_BK: Tensor
    """Of one of its tokens, on average."""
    reference_BK: Tensor
    """`sum_BK` of the model without adapters."""


def split_texts(examples: Sequence[Example]) -> tuple[list[str], list[str], list[str]]:
    """All anchors, all positives and all negatives."""
    return (
        [one.anchor for one in examples],
        [text for one in examples for text in one.positives],
        [text for one in examples for text in one.negatives],
    )


def make_embedded_batch(parts: Sequence[tuple[Tensor, Sequence[Example]]]) -> EmbeddedBatch:
    """Sort vectors by what their texts are.

    Args:
        parts: For each process its vectors, those of all anchors, then all positives, then all negatives, and its
            examples.
    """
    anchors, positives, negatives = zip(*(_split(*part) for part in parts), strict=True)
    examples = [one for _, own in parts for one in own]
    device = parts[0][0].device
    owners = [number for number, one in enumerate(examples) for _ in one.positives]
    rated = examples[0].score is not None
    scores_B = torch.tensor([one.score for one in examples], device=device) if rated else None
    owners_P = torch.tensor(owners, device=device)
    return EmbeddedBatch(torch.cat(anchors), torch.cat(positives), owners_P, torch.cat(negatives), scores_B, examples)


def _split(vectors_TD: Tensor, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    anchors_BD, positives_PD, negatives_ND = torch.split(vectors_TD, list(map(len, split_texts(examples))))
    return anchors_BD, positives_PD, negatives_ND
