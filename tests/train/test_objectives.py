"""Objectives against the pure losses that they stand for."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.architecture import get_layers
from bellm.errors import BellmError
from bellm.tensors.losses import contrastive, nested, preferences, ranking
from bellm.train.embedded_batch import EmbeddedBatch, ResponseLogProbs, make_embedded_batch
from bellm.train.examples import Example
from bellm.train.objectives import (
    GRL,
    AnglE,
    AutoObjective,
    CoSENT,
    Distillation,
    Espresso,
    InfoNCE,
    Needs,
    Objective,
    needs_of,
)
from bellm.train.train_step import TrainStep

TRIPLETS = [
    Example("A heron waits for a fish.", ("A bird stands still in the water.",), ("A heron flies away.",)),
    Example("The shop is closed.", ("You cannot buy anything there now.",), ("The shop is full of people.",)),
    Example("Two men carry a piano.", ("A heavy instrument is moved.",), ("Two men play chess.",)),
]
RATED = [Example(one.anchor, one.positives, score=score) for one, score in zip(TRIPLETS, (5.0, 1.0, 3.0), strict=True)]


def vectors(rows: int, *rest: int) -> Tensor:
    return torch.randn(rows, *rest, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


@pytest.fixture
def batch() -> EmbeddedBatch:
    return make_embedded_batch([(vectors(9, 16), TRIPLETS)])


@pytest.fixture
def rated() -> EmbeddedBatch:
    return make_embedded_batch([(vectors(6, 16), RATED)])


def test_vectors_are_sorted_by_what_their_texts_are() -> None:
    several = [Example("a", ("b", "c"), ("d",)), Example("e", ("f",))]
    rows = vectors(6, 4)
    found = make_embedded_batch([(rows, several)])
    torch.testing.assert_close(found.anchors_BD, rows[:2])
    torch.testing.assert_close(found.positives_PD, rows[2:5])
    torch.testing.assert_close(found.negatives_ND, rows[5:])
    assert found.owners_P.tolist() == [0, 0, 1]
    assert found.texts == (["a", "e"], ["b", "c", "f"], ["d"])
    assert found.scores_B is None


def test_the_parts_of_processes_make_one_batch(batch: EmbeddedBatch) -> None:
    rows = vectors(9, 16)
    parts = [(rows[[0, 1, 3, 4, 6, 7]], TRIPLETS[:2]), (rows[[2, 5, 8]], TRIPLETS[2:])]
    found = make_embedded_batch(parts)
    for one, other in zip(found.vectors, batch.vectors, strict=True):
        torch.testing.assert_close(one, other)
    assert found.owners_P.tolist() == [0, 1, 2]


@pytest.mark.parametrize("symmetric", [False, True])
def test_contrastive_is_info_nce(batch: EmbeddedBatch, symmetric: bool) -> None:
    wanted = contrastive.info_nce(*batch.vectors, temperature=0.1, symmetric=symmetric)
    torch.testing.assert_close(InfoNCE(0.1, symmetric=symmetric)(batch), wanted)


def test_contrastive_over_cut_vectors(batch: EmbeddedBatch) -> None:
    wanted = nested.over_dimensions(contrastive.info_nce, [4, 16])(*batch.vectors)
    torch.testing.assert_close(InfoNCE(dims=(4, 16))(batch), wanted)


def test_an_encoder_guides_itself(batch: EmbeddedBatch) -> None:
    ignored_BC = contrastive.false_negatives(*batch.vectors, margin=0.1)
    assert ignored_BC.any()
    wanted = contrastive.info_nce(*batch.vectors, ignored_BC=ignored_BC)
    torch.testing.assert_close(InfoNCE(guide="self", margin=0.1)(batch), wanted)
    assert not torch.isclose(wanted, InfoNCE()(batch))


def test_another_encoder_guides_and_teaches(batch: EmbeddedBatch, tiny_encoder: Encoder, tiny_folder: Path) -> None:
    seen = [torch.from_numpy(tiny_encoder.encode(texts)) for texts in batch.texts]
    ignored_BC = contrastive.false_negatives(*seen, margin=0.5)
    assert ignored_BC.any()
    wanted = contrastive.info_nce(*batch.vectors, ignored_BC=ignored_BC)
    torch.testing.assert_close(InfoNCE(guide=str(tiny_folder), margin=0.5)(batch), wanted)
    taught = contrastive.similarity_kl(torch.cat(batch.vectors), torch.cat(seen))
    torch.testing.assert_close(Distillation(str(tiny_folder))(batch), taught, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(Distillation(tiny_encoder)(batch), taught, rtol=1e-5, atol=1e-6)


def test_a_teacher_in_memory_is_known_by_its_vectors(tiny_encoder: Encoder) -> None:
    """In a run's config, by which a run with another teacher is refused."""
    other = tiny_encoder.replace(bidirectional="none")
    assert repr(Distillation(tiny_encoder)) == repr(Distillation(tiny_encoder.replace())) != repr(Distillation(other))
    assert repr(Distillation("heron", 0.1)) == "Distillation(teacher='heron', temperature=0.1)"


def test_a_last_batch_too_small_to_compare_teaches_nothing(tiny_encoder: Encoder) -> None:
    """Two texts have one similarity, and one text none: an epoch may end with such a batch."""
    rows = vectors(2, 16).requires_grad_()
    loss = Distillation(tiny_encoder)(make_embedded_batch([(rows, [Example("a", ("b",))])]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert rows.grad is not None
    assert not rows.grad.any()


def test_ranked_and_angle_take_ratings(rated: EmbeddedBatch) -> None:
    pairs = rated.anchors_BD, rated.positives_PD, rated.scores_B
    torch.testing.assert_close(CoSENT(0.1)(rated), ranking.cosent(*pairs, temperature=0.1))
    terms = [
        ranking.cosent(*pairs),
        contrastive.in_batch_graded(*pairs),
        ranking.angle(*pairs, form="published"),
    ]
    check_weights("published", rated, terms)


def test_the_usual_objective_goes_by_the_batch(batch: EmbeddedBatch, rated: EmbeddedBatch) -> None:
    torch.testing.assert_close(AutoObjective()(batch), InfoNCE()(batch))
    torch.testing.assert_close(AutoObjective()(rated), CoSENT()(rated))


def test_angle_takes_triplets(batch: EmbeddedBatch) -> None:
    anchors, positives, negatives = batch.vectors
    pairs = anchors.repeat(2, 1), torch.cat([positives, negatives]), torch.tensor([1] * 3 + [0] * 3)
    in_batch = contrastive.info_nce(anchors, positives) / 2 + contrastive.info_nce(anchors, positives, negatives) / 2
    check_weights("released", batch, [ranking.cosent(*pairs), in_batch, ranking.angle(*pairs)])


def check_weights(form: ranking.AngleForm, batch: EmbeddedBatch, terms: list[Tensor]) -> None:
    """Each term of AnglE has its weight, and the defaults are those of the released trainer."""
    for weights in ((35.0, 0.0, 0.0), (0.0, 35.0, 0.0), (0.0, 0.0, 35.0), (2.0, 3.0, 5.0), (0.0, 1.0, 0.02)):
        wanted = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()
        torch.testing.assert_close(AnglE(*weights, form=form)(batch), wanted)
        assert wanted > 0.1
    torch.testing.assert_close(AnglE(form=form)(batch), wanted)


def test_espresso_takes_the_layers_of_every_text() -> None:
    rows = vectors(9, 5, 16)  # Nine texts, five layers.
    found = Espresso(dims=4)(make_embedded_batch([(rows, TRIPLETS)]))
    stacks = rows.transpose(0, 1).split(3, dim=1)
    torch.testing.assert_close(found, nested.espresso(contrastive.info_nce, 4)(*stacks))


def test_an_encoder_of_many_layers_guides_itself_by_its_own_vectors() -> None:
    rows = vectors(9, 5, 16)
    ignored_BC = contrastive.false_negatives(*rows[:, -1].split(3), margin=0.1)
    assert ignored_BC.any()
    found = Espresso(InfoNCE(guide="self", margin=0.1), dims=4)(make_embedded_batch([(rows, TRIPLETS)]))
    wanted = nested.espresso(contrastive.info_nce, 4)(*rows.transpose(0, 1).split(3, dim=1), ignored_BC=ignored_BC)
    torch.testing.assert_close(found, wanted)


def test_objectives_say_what_they_need() -> None:
    assert needs_of(InfoNCE()) == needs_of(lambda batch: batch.anchors_BD.sum()) == Needs()
    assert needs_of(Espresso()) == Needs(all_layers=True)
    assert needs_of(GRL(prompt="Answer {text}:")) == Needs(response_prompt="Answer {text}:")


@pytest.mark.parametrize("preference", ["dpo", "kto", "sft"])
def test_grl_is_the_weighted_sum(batch: EmbeddedBatch, preference: str) -> None:
    sums, reference = -vectors(3, 2).abs() - 5, -vectors(3, 2).abs() - 6
    means = sums / 4
    batch = replace(batch, responses=ResponseLogProbs(sums, means, reference))
    found = GRL(preference=preference, weights=(2.0, 3.0, 5.0))(batch)  # type: ignore[arg-type]
    losses: dict[str, Callable[[], Tensor]] = {
        "dpo": lambda: preferences.dpo(sums, reference),
        "kto": lambda: preferences.kto_pair(sums, reference),
        "sft": lambda: -means[:, 0].mean(),
    }
    cosines = torch.stack(
        [torch.cosine_similarity(batch.anchors_BD, each) for each in (batch.positives_PD, batch.negatives_ND)], 1
    )
    wanted = 2 * InfoNCE()(batch) + 3 * losses[preference]() + 5 * preferences.retrieval_generation_kl(cosines, means)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("objective", [InfoNCE(), Espresso(), GRL()])
def test_ratings_are_refused_where_positives_are_wanted(rated: EmbeddedBatch, objective: Objective) -> None:
    with pytest.raises(BellmError, match="the data has scores"):
        objective(rated)


def test_what_does_not_fit_is_refused(batch: EmbeddedBatch) -> None:
    with pytest.raises(BellmError, match="needs pairs with a score"):
        CoSENT()(batch)
    with pytest.raises(BellmError, match="a positive and a negative for every anchor"):
        AnglE()(make_embedded_batch([(vectors(4, 16), [Example("a", ("b",)), Example("c", ("d",))])]))
    for cold in (InfoNCE, CoSENT, AnglE):
        with pytest.raises(BellmError, match=r"temperature=0 must be more than 0"):
            cold(temperature=0)


@pytest.mark.parametrize("settings", [{}, {"pooling": "mean"}, {"variant": "parallel"}, {"layer": "-1,1"}])
def test_a_step_with_checkpoints_has_the_same_gradients(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]
) -> None:
    encoder = Encoder.from_pretrained(
        copy.deepcopy(tiny_model), tokenizer=tiny_tokenizer, bidirectional="last:2", **settings
    )
    assert encoder.batching_mode == "packed"
    calls: list[int] = []
    counts: list[int] = []
    get_layers(encoder.model)[1].attention[0].register_forward_hook(lambda *_: calls.append(1))
    found: list[Tensor] = []
    for checkpointing in (False, True):
        train_step = TrainStep(encoder, InfoNCE(), max_held_tokens=1 << 30, gradient_checkpointing=checkpointing)
        assert encoder.batching_mode == "packed"
        calls.clear()
        train_step.learn(TRIPLETS, seed=0)
        found.append(
            torch.cat([each.grad.flatten() for each in train_step.parameters.values() if each.grad is not None])
        )
        encoder.model.zero_grad()
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0] > 0  # Forwards, and again on the way back.
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()
    assert not any(module.training for module in encoder.model.modules())
