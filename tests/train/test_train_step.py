"""A step of the learner against the same step written out: one padded batch, transformers and autograd.

Shapes: B rows, K candidates of a row, M hidden tokens.
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import pytest
import torch
from tiny import tiny
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.errors import BellmError
from bellm.prompts import Prompt
from bellm.tensors.losses.contrastive import info_nce
from bellm.train import train_step
from bellm.train.embedded_batch import EmbeddedBatch
from bellm.train.examples import Example
from bellm.train.gradients import chunk_outputs
from bellm.train.objectives import GRL, CoSENT, InfoNCE
from bellm.train.token_prediction import mask_tokens, masking_vocabulary
from bellm.train.train_step import TrainStep
from bellm.types import PoolingName, Variant
from tests.train import reference
from tests.train.rows import triplets

HELD = 1 << 30  # More tokens than any step here has.
EOL = 'This sentence : "{text}" means in one word:"'
BY_OLD_NAME = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.


@pytest.fixture
def own(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """An encoder all of whose weights are trained and nobody else's."""
    return Encoder.from_pretrained(copy.deepcopy(tiny_model), tokenizer=tiny_tokenizer, bidirectional="last:2")


def found(
    encoder: Encoder, examples: Sequence[Example], *, chunk_tokens: int = 60, held: int = HELD, seed: int = 0
) -> tuple[float, dict[str, Tensor]]:
    step = TrainStep(encoder, InfoNCE(), chunk_tokens=chunk_tokens, max_held_tokens=held)
    loss = step.learn(examples, seed).loss
    return loss, reference.gradients(encoder.model)


def wanted(
    encoder: Encoder, examples: Sequence[Example], templates: tuple[str, str] = (EOL, EOL)
) -> tuple[float, dict[str, Tensor]]:
    loss = reference.info_nce(*reference.cosines(encoder, examples, templates))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), reference.gradients(encoder.model)


def assert_same(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert reference.distance(ours[1], theirs[1]) < 1e-4  # Rounding of four layers in float32.


# Vectors


@pytest.mark.parametrize("layers", ["none", "last:2", "first:1", "all"])
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted-mean", "max", "first"])
def test_gradients_are_those_of_one_padded_batch(own: Encoder, layers: str, pooling: PoolingName) -> None:
    if pooling == "first" and layers != "all":
        pytest.skip("the first token has seen nothing")
    encoder = own.replace(bidirectional=layers, pooling=pooling)
    assert encoder.batching_mode == "packed"
    assert_same(found(encoder, triplets(5)), wanted(encoder, triplets(5)))


@pytest.mark.parametrize("held", [0, HELD])
@pytest.mark.parametrize("chunk_tokens", [1, 100, HELD])
def test_chunks_do_not_matter(own: Encoder, chunk_tokens: int, held: int) -> None:
    examples = triplets(5, negatives=2)
    assert_same(found(own, examples, chunk_tokens=chunk_tokens, held=held), wanted(own, examples))


@BY_OLD_NAME
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cached_and_held_are_equal_bit_for_bit(own: Encoder, dropout: float) -> None:
    encoder = reference.with_lora(own, dropout=dropout)
    assert encoder.batching_mode == "packed"  # Dropout would tell packed from padded, were it awake.
    cached, held = (found(encoder, triplets(6), held=held) for held in (0, HELD))
    assert cached[0] == held[0]
    assert all(torch.equal(cached[1][name], held[1][name]) for name in held[1])
    again, other = (found(encoder, triplets(6), seed=seed)[0] for seed in (0, 1))
    assert again == held[0]
    assert (other == held[0]) == (dropout == 0)
    assert (encoder.encode(["A heron"]) == encoder.encode(["A heron"])).all()  # Dropout is for learning.


@BY_OLD_NAME
@pytest.mark.parametrize("held", [0, HELD])
@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
def test_two_chunks_at_once_learn_the_same_bit_for_bit(
    own: Encoder, monkeypatch: pytest.MonkeyPatch, dropout: float | None, held: int
) -> None:
    encoder = own if dropout is None else reference.with_lora(own, dropout=dropout)
    concurrent: list[int] = []

    def recorded(*args: Any, **kwargs: Any) -> AbstractContextManager[list[Tensor]]:
        concurrent.append(kwargs["num_concurrent"])
        return chunk_outputs(*args, **kwargs)

    monkeypatch.setattr(train_step, "chunk_outputs", recorded)
    threads, results = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for most in (1, 2):
            monkeypatch.setattr("bellm.engine.concurrency.CONCURRENT_BATCHES", most)
            results.append(found(encoder, triplets(6), held=held, seed=7))
    finally:
        torch.set_num_threads(threads)
    assert concurrent == [1, 1 if dropout else 2]  # What drops out draws from one generator.
    (one, ours), (two, theirs) = results
    assert one == two
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_adapters_alone_learn_and_as_autograd_says(own: Encoder) -> None:
    encoder = reference.with_lora(own)
    ours = found(encoder, triplets(5))
    assert all("lora_" in name for name in ours[1])
    assert len(ours[1]) == 2 * 7 * 4
    assert_same(ours, wanted(encoder, triplets(5)))
    assert all(parameter.grad is None for parameter in own.model.parameters())


@pytest.mark.parametrize(
    ("name", "variant", "runner"), [("gpt2", "sequential", "padded"), ("llama", "parallel", "packed")]
)
def test_either_way_learns_what_padded_batches_do(
    name: str, variant: Variant, runner: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny(name)
    model.resize_token_embeddings(len(tiny_tokenizer))
    encoder = Encoder.from_pretrained(
        model, tokenizer=tiny_tokenizer, bidirectional="last:2", variant=variant, pooling="mean"
    )
    assert encoder.batching_mode.startswith(runner)
    examples = triplets(5)
    texts = [one.anchor for one in examples] + [one.positives[0] for one in examples]
    tokens = encoder.tokenize([*texts, *(one.negatives[0] for one in examples)])
    vectors = PaddedRunner(encoder.model, tokens, HiddenStateReadout("mean", -1), 0).vectors(range(15))
    loss = info_nce(*torch.split(vectors, 5))
    loss.backward()  # type: ignore[no-untyped-call]
    theirs = loss.item(), reference.gradients(encoder.model)
    assert_same(found(encoder, examples), theirs)


def test_anchors_are_queries_and_the_rest_documents(own: Encoder) -> None:
    encoder = own.replace(prompt=Prompt("two", "{text}", query="Find: {text}", document="Text: {text}"))
    examples = triplets(4)
    assert_same(found(encoder, examples), wanted(encoder, examples, ("Find: {text}", "Text: {text}")))


def test_texts_that_may_change_places_are_neither(own: Encoder) -> None:
    encoder = own.replace(prompt=Prompt("two", "{text}!", query="Find: {text}", document="Text: {text}"))
    symmetric = [Example(one.anchor, one.positives, symmetric=True) for one in triplets(4)]
    texts = [one.anchor for one in symmetric] + [one.positives[0] for one in symmetric]
    anchors_BD, positives_BD = torch.split(reference.vectors_of(encoder, texts, "{text}!"), 4)
    loss = info_nce(anchors_BD, positives_BD)
    loss.backward()  # type: ignore[no-untyped-call]
    theirs = loss.item(), reference.gradients(encoder.model)
    assert_same(found(encoder, symmetric), theirs)


def test_rows_may_have_several_positives_and_any_number_of_negatives(own: Encoder) -> None:
    rows = [
        Example("A heron waits.", ("It waits for a fish.", "A bird stands in the water."), ()),
        Example("Two trains leave.", ("They leave at noon.",), ("Snow fell.", "The bank is closed.", "Bread rises.")),
    ]
    texts = [*(one.anchor for one in rows), *rows[0].positives, *rows[1].positives, *rows[1].negatives]
    anchors_BD, positives_PD, negatives_ND = torch.split(reference.vectors_of(own, texts, EOL), [2, 3, 3])
    loss = info_nce(anchors_BD, positives_PD, negatives_ND, owners_P=torch.tensor([0, 0, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    theirs = loss.item(), reference.gradients(own.model)
    assert_same(found(own, rows), theirs)


def test_ratings_reach_the_objective(own: Encoder) -> None:
    rated = [Example(one.anchor, one.positives, score=0.1 * number) for number, one in enumerate(triplets(4))]
    scores: list[float] = []

    def objective(batch: EmbeddedBatch) -> Tensor:
        assert batch.scores_B is not None
        scores.extend(batch.scores_B.tolist())
        return CoSENT()(batch)

    TrainStep(own, objective).learn(rated, 0)
    assert scores == pytest.approx([0, 0.1, 0.2, 0.3])
    with pytest.raises(BellmError, match="needs pairs with a score"):
        TrainStep(own, CoSENT()).learn(triplets(3), 0)


def test_what_a_step_was(own: Encoder) -> None:
    short = own.replace(max_tokens=30, bidirectional="none")
    tokens = short.tokenize([text for one in triplets(5) for text in one.texts])
    learned = TrainStep(short, InfoNCE()).learn(triplets(5), 0)
    assert learned.num_tokens == sum(map(len, tokens.ids))
    assert learned.num_truncated == tokens.num_truncated > 0


# Vectors and answers

TERMS = {"contrastive": (1.0, 0.0, 0.0), "preference": (0.0, 1.0, 0.0), "alignment": (0.0, 0.0, 1.0)}


@BY_OLD_NAME
@pytest.mark.parametrize(
    ("term", "preference"),
    [("contrastive", "dpo"), ("preference", "dpo"), ("preference", "kto"), ("preference", "sft"), ("alignment", "dpo")],
)
def test_each_term_of_grl_has_its_gradient(own: Encoder, term: str, preference: Literal["dpo", "kto", "sft"]) -> None:
    encoder, prompt, examples = reference.with_lora(own), "{text}\n", triplets(3, negatives=2)
    objective = GRL(weights=TERMS[term], preference=preference, prompt=prompt)
    loss = TrainStep(encoder, objective, chunk_tokens=90, max_held_tokens=0).learn(examples, 0).loss
    ours = loss, reference.gradients(encoder.model)

    cosines = reference.cosines(encoder, examples, (EOL, EOL))
    with encoder.causal() as model:
        sum_BK, mean_BK = reference.written(model, encoder.tokenizer, examples, prompt)
        with torch.no_grad(), model.disable_adapter():
            before_BK, _ = reference.written(model, encoder.tokenizer, examples, prompt)
    gain_BK = sum_BK - before_BK
    good_B, bad_B = gain_BK[:, 0], gain_BK[:, 1]
    share_BK = (reference.own_cosines(*cosines) / 0.05).softmax(1)
    direct = {
        "contrastive": reference.info_nce(*cosines),
        "dpo": -(torch.sigmoid(0.1 * (good_B - bad_B))).log().mean(),
        "kto": 1
        - torch.sigmoid(
            0.1 * torch.cat([good_B - bad_B.mean().clamp(min=0).detach(), good_B.mean().clamp(min=0).detach() - bad_B])
        ).mean(),
        "sft": -mean_BK[:, 0].mean(),
        "alignment": (share_BK * (share_BK.log() - mean_BK.log_softmax(1))).sum(1).mean(),
    }[preference if term == "preference" else term]
    direct.backward()  # type: ignore[no-untyped-call]
    theirs = reference.gradients(encoder.model)
    assert max(float(gradient.norm()) for gradient in theirs.values()) > 1e-3
    used = {name: gradient for name, gradient in ours[1].items() if name in theirs}
    assert all(not gradient.any() for name, gradient in ours[1].items() if name not in theirs)
    assert_same((loss, used), (direct.item(), theirs))


@BY_OLD_NAME
def test_grl_is_the_sum_of_its_terms(own: Encoder) -> None:
    encoder, examples = reference.with_lora(own), triplets(3)
    parts = []
    for weights in (*TERMS.values(), (0.5, 2.0, 3.0)):
        loss = TrainStep(encoder, GRL(weights=weights)).learn(examples, 0).loss
        parts.append((loss, reference.gradients(encoder.model)))
    summed = {name: 0.5 * parts[0][1][name] + 2 * parts[1][1][name] + 3 * parts[2][1][name] for name in parts[0][1]}
    assert_same(parts[3], (0.5 * parts[0][0] + 2 * parts[1][0] + 3 * parts[2][0], summed))


@BY_OLD_NAME
@pytest.mark.parametrize(
    "rows",
    [
        [Example("a", ("b",))],
        [Example("a", ("b",), ("c",)), Example("d", ("e",), ("f", "g"))],
        [Example("a", ("b", "c"), ("d",))],
    ],
)
def test_grl_refuses_rows_that_it_cannot_compare(own: Encoder, rows: list[Example]) -> None:
    with pytest.raises(BellmError, match="each row needs one positive and as many negatives as the others"):
        TrainStep(reference.with_lora(own), GRL()).learn(rows, 0)


def test_grl_without_adapters_has_no_reference(own: Encoder) -> None:
    with pytest.raises(BellmError, match="no adapter to switch off"):
        TrainStep(own, GRL()).learn(triplets(2), 0)


# MNTP


@pytest.mark.parametrize("layers", [(), (3,), (2, 3), (0, 1, 2, 3)])
def test_adaptation_is_the_loss_of_full_logits(own: Encoder, layers: tuple[int, ...]) -> None:
    examples = triplets(4)
    train_step = TrainStep(own, InfoNCE(), chunk_tokens=50, max_held_tokens=0)
    loss = train_step.adapt(examples, 9, mask_probability=0.3, layers=layers).loss
    ours = loss, reference.gradients(own.model)

    rows = [own.tokenizer(text).input_ids for one in examples for text in one.texts]
    generator = torch.Generator().manual_seed(9)
    masked = mask_tokens(rows, masking_vocabulary(own.tokenizer), mask_probability=0.3, generator=generator)
    losses = []
    for ids, positions, hidden in zip(masked.ids, masked.positions, masked.targets, strict=True):
        ids_1L = torch.tensor([ids])
        logits_LV = own.model.lm_head(reference.states_of(own.model, ids_1L, torch.ones_like(ids_1L), layers)[0])
        before = [position - 1 for position in positions]
        losses.append(functional.cross_entropy(logits_LV[before], torch.tensor(hidden), reduction="none"))
    direct = torch.cat(losses).mean()
    direct.backward()  # type: ignore[no-untyped-call]
    assert_same(ours, (direct.item(), reference.gradients(own.model)))
