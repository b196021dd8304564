"""What is asked of the vectors of a batch.

Each objective is a choice among the pure functions of `bellm.tensors.losses`; any other function of an `Embedded` batch
to a scalar will do as well. They are frozen dataclasses, because a record of training shows how they were made.

Shapes: B anchors, C candidates (positives, then negatives), K candidates of a row, D width.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bellm.encoder import Encoder
from bellm.errors import BellmError
from bellm.tensors.losses import contrastive, distillation, masking, nested, preferences, ranking
from bellm.tensors.losses.cosines import normalize
from bellm.train.embedded_batch import EmbeddedBatch, ResponseLogProbs

Objective = Callable[[EmbeddedBatch], Tensor]
"""What training makes small: a scalar."""


@dataclass(frozen=True)
class InfoNCE:
    """Every anchor finds its positive among those of the batch and all hard negatives (InfoNCE).

    The objective of supervised SimCSE (arXiv 2104.08821) and of BeLLM (arXiv 2311.05296).
    """

    temperature: float = 0.05
    """Divides the cosines."""
    symmetric: bool = False
    """Whether positives look for their anchors too."""
    guide: str | None = None
    """Leave out candidates that a guide finds as close as the positive (GIST, arXiv 2402.16829): `self`, or an encoder
    that `Encoder.from_pretrained` takes."""
    margin: float = 0.0
    """Cosine by which a candidate may be further than the positive and still be left out."""
    dims: tuple[int, ...] = ()
    """Mean over vectors cut to so many dimensions (Matryoshka, arXiv 2205.13147); none for whole vectors."""

    def __post_init__(self) -> None:
        """Refuse what divides by nothing."""
        _refuse_cold(self.temperature)

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of a batch without ratings."""
        loss = self.loss(batch)
        return (nested.over_dimensions(loss, self.dims) if self.dims else loss)(*batch.vectors)

    def loss(self, batch: EmbeddedBatch) -> Callable[..., Tensor]:
        """The loss as a function of anchors, positives and negatives."""
        if batch.scores_B is not None:
            raise BellmError("This objective learns from positives, and the data has scores. Use CoSENT or AnglE.")
        return functools.partial(
            contrastive.info_nce,
            owners_P=batch.owners_P,
            temperature=self.temperature,
            symmetric=self.symmetric,
            ignored_BC=self._ignored(batch),
        )

    def _ignored(self, batch: EmbeddedBatch) -> Tensor | None:
        if self.guide is None:
            return None
        own = [each.detach() if each.dim() == 2 else each[:, -1].detach() for each in batch.vectors]
        guides = own if self.guide == "self" else [_seen_by(self.guide, texts, own[0]) for texts in batch.texts]
        return masking.false_negatives(*guides, owners_P=batch.owners_P, margin=self.margin)


@dataclass(frozen=True)
class CoSENT:
    """Cosines of rated pairs in the order of their ratings (CoSENT)."""

    temperature: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what divides by nothing."""
        _refuse_cold(self.temperature)

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of a batch of rated pairs."""
        if batch.scores_B is None:
            raise BellmError("This objective needs pairs with a score. For positives and negatives use InfoNCE.")
        return ranking.cosent(batch.anchors_BD, batch.positives_PD, batch.scores_B, temperature=self.temperature)


@dataclass(frozen=True)
class AutoObjective:
    """What is usual for a batch: `InfoNCE` for positives and negatives, `CoSENT` for ratings."""

    contrastive: InfoNCE = field(default_factory=InfoNCE)
    ranked: CoSENT = field(default_factory=CoSENT)

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of any batch."""
        return self.contrastive(batch) if batch.scores_B is None else self.ranked(batch)


@dataclass(frozen=True)
class AnglE:
    """AnglE's weighted sum (arXiv 2309.12871), for rated pairs and for triplets; weights of its released trainer."""

    cosine: float = 0.0
    in_batch: float = 1.0
    angle: float = 0.02
    temperature: float = 0.05
    form: ranking.AngleForm = "released"

    def __post_init__(self) -> None:
        """Refuse what divides by nothing."""
        _refuse_cold(self.temperature)

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of a batch of rated pairs, or of triplets."""
        options: dict[str, Any] = {"temperature": self.temperature, "form": self.form}
        options |= {"cosine_w": self.cosine, "ibn_w": self.in_batch, "angle_w": self.angle}
        if batch.scores_B is not None:
            return ranking.angle_sum(batch.anchors_BD, batch.positives_PD, batch.scores_B, **options)
        if not len(batch.anchors_BD) == len(batch.positives_PD) == len(batch.negatives_ND):
            raise BellmError("AnglE learns from rated pairs or triplets: a positive and a negative for every anchor.")
        return ranking.angle_sum_of_triplets(*batch.vectors, **options, cln_w=self.in_batch)


@dataclass(frozen=True)
class Espresso:
    """A contrastive loss on every layer, and on vectors cut short: Espresso, once 2DMSE (arXiv 2402.14776)."""

    contrastive: InfoNCE = field(default_factory=InfoNCE)
    dims: int = 128
    """Dimensions that are to do without the rest."""
    temperature: float = 1.0
    """Of the alignment of short vectors with the principal components of whole ones."""

    all_layers: ClassVar[bool] = True

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of a batch without ratings."""
        loss = nested.espresso(self.contrastive.loss(batch), self.dims, temperature=self.temperature)
        return loss(*(each.transpose(0, 1) for each in batch.vectors))


@dataclass(frozen=True)
class Distillation:
    """Texts stand to each other as they do to a teacher; a teacher's vectors may have another width."""

    teacher: str
    """An encoder that `Encoder.from_pretrained` takes."""
    temperature: float = 0.05

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The divergence of the cosines among all texts of the batch."""
        own_TD = torch.cat(batch.vectors)
        teacher_TD = torch.cat([_seen_by(self.teacher, texts, own_TD) for texts in batch.texts if texts])
        return distillation.similarity_kl(own_TD, teacher_TD, temperature=self.temperature)


@dataclass(frozen=True)
class GRL:
    """ULLME's generation-augmented representation learning (arXiv 2408.03402).

    A weighted sum of a contrastive loss, a preference for writing the positive rather than the first negative, and the
    divergence of what is found from what would be written. Rows have one positive and equally many negatives.
    """

    contrastive: InfoNCE = field(default_factory=InfoNCE)
    prompt: str = "{text}\n"
    """What stands before an answer, with a slot for the anchor."""
    preference: Literal["dpo", "kto", "sft"] = "dpo"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of the contrastive loss, the preference and the divergence."""
    beta: float = 0.1
    """How much a gain on the reference counts."""
    direction: preferences.Direction = "paper"
    """Of the divergence: the paper's KL(found || written), or the reverse of the released code."""

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The contrastive part alone."""
        return self.contrastive(batch)

    def joint(self, batch: EmbeddedBatch, written: ResponseLogProbs) -> Tensor:
        """The weighted sum."""
        parts = self.contrastive(batch), self._preference(written), self._divergence(batch, written)
        return torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()

    def _preference(self, written: ResponseLogProbs) -> Tensor:
        if self.preference == "sft":
            return -written.mean_BK[:, 0].mean()
        loss = preferences.dpo if self.preference == "dpo" else preferences.kto_pair
        policy_BK, reference_BK = written.sum_BK, written.reference_BK
        return loss(policy_BK[:, 0], policy_BK[:, 1], reference_BK[:, 0], reference_BK[:, 1], beta=self.beta)

    def _divergence(self, batch: EmbeddedBatch, written: ResponseLogProbs) -> Tensor:
        rows, width = batch.anchors_BD.shape
        candidates_BKD = torch.cat([batch.positives_PD[:, None], batch.negatives_ND.view(rows, -1, width)], 1)
        found_BK = torch.einsum("bd,bkd->bk", normalize(batch.anchors_BD), normalize(candidates_BKD))
        temperature = self.contrastive.temperature
        return preferences.retrieval_generation_kl(
            found_BK, written.mean_BK, temperature=temperature, direction=self.direction
        )


def _refuse_cold(temperature: float) -> None:
    if not temperature > 0:
        raise BellmError(f"temperature={temperature} must be more than 0; 0.05 is usual.")


def _seen_by(source: str, texts: list[str], like: Tensor) -> Tensor:
    """Another encoder's vectors."""
    return torch.from_numpy(_loaded(source).encode(texts, progress=False)).to(like.device)


@functools.cache
def _loaded(source: str) -> Encoder:
    return Encoder.from_pretrained(source)
