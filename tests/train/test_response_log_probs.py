"""Log-probabilities of responses against transformers' full logits, and where their gradients go."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from tiny import tiny
from tokenizers import processors
from torch import Tensor
from transformers import LlamaModel, PreTrainedModel, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.adapters import disable_adapters
from bellm.backbone.architecture import get_decoder
from bellm.backbone.states import logits_at
from bellm.engine.padded import pad_rows
from bellm.engine.tokenization import Tokens
from bellm.errors import BellmError
from bellm.train.token_prediction import ResponseScorer, tokenize_turns
from tests.decoders import CPU, TEXTS

RENAMED = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # peft asks by the old name

PROMPTS = ["Why does bread rise?\n", "Describe the street.\n", "Who waits for a fish?\n"]
RESPONSES = [
    ["It is left in a warm kitchen.", "Two trains leave.", "The bank sent one half back by mistake."],
    ["White and quiet in the morning.", "A cat.", "Snow fell all night; the invoice was paid twice."],
    ["A heron stands in the shallow water.", "The mat sleeps.", "An hour late."],
]
ROWS = Tokens(
    [[1, 7, 9, 20, 33, 2], [1, 5, 6], [1, 40, 41, 42, 43, 44, 45, 46, 47], [1, 8]], [(3, 6), (1, 3), (2, 8), (1, 2)], 0
)
"""Token ids of four rows with the spans of their responses; behind one of them something follows."""


def turns_of(tokenizer: PreTrainedTokenizerFast, max_tokens: int = 128) -> Tokens:
    """Every response of each prompt, in order."""
    prompts = [prompt for prompt, responses in zip(PROMPTS, RESPONSES, strict=True) for _ in responses]
    return tokenize_turns(tokenizer, prompts, [text for responses in RESPONSES for text in responses], max_tokens)


def log_probs(model: PreTrainedModel, turns: Tokens, *, max_batch_tokens: int = 2048, packs: bool = True) -> Tensor:
    """Log-probabilities of all rows, in their order."""
    scorer = ResponseScorer(model, turns, packs=packs)
    batches = scorer.batches(max_batch_tokens)
    order = torch.tensor([row for rows in batches for row in rows])
    return torch.cat([scorer.log_probs(rows) for rows in batches])[order.argsort()]


def reference(model: PreTrainedModel, turns: Tokens, *, max_batch_tokens: int = 2048, packs: bool = True) -> Tensor:
    """The same of the model without its adapters."""
    return ResponseScorer(model, turns, packs=packs).reference(max_batch_tokens)


def by_hand(model: PreTrainedModel, turns: Tokens) -> Tensor:
    """Log-probabilities of the spans from full logits, a row at a time."""
    sums = []
    for ids, (start, end) in zip(turns.ids, turns.spans, strict=True):
        log_probs_LV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
        sums.append(sum(log_probs_LV[at - 1, ids[at]] for at in range(start, end)))
    return torch.stack(sums)


# Rows


def test_the_span_is_the_response_and_its_end(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    turns = turns_of(tiny_tokenizer)
    texts = [(prompt, text) for prompt, responses in zip(PROMPTS, RESPONSES, strict=True) for text in responses]
    for (prompt, text), ids, (start, end) in zip(texts, turns.ids, turns.spans, strict=True):
        assert ids == [*tiny_tokenizer(prompt + text).input_ids, tiny_tokenizer.eos_token_id]
        assert tiny_tokenizer.decode(ids[:start]) == "<s>" + prompt
        assert tiny_tokenizer.decode(ids[start:end]) == text + "</s>"
    assert turns.num_truncated == 0


def test_a_token_over_the_seam_is_predicted_as_part_of_the_response(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    whole = tiny_tokenizer("sent twice").tokens()
    assert "Ġtwice" in whole
    turns = tokenize_turns(tiny_tokenizer, ["sent tw"], ["ice"], 99)
    (start, end), ids = turns.spans[0], turns.ids[0]
    assert tiny_tokenizer.decode(ids[start:end]) == " twice</s>"


def test_an_end_that_the_tokenizer_brings_is_not_doubled(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tiny_tokenizer)
    wanted = turns_of(own)
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    own.backend_tokenizer.post_processor = ends
    assert own("A cat").input_ids[-1] == 2
    assert turns_of(own) == wanted


def test_a_response_needs_something_to_be_predicted_from(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tiny_tokenizer)
    own.backend_tokenizer.post_processor = processors.ByteLevel()
    turns = tokenize_turns(own, [""], ["A cat"], 99)
    assert turns.ids[0] == [1, *own("A cat").input_ids, 2]
    assert turns.spans == [(1, len(turns.ids[0]))]


def test_an_empty_response_is_its_end_or_an_error(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    turns = tokenize_turns(tiny_tokenizer, ["A cat"], [""], 99)
    assert turns.ids[0][turns.spans[0][0] :] == [2]
    ending = copy.deepcopy(tiny_tokenizer)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    assert ending("").input_ids == [2]
    assert tokenize_turns(ending, [""], [""], 99).ids == [[1, 2]]
    endless = copy.deepcopy(tiny_tokenizer)
    endless.eos_token = None
    with pytest.raises(BellmError, match="Response 1 is '': it has no tokens"):
        tokenize_turns(endless, ["A cat", "A mat"], ["sleeps", ""], 99)


@pytest.mark.parametrize(
    ("num_prompt", "num_response", "kept_prompt", "kept_response"),
    [(5, 3, 5, 3), (30, 3, 7, 3), (3, 30, 3, 7), (30, 30, 5, 5), (5, 5, 5, 5), (30, 1, 9, 1)],
)
def test_prompts_lose_their_beginning_and_responses_their_end(
    tiny_tokenizer: PreTrainedTokenizerFast,
    num_prompt: int,
    num_response: int,
    kept_prompt: int,
    kept_response: int,
) -> None:
    # Every character is a token; one of the prompt's tokens is its BOS, one of the response's its end.
    prompt, response = "0123456789" * 3, "9876543210" * 3
    prompt, response = prompt[: num_prompt - 1], response[: num_response - 1]
    turns = tokenize_turns(tiny_tokenizer, [prompt], [response], 10)
    (start, end), ids = turns.spans[0], turns.ids[0]
    assert (start, end - start, len(ids)) == (kept_prompt, kept_response, kept_prompt + kept_response)
    assert tiny_tokenizer.decode(ids[:start]) == "<s>" + prompt[len(prompt) - kept_prompt + 1 :]
    assert tiny_tokenizer.decode(ids[start:]) == (
        response + "</s>" if kept_response == num_response else response[:kept_response]
    )
    assert turns.num_truncated == (num_prompt + num_response > 10)


def test_no_room_for_both(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert [len(ids) for ids in turns_of(tiny_tokenizer, 2).ids] == [2] * 9
    with pytest.raises(BellmError, match="max_tokens=1 has no room"):
        turns_of(tiny_tokenizer, 1)


# Log-probabilities

HEADS = ["llama", "gemma2", "granite", "cohere", "gpt2", "opt", "minicpm3", "lfm2"]
"""Heads with caps, scales, steps before them, tied or not, and a decoder with convolutions."""


@torch.no_grad()
@pytest.mark.parametrize("max_batch_tokens", [1, 12, 2048])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_log_probs_are_those_of_the_full_logits(max_batch_tokens: int, packs: bool) -> None:
    model = tiny("llama")
    assert ResponseScorer(model, ROWS, packs=packs).is_packed == packs
    found = log_probs(model, ROWS, max_batch_tokens=max_batch_tokens, packs=packs)
    wanted = by_hand(model, ROWS)
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_batch_tokens", [1, 2048])
def test_rows_that_are_equal_or_begin_alike_have_gradients_of_their_own(max_batch_tokens: int) -> None:
    model = tiny("llama")
    turns = Tokens([ROWS.ids[0], ROWS.ids[1], ROWS.ids[0], ROWS.ids[0][:4]], [(3, 6), (1, 3), (3, 6), (2, 4)], 0)
    weights = list(model.parameters())
    found_R, wanted_R = log_probs(model, turns, max_batch_tokens=max_batch_tokens), by_hand(model, turns)
    assert torch.allclose(found_R, wanted_R, atol=1e-5, rtol=0)
    for row in range(4):
        found, wanted = (
            torch.autograd.grad(each[row], weights, retain_graph=True, allow_unused=True)
            for each in (found_R, wanted_R)
        )
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert float((ours - theirs).norm()) <= 1e-5 * max(1.0, float(theirs.norm()))


@torch.no_grad()
def test_log_probs_of_a_half_precision_model_are_summed_in_float32() -> None:
    model = tiny("llama").bfloat16()
    ids_BL, mask_BL = pad_rows([[1, *[5, 9] * 20]], 0, CPU)
    log_probs_LV = model(input_ids=ids_BL, attention_mask=mask_BL).logits[0].double().log_softmax(-1)
    wanted = sum(log_probs_LV[at - 1, ids_BL[0, at]] for at in range(1, 41))
    found = log_probs(model, Tokens(ids_BL.tolist(), [(1, 41)], 0))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", HEADS)
def test_any_head_is_the_model_s_own(name: str) -> None:
    model = tiny(name)
    wanted = by_hand(model, ROWS)
    for packs in (True, False):
        assert torch.allclose(log_probs(model, ROWS, packs=packs), wanted, atol=2e-5, rtol=0)
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU)
    whole_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
    chosen_BL = torch.rand(mask_BL.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    found = logits_at(model, ids_BL, mask_BL, chosen_BL)
    assert found.shape == (int(chosen_BL.sum()), whole_BLV.shape[-1])
    assert torch.allclose(found, whole_BLV[chosen_BL], atol=1e-5, rtol=0)


@torch.no_grad()
def test_left_padded_batches_of_transformers_say_the_same() -> None:
    model = tiny("gpt2")  # Learned positions.
    ids_BL, mask_BL = pad_rows(ROWS.ids, 0, CPU, left=True)
    position_ids = (mask_BL.cumsum(1) - 1).clamp(min=0)
    logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, position_ids=position_ids).logits.log_softmax(-1)
    wanted = []
    for number, (ids, (start, end)) in enumerate(zip(ROWS.ids, ROWS.spans, strict=True)):
        shift = ids_BL.shape[1] - len(ids)
        wanted.append(sum(logits_BLV[number, shift + at - 1, ids[at]] for at in range(start, end)))
    assert torch.allclose(log_probs(model, ROWS), torch.stack(wanted), atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompts_carry_no_weight() -> None:
    """p(response | prompt) is p(prompt, response) / p(prompt); the upstream code averages over the prompt as well."""
    model = tiny("llama")
    ids = ROWS.ids[2]
    both, prompt = (log_probs(model, Tokens([ids], [(1, end)], 0)) for end in (8, 4))
    response = log_probs(model, Tokens([ids], [(4, 8)], 0))
    assert torch.allclose(response, both - prompt, atol=1e-5, rtol=0)
    assert torch.allclose(response / 4, (both - prompt) / 4, atol=1e-5, rtol=0)
    assert abs(float(response / 4 - both / 8)) > 0.05


@torch.no_grad()
def test_candidates_stay_with_their_query(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The upstream collator mixes queries and candidates from two queries a batch on."""
    found_QC = log_probs(tiny_model, turns_of(tiny_tokenizer), max_batch_tokens=60).view(3, 3)
    for query, (prompt, responses) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for candidate, response in enumerate(responses):
            ids = [*tiny_tokenizer(prompt + response).input_ids, 2]
            start = len(tiny_tokenizer(prompt).input_ids)
            wanted = by_hand(tiny_model, Tokens([ids], [(start, len(ids))], 0))
            assert torch.allclose(found_QC[query, candidate], wanted, atol=1e-4, rtol=0)


def test_a_model_without_head_is_refused(tiny_model: PreTrainedModel) -> None:
    with pytest.raises(BellmError, match="LlamaModel has no language-model head"):
        log_probs(LlamaModel(tiny_model.config), ROWS)


def test_the_model_is_left_as_it_was_when_its_head_fails(tiny_model: PreTrainedModel) -> None:
    own = copy.deepcopy(tiny_model)
    own.lm_head = torch.nn.Linear(7, 7)
    with pytest.raises(RuntimeError):
        log_probs(own, ROWS, packs=False)
    assert not get_decoder(own)._forward_hooks


# Adapters

CONFIG = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
WAYS: list[Callable[[Any], Any]] = [
    lambda model: inject_adapter_in_model(CONFIG, model),
    lambda model: get_peft_model(model, CONFIG),
]


@pytest.fixture(params=WAYS, ids=["injected", "wrapped"])
def adapted(request: pytest.FixtureRequest, tiny_encoder: Encoder) -> Encoder:
    """An open encoder of its own weights, with a LoRA that changes them."""
    own = copy.deepcopy(tiny_encoder.model)
    encoder = Encoder.from_pretrained(own, tokenizer=tiny_encoder.tokenizer, bidirectional="last:2")
    encoder.model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return encoder.with_model(request.param(encoder.model))


def trainable(model: PreTrainedModel) -> list[Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def dpo(policy_R: Tensor, reference_R: Tensor) -> Tensor:
    """-log sigmoid(0.1 (log-ratio of the chosen - log-ratio of the rejected)), rows 0 against 1, 3 against 4, ..."""
    ratio_QC = (policy_R - reference_R).view(3, 3)
    return torch.log1p(torch.exp(-0.1 * (ratio_QC[:, 0] - ratio_QC[:, 1]))).mean()


def kto(policy_R: Tensor, reference_R: Tensor) -> Tensor:
    """Logistic value of the log-ratio, gained for the chosen and lost for the others; the reference point is 0."""
    sign_R = torch.tensor([1.0, -1.0, -1.0] * 3)
    return (1 - torch.sigmoid(0.1 * sign_R * (policy_R - reference_R))).mean()


def kl(policy_R: Tensor, reference_R: Tensor) -> Tensor:
    """Sum of p log(p / q) over each query's candidates: p planted retrieval scores, q softmax of generation scores."""
    p_QC = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05]])
    scores_QC = policy_R.view(3, 3)
    log_q_QC = scores_QC - scores_QC.exp().sum(1, keepdim=True).log()
    return (p_QC * (p_QC.log() - log_q_QC)).sum(1).mean()


@RENAMED
@pytest.mark.parametrize(("loss", "mean"), [(dpo, False), (kto, False), (kl, True)])
def test_gradients_reach_the_adapter_through_the_causal_twin(
    adapted: Encoder, loss: Callable[[Tensor, Tensor], Tensor], mean: bool
) -> None:
    turns = turns_of(adapted.tokenizer)
    lengths_R = torch.tensor([end - start for start, end in turns.spans])
    weights = trainable(adapted.model)
    assert len(weights) == 4 * 3 * 2
    with adapted.causal() as model:
        policy = log_probs(model, turns, max_batch_tokens=100)
        base = reference(model, turns, max_batch_tokens=100)
        assert not base.requires_grad
        whole = by_hand(model, turns)
        full_R = whole / lengths_R if mean else whole
        wanted = torch.autograd.grad(loss(full_R, base), weights)
    loss(policy / lengths_R if mean else policy, base).backward()
    scale = max(float(grad.norm()) for grad in wanted)
    assert scale > 1e-4
    for weight, grad in zip(weights, wanted, strict=True):
        assert weight.grad is not None
        assert float(weight.grad.norm()) > 0
        assert float((weight.grad - grad).norm()) <= 1e-4 * scale


@RENAMED
@torch.no_grad()
def test_the_reference_is_the_base_model(adapted: Encoder, tiny_model: PreTrainedModel) -> None:
    turns = turns_of(adapted.tokenizer)
    with adapted.causal() as model:
        before = log_probs(model, turns)
        for packs in (True, False):
            found = reference(model, turns, packs=packs)
            assert torch.allclose(found, by_hand(tiny_model, turns), atol=1e-4, rtol=0)
        assert torch.equal(log_probs(model, turns), before)
    assert float((before - log_probs(tiny_model, turns)).abs().min()) > 1e-2


@RENAMED
def test_the_reference_takes_no_gradient_of_what_is_trained_beside_the_adapter(adapted: Encoder) -> None:
    adapted.model.get_input_embeddings().requires_grad_(True)
    turns = turns_of(adapted.tokenizer)
    with adapted.causal() as model:
        assert not reference(model, turns).requires_grad
        assert log_probs(model, turns).requires_grad


@RENAMED
@torch.no_grad()
def test_adapters_come_back_after_an_error_and_stay_frozen_where_they_were(adapted: Encoder) -> None:
    model = adapted.model
    frozen = trainable(model)[::2]
    for weight in frozen:
        weight.requires_grad_(False)
    flags = [weight.requires_grad for weight in model.parameters()]
    before = by_hand(model, ROWS)
    with pytest.raises(KeyError), disable_adapters(model):
        assert float((by_hand(model, ROWS) - before).abs().min()) > 1e-3
        raise KeyError
    assert torch.equal(by_hand(model, ROWS), before)
    assert [weight.requires_grad for weight in model.parameters()] == flags


@RENAMED
@torch.no_grad()
def test_adapters_that_were_off_stay_off(adapted: Encoder) -> None:
    model = adapted.model
    with disable_adapters(model):
        before = by_hand(model, ROWS)
        with disable_adapters(model):
            pass
        assert torch.equal(by_hand(model, ROWS), before)


def test_a_model_without_adapter_is_no_reference_of_itself(tiny_model: PreTrainedModel) -> None:
    with pytest.raises(BellmError, match="no adapter to switch off"):
        reference(tiny_model, ROWS)
