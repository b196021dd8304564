"""Training objectives: functions of an embedded batch to a scalar, chosen among the losses of `bellm.tensors.losses`.

Any function of an `EmbeddedBatch` to a scalar will do. One that needs more than pooled vectors says so in an attribute
`needs`. Those here are frozen dataclasses, so that a run's config shows their settings.

| Objective       | Inputs                                                | Labels        | Prefer it                 |
|-----------------|-------------------------------------------------------|---------------|---------------------------|
| `InfoNCE`       | (anchor, positives) or (anchor, positives, negatives) | none          | for pairs and triplets    |
| `CoSENT`        | (anchor, positive)                                    | score         | for rated pairs (STS)     |
| `AutoObjective` | those of `InfoNCE` or of `CoSENT`                     | theirs        | for several kinds of data |
| `AnglE`         | (anchor, positive) or (anchor, positive, negative)    | score, none   | where cosines saturate    |
| `Espresso`      | those of `InfoNCE`                                    | none          | to cut depth and width    |
| `Distillation`  | any rows of three or more texts in all                | the teacher's | with a stronger encoder   |
| `GRL`           | (anchor, positive, negatives), equally many           | none          | to embed and generate     |

Shapes: B anchors, C candidates (positives, then negatives), K candidates of a row, D width.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bellm.encoder import Encoder
from bellm.errors import BellmError
from bellm.tensors.losses import contrastive, nested, preferences, ranking
from bellm.tensors.losses.loss_inputs import normalize
from bellm.train.embedded_batch import EmbeddedBatch, ResponseLogProbs
from bellm.types import Embedder

Objective = Callable[[EmbeddedBatch], Tensor]
"""The scalar that training minimizes."""


@dataclass(frozen=True)
class Needs:
    """What a batch must hold for an objective besides its pooled vectors."""

    all_layers: bool = False
    """Vectors of every layer, (rows, J, D), in place of (rows, D)."""
    response_prompt: str | None = None
    """A template with a slot for the anchor: `EmbeddedBatch.responses` then has the log-probability of each candidate
    after it. Rows need one positive and equally many negatives."""


def needs_of(objective: Objective) -> Needs:
    """What an objective declares; a plain function of a batch declares nothing."""
    needs: Needs = getattr(objective, "needs", Needs())
    return needs


class _WithTemperature:
    """An objective that divides cosines by a temperature."""

    temperature: float

    def __post_init__(self) -> None:
        """Check the temperature."""
        if not self.temperature > 0:
            raise BellmError(f"temperature={self.temperature} must be more than 0; 0.05 is usual.")


@dataclass(frozen=True)
class InfoNCE(_WithTemperature):
    """Each anchor picks its positive among all positives and hard negatives of the batch.

    L = mean of -log(e^(cos(a, p)/t) / sum over candidates c of e^(cos(a, c)/t)): supervised SimCSE (arXiv 2104.08821)
    and BeLLM (arXiv 2311.05296). MultipleNegativesRankingLoss of sentence-transformers, whose scale is 1 / t.
    """

    temperature: float = 0.05
    symmetric: bool = False
    """Also pick each positive's anchor among all anchors."""
    guide: str | None = None
    """Leave out candidates that a guide finds as close as the positive (GIST, arXiv 2402.16829): `self`, or an encoder
    that `Encoder.from_pretrained` takes."""
    margin: float = 0.0
    """Cosine by which a candidate may be further than the positive and still be left out."""
    dims: tuple[int, ...] = ()
    """Average the loss over vectors truncated to these widths (Matryoshka, arXiv 2205.13147); none for full vectors."""

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
            ignored_BC=self._false_negatives(batch),
        )

    def _false_negatives(self, batch: EmbeddedBatch) -> Tensor | None:
        if self.guide is None:
            return None
        # Where vectors have layers, the encoder's own is the last.
        own = [vectors.detach() if vectors.dim() == 2 else vectors[:, -1].detach() for vectors in batch.vectors]
        guides = own if self.guide == "self" else [_encode_with(self.guide, texts, own[0]) for texts in batch.texts]
        return contrastive.false_negatives(*guides, owners_P=batch.owners_P, margin=self.margin)


@dataclass(frozen=True)
class CoSENT(_WithTemperature):
    """Pairwise ranking loss that puts the cosines of rated pairs in the order of their scores.

    L = log(1 + sum of e^((cos_i - cos_j)/t) over pairs with score_i < score_j) (Su 2022; doi
    10.1109/TASLP.2024.3402087).
    """

    temperature: float = 0.05

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of a batch of rated pairs."""
        if batch.scores_B is None:
            raise BellmError("This objective needs pairs with a score. For positives and negatives use InfoNCE.")
        return ranking.cosent(batch.anchors_BD, batch.positives_PD, batch.scores_B, temperature=self.temperature)


@dataclass(frozen=True)
class AutoObjective:
    """The usual objective for each batch: `InfoNCE` for positives and negatives, `CoSENT` for rated pairs."""

    contrastive: InfoNCE = field(default_factory=InfoNCE)
    ranked: CoSENT = field(default_factory=CoSENT)

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of any batch."""
        return self.contrastive(batch) if batch.scores_B is None else self.ranked(batch)


@dataclass(frozen=True)
class AnglE(_WithTemperature):
    """Weighted sum of CoSENT, in-batch negatives and a ranking loss of angles in complex space (arXiv 2309.12871).

    L = cosine * `cosent` + in_batch * `in_batch_graded` + angle * `angle`. Of triplets, anchor and positive are a pair
    of label 1, anchor and negative one of label 0, and `in_batch` weighs the mean of `info_nce` without and with the
    negatives. Default weights are angle-emb 0.6.1's. (In 0.3.10 its weights were accepted and ignored, and all were 1,
    among them in BeLLM's published training command.)
    """

    cosine: float = 0.0
    in_batch: float = 1.0
    angle: float = 0.02
    temperature: float = 0.05
    form: ranking.AngleForm = "released"
    """The angle term of the authors' code or of their paper; see `ranking.angle`."""

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of a batch of rated pairs, or of triplets."""
        left_BD, right_BD, labels_B = batch.anchors_BD, batch.positives_PD, batch.scores_B
        if labels_B is not None:
            in_batch = contrastive.in_batch_graded(left_BD, right_BD, labels_B, self.temperature)
        elif not len(left_BD) == len(right_BD) == len(batch.negatives_ND):
            raise BellmError("AnglE learns from rated pairs or triplets: a positive and a negative for every anchor.")
        else:
            candidates = (right_BD,), (right_BD, batch.negatives_ND)
            losses = [contrastive.info_nce(left_BD, *columns, temperature=self.temperature) for columns in candidates]
            in_batch = torch.stack(losses).mean()
            labels_B = torch.arange(2 * len(left_BD), device=left_BD.device) < len(left_BD)
            left_BD, right_BD = left_BD.repeat(2, 1), torch.cat([right_BD, batch.negatives_ND])
        cosines = ranking.cosent(left_BD, right_BD, labels_B, self.temperature)
        angles = ranking.angle(left_BD, right_BD, labels_B, temperature=self.temperature, form=self.form)
        return self.cosine * cosines + self.in_batch * in_batch + self.angle * angles


@dataclass(frozen=True)
class Espresso(_WithTemperature):
    """`InfoNCE` on every layer and on truncated vectors: Espresso, formerly 2DMSE (arXiv 2402.14776).

    The formula is that of `nested.espresso`.
    """

    contrastive: InfoNCE = field(default_factory=InfoNCE)
    dims: int = 128
    """Width of the truncated vectors."""
    temperature: float = 1.0
    """Of the divergence between truncated vectors and the principal components of full ones."""

    needs: ClassVar[Needs] = Needs(all_layers=True)

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The loss of a batch without ratings."""
        loss = nested.espresso(self.contrastive.loss(batch), self.dims, temperature=self.temperature)
        return loss(*(vectors.transpose(0, 1) for vectors in batch.vectors))


@dataclass(frozen=True)
class Distillation(_WithTemperature):
    """KL divergence from a teacher's in-batch similarities, softmax over the other texts (SEED, arXiv 2101.04731)."""

    teacher: str | Embedder
    """An encoder that `Encoder.from_pretrained` takes, or any embedder: a file of vectors costs no forward pass."""
    temperature: float = 0.05

    def __repr__(self) -> str:
        """As a run's config has it: of an embedder a digest of its vectors, by which another one is refused."""
        teacher = self.teacher
        if not isinstance(teacher, str):
            vectors = np.round(teacher.fingerprint(), 2)
            teacher = f"{type(teacher).__name__} {hashlib.sha256(vectors.tobytes()).hexdigest()[:16]}"
        return f"Distillation(teacher={teacher!r}, temperature={self.temperature!r})"

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The divergence of the cosines among all texts of the batch."""
        own_TD = torch.cat(batch.vectors)
        if len(own_TD) < 3:  # The last batch of an epoch may be as small, and has no similarities to compare.
            return 0 * own_TD.sum()
        teacher_TD = torch.cat([_encode_with(self.teacher, texts, own_TD) for texts in batch.texts if texts])
        return contrastive.similarity_kl(own_TD, teacher_TD, temperature=self.temperature)


@dataclass(frozen=True)
class GRL:
    """ULLME's generation-augmented representation learning (arXiv 2408.03402).

    L = w1 `InfoNCE` + w2 preference of generating the positive over the first negative + w3 KL(retrieval || generation)
    over a row's candidates. The same weights with all layers causal generate.
    """

    contrastive: InfoNCE = field(default_factory=InfoNCE)
    prompt: str = "{text}\n"
    """What stands before a response, with a slot for the anchor."""
    preference: Literal["dpo", "kto", "sft"] = "dpo"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of the contrastive loss, the preference and the divergence."""
    beta: float = 0.1
    """Scale of the log-ratios to the reference model."""
    direction: preferences.Direction = "paper"
    """Of the divergence: the paper's KL(retrieval || generation), or the reverse of the released code."""

    @property
    def needs(self) -> Needs:
        """Log-probabilities of the candidates as responses to the anchor."""
        return Needs(response_prompt=self.prompt)

    def __call__(self, batch: EmbeddedBatch) -> Tensor:
        """The weighted sum."""
        contrastive_loss = self.contrastive(batch)
        assert batch.responses is not None, "a batch for GRL has what it needs"
        parts = contrastive_loss, self._preference(batch.responses), self._divergence(batch, batch.responses)
        return torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()

    def _preference(self, responses: ResponseLogProbs) -> Tensor:
        if self.preference == "sft":
            return -responses.mean_BK[:, 0].mean()
        loss = preferences.dpo if self.preference == "dpo" else preferences.kto_pair
        return loss(responses.sum_BK[:, :2], responses.reference_BK[:, :2], self.beta)

    def _divergence(self, batch: EmbeddedBatch, responses: ResponseLogProbs) -> Tensor:
        rows, width = batch.anchors_BD.shape
        candidates_BKD = torch.cat([batch.positives_PD[:, None], batch.negatives_ND.view(rows, -1, width)], 1)
        cosines_BK = torch.einsum("bd,bkd->bk", normalize(batch.anchors_BD), normalize(candidates_BKD))
        kl = preferences.retrieval_generation_kl
        return kl(cosines_BK, responses.mean_BK, temperature=self.contrastive.temperature, direction=self.direction)


def _encode_with(embedder: str | Embedder, texts: list[str], like: Tensor) -> Tensor:
    """Another encoder's vectors of the texts, on the device of `like`."""
    embedder = _load_encoder(embedder) if isinstance(embedder, str) else embedder
    # Without an encoder's progress bar, which every step would show.
    options: dict[str, Any] = {"progress": False} if isinstance(embedder, Encoder) else {}
    return torch.from_numpy(embedder.encode(texts, **options)).to(like.device)


@functools.cache
def _load_encoder(source: str) -> Encoder:
    return Encoder.from_pretrained(source)
