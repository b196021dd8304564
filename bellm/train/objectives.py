"""What a batch of examples is, once it is embedded, and what is asked of it.

Each objective here is a choice among the pure functions of `bellm.tensors.losses`; any other function of a batch will
do as well.

Shapes: B anchors, P positives, N negatives, C candidates (positives, then negatives), D width, K candidates of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from bellm.errors import BellmError
from bellm.tensors.losses import contrastive, generation, masking, nested, ranking
from bellm.tensors.losses.cosines import cosine
from bellm.train.examples import Example


@dataclass(frozen=True)
class Embedded:
    """Vectors of a batch of examples, of all processes where there are several."""

    anchors_BD: Tensor
    positives_PD: Tensor
    owners_P: Tensor
    """Which anchor each positive belongs to; an anchor has one or more."""
    negatives_ND: Tensor
    """Hard negatives of all examples."""
    scores_B: Tensor | None = None
    """How alike each anchor and its positive are rated; None for examples without ratings."""


Objective = Callable[[Embedded], Tensor]
"""What training makes small: a scalar. A frozen dataclass says in records what it is."""


@dataclass(frozen=True)
class Contrastive:
    """Every anchor finds its positive among those of the batch and all hard negatives (InfoNCE).

    The objective of supervised SimCSE (arXiv 2104.08821) and of BeLLM (arXiv 2311.05296).
    """

    temperature: float = 0.05
    """Divides the cosines."""
    symmetric: bool = False
    """Whether positives look for their anchors too."""
    guard: float | None = None
    """Leave out candidates that the encoder finds closer than the positive less this (GIST, arXiv 2402.16829)."""
    dims: tuple[int, ...] = ()
    """Mean over vectors cut to so many dimensions (Matryoshka, arXiv 2205.13147); none for whole vectors."""

    def __call__(self, batch: Embedded) -> Tensor:
        """The loss of a batch without ratings."""
        if batch.scores_B is not None:
            raise BellmError("This objective learns from positives, and the data has scores. Use Ranked or Angle.")
        vectors = batch.anchors_BD, batch.positives_PD, batch.negatives_ND
        ignored_BC = None
        if self.guard is not None:
            guides = [each.detach() for each in vectors]
            ignored_BC = masking.false_negatives(*guides, owners_P=batch.owners_P, margin=self.guard)

        def loss(*vectors: Tensor) -> Tensor:
            return contrastive.info_nce(
                *vectors,
                owners_P=batch.owners_P,
                temperature=self.temperature,
                symmetric=self.symmetric,
                ignored_BC=ignored_BC,
            )

        return nested.over_dimensions(loss, self.dims)(*vectors) if self.dims else loss(*vectors)


@dataclass(frozen=True)
class Ranked:
    """Cosines of rated pairs in the order of their ratings (CoSENT)."""

    temperature: float = 0.05

    def __call__(self, batch: Embedded) -> Tensor:
        """The loss of a batch of rated pairs."""
        if batch.scores_B is None:
            raise BellmError("This objective needs pairs with a score. For positives and negatives use Contrastive.")
        return ranking.cosent(batch.anchors_BD, batch.positives_PD, batch.scores_B, temperature=self.temperature)


@dataclass(frozen=True)
class Angle:
    """AnglE's weighted sum (arXiv 2309.12871), for rated pairs and for triplets; weights of its released trainer."""

    cosine: float = 0.0
    in_batch: float = 1.0
    angle: float = 0.02
    temperature: float = 0.05
    form: ranking.AngleForm = "released"

    def __call__(self, batch: Embedded) -> Tensor:
        """The loss of a batch of rated pairs, or of triplets."""
        weights = {"cosine_w": self.cosine, "ibn_w": self.in_batch, "angle_w": self.angle}
        if batch.scores_B is not None:
            return ranking.angle_sum(
                batch.anchors_BD,
                batch.positives_PD,
                batch.scores_B,
                **weights,
                temperature=self.temperature,
                form=self.form,
            )
        if not len(batch.anchors_BD) == len(batch.positives_PD) == len(batch.negatives_ND):
            raise BellmError("AnglE learns from rated pairs or triplets: a positive and a negative for every anchor.")
        return ranking.angle_sum_of_triplets(
            batch.anchors_BD,
            batch.positives_PD,
            batch.negatives_ND,
            **weights,
            cln_w=self.in_batch,
            temperature=self.temperature,
            form=self.form,
        )


@dataclass(frozen=True)
class Written:
    """How likely the causal model finds each row's candidates, its positive first, as answers to its anchor."""

    sum_BK: Tensor
    """Log-probability of the whole answer."""
    mean_BK: Tensor
    """Of one of its tokens, on average."""
    reference_BK: Tensor
    """`sum_BK` of the model without adapters."""


class Generative(Protocol):
    """An objective that also asks how likely the model would write what it is to find."""

    @property
    def prompt(self) -> str:
        """What stands before an answer, with a `{text}` slot for the anchor."""
        ...

    def joint(self, batch: Embedded, written: Written) -> Tensor:
        """The loss of both; rows have one positive and equally many negatives."""
        ...


@dataclass(frozen=True)
class Grl:
    """ULLME's generation-augmented representation learning (arXiv 2408.03402).

    A weighted sum of a contrastive loss, a preference for writing the positive rather than the first negative, and the
    divergence of what is found from what would be written.
    """

    contrastive: Contrastive = Contrastive()
    prompt: str = "{text}\n"
    preference: Literal["dpo", "kto", "sft"] = "dpo"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of the contrastive loss, the preference and the alignment."""
    beta: float = 0.1
    direction: generation.Direction = "paper"
    """Of the divergence: the paper's KL(found || written), or the reverse of the released code."""

    def __call__(self, batch: Embedded) -> Tensor:
        """The contrastive part alone."""
        return self.contrastive(batch)

    def joint(self, batch: Embedded, written: Written) -> Tensor:
        """The weighted sum."""
        parts = self.contrastive(batch), self._preference(written), self._alignment(batch, written)
        return torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()

    def _preference(self, written: Written) -> Tensor:
        if self.preference == "sft":
            return -written.mean_BK[:, 0].mean()
        loss = generation.dpo if self.preference == "dpo" else generation.kto_pair
        policy_BK, reference_BK = written.sum_BK, written.reference_BK
        return loss(policy_BK[:, 0], policy_BK[:, 1], reference_BK[:, 0], reference_BK[:, 1], beta=self.beta)

    def _alignment(self, batch: Embedded, written: Written) -> Tensor:
        rows, width = batch.anchors_BD.shape
        candidates_BKD = torch.cat([batch.positives_PD[:, None], batch.negatives_ND.view(rows, -1, width)], 1)
        found_BK = torch.stack(
            [
                cosine(anchor_D[None], candidates_KD)[0]
                for anchor_D, candidates_KD in zip(batch.anchors_BD, candidates_BKD, strict=True)
            ]
        )
        temperature = self.contrastive.temperature
        return generation.alignment(found_BK, written.mean_BK, temperature=temperature, direction=self.direction)


def embedded(parts: Sequence[tuple[Tensor, Sequence[Example]]]) -> Embedded:
    """Sort vectors by what their texts are.

    Args:
        parts: For each process its vectors, (anchors + positives + negatives, D) in this order, and its examples.
    """
    anchors, positives, negatives = zip(*(_split(*part) for part in parts), strict=True)
    examples = [one for _, own in parts for one in own]
    device = parts[0][0].device
    owners = [number for number, one in enumerate(examples) for _ in one.positives]
    rated = examples[0].score is not None
    scores_B = torch.tensor([one.score for one in examples], device=device) if rated else None
    return Embedded(
        torch.cat(anchors), torch.cat(positives), torch.tensor(owners, device=device), torch.cat(negatives), scores_B
    )


def _split(vectors_TD: Tensor, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    num_positives, num_negatives = (
        sum(len(one.positives) for one in examples),
        sum(len(one.negatives) for one in examples),
    )
    anchors_BD, positives_PD, negatives_ND = torch.split(vectors_TD, [len(examples), num_positives, num_negatives])
    return anchors_BD, positives_PD, negatives_ND
