"""A batch of examples with their vectors, as objectives get it.

Shapes: B anchors, P positives, N negatives, K candidates of a row, T texts of a process, J layers, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bellm.errors import BellmError
from bellm.train.examples import Example


@dataclass(frozen=True)
class ResponseLogProbs:
    """Log-probabilities of each row's candidates, its positive first, as the causal model's responses to its anchor."""

    sum_BK: Tensor
    """Over the tokens of the response."""
    mean_BK: Tensor
    """Per token of the response."""
    reference_BK: Tensor
    """`sum_BK` of the model without adapters; no gradient."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """Vectors of a batch of examples, gathered from all processes.

    Where an objective needs all layers, they are (rows, J, D): token embeddings first, the encoder's own vectors last.
    """

    anchors_BD: Tensor
    positives_PD: Tensor
    owners_P: Tensor
    """Row number of each positive's anchor; an anchor has one or more."""
    negatives_ND: Tensor
    """Hard negatives of all examples."""
    scores_B: Tensor | None = None
    """Similarity score of each anchor and its positive; None for examples without ratings."""
    examples: Sequence[Example] = ()
    responses: ResponseLogProbs | None = None
    """Where the objective needs them."""

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of anchors, positives and negatives."""
        return self.anchors_BD, self.positives_PD, self.negatives_ND

    @property
    def texts(self) -> tuple[list[str], list[str], list[str]]:
        """Of anchors, positives and negatives."""
        return split_texts(self.examples)


def split_texts(examples: Sequence[Example]) -> tuple[list[str], list[str], list[str]]:
    """All anchors, all positives and all negatives."""
    return (
        [example.anchor for example in examples],
        [text for example in examples for text in example.positives],
        [text for example in examples for text in example.negatives],
    )


def make_embedded_batch(
    parts: Sequence[tuple[Tensor, Sequence[Example]]], responses: ResponseLogProbs | None = None
) -> EmbeddedBatch:
    """Split the vectors of each process into those of anchors, positives and negatives, and concatenate over processes.

    `parts` has for each process its vectors (T, D) of all anchors, then all positives, then all negatives, and its
    examples.
    """
    columns = [torch.split(vectors_TD, list(map(len, split_texts(own)))) for vectors_TD, own in parts]
    anchors_BD, positives_PD, negatives_ND = (torch.cat(column) for column in zip(*columns, strict=True))
    examples = [example for _, own in parts for example in own]
    device = anchors_BD.device
    rated = examples[0].score is not None
    scores_B = torch.tensor([example.score for example in examples], device=device) if rated else None
    owners_P = torch.tensor([row for row, example in enumerate(examples) for _ in example.positives], device=device)
    return EmbeddedBatch(anchors_BD, positives_PD, owners_P, negatives_ND, scores_B, examples, responses)


def check_response_rows(examples: Sequence[Example]) -> None:
    """Check that rows have one positive and equally many negatives, at least one."""
    counts = {(len(example.positives), len(example.negatives)) for example in examples}
    if counts != {(1, len(examples[0].negatives) or -1)}:
        raise BellmError(
            "This objective compares what answers an anchor: each row needs one positive and as many "
            "negatives as the others, at least one."
        )
