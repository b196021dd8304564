"""Scores of label words: those of a few lines of transformers, whatever batch, order and padding they come in."""

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bellm import BellmError, Encoder
from bellm.augment import LabelScorer, calibrate_batch, calibrate_contextual, label_probabilities
from bellm.engine.log_likelihood import answer_log_likelihoods
from bellm.engine.tokenization import Tokens
from bellm.errors import BellmWarning, PromptError, TruncationWarning
from bellm.prompts import Rendered, render
from tests.decoders import with_tokens_of

FRAME = "Is the mood of this sentence good or bad?\nSentence: {text}\nMood:"
TEXTS = ["Snow fell all night.", "A heron stands in the shallow water.", "", "The invoice was paid twice by mistake."]
LABELS = ["good", "bad", "quiet and white"]


@torch.inference_mode()
def by_hand(encoder: Encoder, prompts: list[str], labels: list[str]) -> np.ndarray:
    """One prompt and label at a time, by the model and tokenizer alone."""
    tokenizer = encoder.tokenizer
    rows = []
    with encoder.causal() as model:
        for prompt in prompts:
            for label in labels:
                start = len(tokenizer(prompt).input_ids)
                ids = torch.tensor([tokenizer(f"{prompt} {label}").input_ids])
                log_probs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
                rows.append(sum(log_probs[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1])))
    return np.array(rows).reshape(len(prompts), len(labels))


def prompts() -> list[Rendered]:
    return [render(FRAME, {"text": text}) for text in TEXTS]


def test_scores_are_those_of_a_loop(tiny_encoder: Encoder) -> None:
    scores = LabelScorer(tiny_encoder).score(prompts(), LABELS)
    assert tiny_encoder.batching_mode == "packed"
    wanted = by_hand(tiny_encoder, [str(each) for each in prompts()], LABELS)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5)


def test_in_float64_they_are_those_of_a_loop_to_the_last_digits(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """So that what differs in float32 is rounding."""
    exact = copy.deepcopy(tiny_model).double()
    encoder = Encoder.from_pretrained(exact, tokenizer=tiny_tokenizer, bidirectional="none")
    assert encoder.batching_mode == "packed"
    wanted = by_hand(encoder, [str(each) for each in prompts()], LABELS)
    np.testing.assert_allclose(LabelScorer(encoder).score(prompts(), LABELS), wanted, rtol=0, atol=1e-12)


def test_a_large_vocabulary_costs_no_precision(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """A sum over 150 000 tokens in float32 rounds to more than that."""
    config = LlamaConfig(
        vocab_size=150_000,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="none")
    wanted = by_hand(encoder, [str(each) for each in prompts()], LABELS)
    np.testing.assert_allclose(LabelScorer(encoder).score(prompts(), LABELS), wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", ["gemma2", "qwen3_next", "bloom", "gpt2"])
def test_so_are_those_of_other_architectures_packed_or_padded(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model: PreTrainedModel = with_tokens_of(tiny_tokenizer, name)
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="none")
    scores = LabelScorer(encoder, max_batch_tokens=64).score(prompts(), LABELS)
    wanted = by_hand(encoder, [str(each) for each in prompts()], LABELS)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 100, 10_000])
def test_batches_order_and_company_change_nothing(tiny_encoder: Encoder, max_batch_tokens: int) -> None:
    whole = LabelScorer(tiny_encoder).score(prompts(), LABELS)
    scorer = LabelScorer(tiny_encoder, max_batch_tokens=max_batch_tokens)
    np.testing.assert_allclose(scorer.score(prompts()[::-1], LABELS[::-1]), whole[::-1, ::-1], atol=1e-5)
    np.testing.assert_allclose(scorer.score(prompts()[1:2], LABELS), whole[1:2], atol=1e-5)
    doubled = scorer.score([*prompts(), *prompts()], LABELS)
    np.testing.assert_allclose(doubled, np.concatenate([whole, whole]), atol=1e-5)


def test_what_all_begin_with_is_computed_once(tiny_encoder: Encoder) -> None:
    """The embedding table is asked for fewer tokens than prompts have without what they share."""
    from bellm.engine.packing_check import check_packing

    scorer = LabelScorer(tiny_encoder, max_batch_tokens=48)
    packed = check_packing(scorer._model).packed_model
    assert packed
    seen: list[int] = []
    hook = packed.model.get_input_embeddings().register_forward_hook(lambda _, ids, out: seen.append(ids[0].numel()))
    layer = packed.model.model.layers[-1].mlp.register_forward_hook(lambda _, args, out: ran.append(args[0].shape[1]))
    ran: list[int] = []
    try:
        scorer.score(prompts(), ["good", "bad"])
    finally:
        hook.remove()
        layer.remove()
    tokens = tiny_encoder.tokenize_answers(prompts(), [" good", " bad"])
    prefix = len(tiny_encoder.tokenizer(FRAME.partition("{")[0]).input_ids)
    all_tokens = sum(end - 1 for _, end in tokens.spans)
    assert len(seen) > 2  # Several batches, and the prefix.
    assert sum(ran) < all_tokens - (len(TEXTS) - 1) * (prefix - 2)


def test_answers_of_one_token_cost_one_row(tiny_encoder: Encoder) -> None:
    rows: list[int] = []
    tokens = Tokens([[1, 50, 60, answer] for answer in range(100, 150)], [(3, 4)] * 50, 0)
    with tiny_encoder.causal() as model:
        hook = model.get_input_embeddings().register_forward_hook(lambda _, ids, out: rows.append(len(ids[0])))
        try:
            scores = answer_log_likelihoods(model, tokens, packed=None, pad_id=0)
        finally:
            hook.remove()
    assert rows == [1]
    assert math.isclose(np.exp(scores).sum(), 0.0, abs_tol=1)
    assert len(set(scores)) == 50


def test_length_normalization_divides_by_tokens(tiny_encoder: Encoder) -> None:
    plain = LabelScorer(tiny_encoder).score(prompts(), LABELS)
    normalized = LabelScorer(tiny_encoder, length_normalized=True).score(prompts(), LABELS)
    counts = [len(tiny_encoder.tokenizer(f"Mood: {label}").input_ids) for label in LABELS]
    counts = [count - len(tiny_encoder.tokenizer("Mood:").input_ids) for count in counts]
    np.testing.assert_allclose(normalized * counts, plain, rtol=1e-12)


def test_a_long_text_is_cut_alike_for_every_label_and_its_frame_stays(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(max_tokens=64)
    long = [render(FRAME, {"text": "Snow fell all night and the street was white. " * 9})]
    tokens = encoder.tokenize_answers(long, [f" {label}" for label in LABELS])
    assert max(map(len, tokens.ids)) == 64
    assert len({tuple(ids[:start]) for ids, (start, _) in zip(tokens.ids, tokens.spans, strict=True)}) == 1
    shown = encoder.tokenizer.decode(tokens.ids[0], skip_special_tokens=True)
    assert shown.startswith("Is the mood of this sentence good or bad?\nSentence: Snow fell")
    assert shown.endswith("\nMood: good")
    with pytest.warns(TruncationWarning, match="1 of 1 texts were cut to 64 tokens"):
        LabelScorer(encoder).score(long, LABELS)
    with pytest.raises(PromptError, match="max_tokens=20 leaves no room for the text"):
        LabelScorer(tiny_encoder.replace(max_tokens=20)).score(long, LABELS)


def test_special_tokens_of_a_text_are_text(tiny_encoder: Encoder) -> None:
    tokens = tiny_encoder.tokenize_answers(["A </s> here:"], [" good"])
    assert 2 not in tokens.ids[0]


def test_what_cannot_be_meant_is_one_line(tiny_encoder: Encoder) -> None:
    scorer = LabelScorer(tiny_encoder)
    assert scorer.score([], ["good", "bad"]).shape == (0, 2)
    nothing: Any = None
    for call, said in (
        (lambda: scorer.score(prompts(), ["good", " "]), "are not two or more different words"),
        (lambda: scorer.score(prompts(), ["good", nothing]), "labels: None is not a text"),
        (lambda: scorer.score([*prompts(), nothing], LABELS), r"prompts\[4\]: None is not a text"),
        (lambda: scorer.score(["\ud800"], LABELS), "is half a character"),
        (lambda: scorer.score(prompts(), ["good", "good"]), "are not two or more different words"),
        (lambda: scorer.score(prompts(), ["good"]), "are not two or more different words"),
        (lambda: scorer.score("A heron.", LABELS), "prompts is one string"),
        (lambda: tiny_encoder.tokenize_answers(["A heron."], [""]), "has no tokens"),
        (lambda: LabelScorer("smollm2"), "is no encoder"),
    ):
        with pytest.raises(BellmError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_labels_of_the_same_tokens_are_refused(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    scorer = LabelScorer(Encoder.from_pretrained(tiny_model, tokenizer=tokenizer))
    with pytest.raises(BellmError, match="gives 'Good' and 'good' the same tokens"):
        scorer.score(prompts(), ["Good", "good"])


def test_a_label_that_begins_another_is_said(tiny_encoder: Encoder) -> None:
    labels = ["good", "bad", "good enough"]
    with pytest.warns(BellmWarning, match="'good enough' begins with the tokens of 'good', and is never likelier"):
        scores = LabelScorer(tiny_encoder).score(prompts(), labels)
    assert (scores[:, 2] < scores[:, 0]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LabelScorer(tiny_encoder, length_normalized=True).score(prompts(), labels)


# Calibration of scores, which needs no model


def test_contextual_calibration_makes_prompts_without_content_even() -> None:
    scores = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]))
    free = np.log(np.array([[0.5, 0.4, 0.1]]))
    np.testing.assert_allclose(label_probabilities(calibrate_contextual(free, free)), [[1 / 3] * 3])
    wanted = np.array([0.6 / 0.5, 0.3 / 0.4, 0.1 / 0.1])
    np.testing.assert_allclose(label_probabilities(calibrate_contextual(scores, free))[0], wanted / wanted.sum())


def test_batch_calibration_divides_by_the_mean() -> None:
    chances = np.array([[0.9, 0.1], [0.7, 0.3]])
    found = label_probabilities(calibrate_batch(np.log(chances)))
    wanted = chances / chances.mean(0)
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True))
    assert found.argmax(1).tolist() == [0, 1]
