"""Masking, its loss against full logits, and what only a model that looks both ways can learn from it."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from tiny import tiny
from tokenizers import AddedToken
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel, PreTrainedTokenizerFast

from bellm.backbone.architecture import count_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.packed_model import PackedModel
from bellm.engine.embedding import Runner
from bellm.engine.packed import PackedRunner
from bellm.engine.padded import PaddedRunner, pad_rows
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.errors import BellmError
from bellm.train.token_prediction import (
    MaskingVocabulary,
    PredictedRows,
    gradual_layers,
    mask_tokens,
    masking_vocabulary,
    prediction_losses,
)
from tests.decoders import CPU, TEXTS

TOY = MaskingVocabulary(mask_id=99, words_V=torch.arange(3, 99))
ROWS = [[1, *range(3, 13)], [7, 8], [1, 20, 2], [1, *range(30, 90), 2], [50] * 25]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded(model: PreTrainedModel, rows: PredictedRows) -> Runner:
    spans = [(0, len(ids)) for ids in rows.ids]
    return PaddedRunner(model, Tokens(rows.ids, spans, 0), HiddenStateReadout("last", -1), 0)


# Vocabulary


def test_the_blank_stands_in_where_there_is_no_mask_token(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = masking_vocabulary(tiny_tokenizer)
    assert tiny_tokenizer.decode([vocabulary.mask_id]) == "_"
    assert vocabulary.words_V.tolist() == list(range(3, len(tiny_tokenizer)))  # All but padding, BOS and EOS.


def test_a_mask_token_and_special_tokens_of_one_s_own(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tiny_tokenizer)
    size = len(own)
    own.add_special_tokens({"mask_token": "<mask>"})
    own.add_tokens([AddedToken("<tool>", special=True), "heronry"])
    vocabulary = masking_vocabulary(own)
    assert vocabulary.mask_id == own.convert_tokens_to_ids("<mask>") >= size
    special = {0, 1, 2, vocabulary.mask_id, own.convert_tokens_to_ids("<tool>")}
    assert set(range(len(own))) - set(vocabulary.words_V.tolist()) == special


def test_a_tokenizer_without_mask_or_blank_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tiny_tokenizer)
    own.get_vocab = lambda: {"a": 3}  # type: ignore[method-assign]
    with pytest.raises(BellmError, match="no mask token and no token '_'"):
        masking_vocabulary(own)


# Masking


@pytest.mark.parametrize("mask_probability", [0.01, 0.2, 0.5, 1.0])
def test_a_share_of_the_words_of_each_row_is_hidden(mask_probability: float) -> None:
    masked = mask_tokens(ROWS, TOY, mask_probability=mask_probability, generator=seeded())
    for row, ids, positions, hidden in zip(ROWS, masked.ids, masked.positions, masked.targets, strict=True):
        words = [position for position in range(1, len(row)) if row[position] not in (1, 2)]
        assert len(positions) == max(1, round(mask_probability * len(words)))
        assert positions == sorted(set(positions))
        assert set(positions) <= set(words)
        assert hidden == [row[position] for position in positions]
        untouched = set(range(len(row))) - set(positions)
        assert all(ids[position] == row[position] for position in untouched)


def test_what_is_hidden_hangs_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = mask_tokens(ROWS, TOY, generator=seeded(5))
    torch.manual_seed(2)
    assert mask_tokens(ROWS, TOY, generator=seeded(5)) == first
    assert mask_tokens(ROWS, TOY, generator=seeded(6)) != first


def test_of_ten_hidden_tokens_eight_are_masks_one_another_word_one_itself() -> None:
    rows = [[1, *range(3, 99)]] * 200
    masked = mask_tokens(rows, TOY, mask_probability=1.0, generator=seeded())
    seen, hidden = (torch.tensor(part) for part in ([ids[1:] for ids in masked.ids], masked.targets))
    is_mask, is_itself = seen == 99, seen == hidden
    others = seen[~is_mask & ~is_itself]
    # 19 200 draws: three standard errors are 0.009. Another word is itself in one of 96.
    assert float(is_mask.float().mean()) == pytest.approx(0.8, abs=0.009)
    assert float(is_itself.float().mean()) == pytest.approx(0.1 + 0.1 / 96, abs=0.007)
    assert set(others.tolist()) == set(range(3, 99))


def test_every_position_but_the_first_has_its_turn() -> None:
    masked = mask_tokens([[1, *range(3, 99)]] * 200, TOY, generator=seeded())
    counts = torch.bincount(torch.tensor(masked.positions).flatten())
    assert counts[0] == 0
    assert counts[1:].min() > 15


def test_rows_without_words_stay_as_they_are() -> None:
    masked = mask_tokens([[5], [1, 2], [1, 5]], TOY, generator=seeded())
    assert masked.ids[:2] == [[5], [1, 2]]
    assert masked.positions == [[], [], [1]]


@pytest.mark.parametrize("mask_probability", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_shares_are_refused(mask_probability: float) -> None:
    with pytest.raises(BellmError, match="is out of range"):
        mask_tokens(ROWS, TOY, mask_probability=mask_probability, generator=seeded())


# Loss


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("layers", [(), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_losses_and_gradients_are_those_of_the_full_logits(name: str, layers: tuple[int, ...], packs: bool) -> None:
    model = open_layers(tiny(name), layers)
    masked = mask_tokens(TEXTS, MaskingVocabulary(4, torch.arange(3, 99)), generator=seeded())
    ids_BL, mask_BL = pad_rows(masked.ids, 0, CPU)
    labels_BL = torch.full_like(ids_BL, -100)
    for number, (positions, hidden) in enumerate(zip(masked.positions, masked.targets, strict=True)):
        labels_BL[number, positions] = torch.tensor(hidden, dtype=torch.long)
    logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
    wanted = cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), reduction="none")
    wanted = wanted[labels_BL[:, 1:].flatten() != -100]
    order: Sequence[int] = range(len(TEXTS))
    through = padded(model, masked)
    if packs:
        spans = [(0, len(ids)) for ids in masked.ids]
        through = PackedRunner(
            PackedModel(model),
            Tokens(masked.ids, spans, 0),
            HiddenStateReadout("last", count_layers(model)),
            training=True,
        )
        (order,) = through.batches(order, 1 << 20)
    found = prediction_losses(through, masked, order)
    found = torch.cat(
        [found.split([len(masked.targets[row]) for row in order])[order.index(row)] for row in sorted(order)]
    )
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=1e-5, rtol=0)
    weights = list(model.parameters())
    for ours, theirs in zip(gradients(found, weights), gradients(wanted, weights), strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * max(1.0, float(theirs.norm()))


def gradients(losses: Tensor, weights: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(losses.mean(), weights, allow_unused=True)
    assert any(grad is not None and bool(grad.any()) for grad in found)
    return [torch.zeros(1) if grad is None else grad for grad in found]


def test_nothing_hidden_is_nothing_lost() -> None:
    nothing = PredictedRows([[1, 2], [1]], [[], []], [[], []])
    assert prediction_losses(padded(tiny("llama"), nothing), nothing, [0, 1]).shape == (0,)


def test_a_model_without_head_is_refused() -> None:
    masked = mask_tokens(TEXTS, TOY, generator=seeded())
    with pytest.raises(BellmError, match="LlamaModel has no language-model head"):
        prediction_losses(padded(LlamaModel(tiny("llama").config), masked), masked, [0])


# What it teaches

SYMBOLS, FIRST, BLANK = 8, 3, 15


def pairs(count: int, generator: torch.Generator) -> list[list[int]]:
    """Rows of symbols that come twice: the first of two is told by the token after it, and by none before."""
    drawn = torch.randint(FIRST, FIRST + SYMBOLS, (count, 8), generator=generator)
    return [[1, *row.repeat_interleave(2).tolist()] for row in drawn]


def firsts_masked() -> PredictedRows:
    """One first of two hidden in each of 200 rows."""
    rows = pairs(200, seeded(1))
    places = [1 + 2 * (number % 8) for number in range(len(rows))]
    ids = [[*row[:place], BLANK, *row[place + 1 :]] for row, place in zip(rows, places, strict=True)]
    hidden = [[row[place]] for row, place in zip(rows, places, strict=True)]
    return PredictedRows(ids, [[place] for place in places], hidden)


def trained(numbers: tuple[int, ...], steps: int) -> LlamaForCausalLM:
    """A model of two layers, trained with some of them open."""
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_layers(LlamaForCausalLM(config), numbers)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = seeded()
    vocabulary = MaskingVocabulary(BLANK, torch.arange(FIRST, FIRST + SYMBOLS))
    for _ in range(steps):
        masked = mask_tokens(pairs(32, generator), vocabulary, generator=generator)
        loss = prediction_losses(padded(model, masked), masked, range(32)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@pytest.mark.parametrize(
    ("numbers", "steps", "low", "high"), [((), 80, 2.05, 2.6), ((0, 1), 250, 0.0, 0.8)], ids=["causal", "open"]
)
def test_open_layers_learn_what_only_the_next_token_tells(
    numbers: tuple[int, ...], steps: int, low: float, high: float
) -> None:
    """Without the token after it a symbol is one of eight: no causal model is below log 8 = 2.08 on average."""
    model = trained(numbers, steps)
    with torch.no_grad():
        masked = firsts_masked()
        assert low < float(prediction_losses(padded(model, masked), masked, range(200)).mean()) < high


# Opening


@pytest.mark.parametrize("total", [0, 1, 3, 8, 10, 100])
def test_layers_open_evenly_and_stay_open(total: int) -> None:
    numbers = (9, 2, 5, 3, 8, 7, 6, 12)
    steps = [gradual_layers(step, total, numbers) for step in range(total + 2)]
    assert all(set(before) <= set(after) for before, after in pairwise(steps))
    assert steps[max(total - 1, 0)] == steps[-1] == tuple(sorted(numbers))
    for step, layers in enumerate(steps[:total]):
        assert 0 <= len(layers) - len(numbers) * (step + 1) / total < 1
        kept = sorted(numbers, reverse=True)[: len(layers)]
        assert layers == tuple(sorted(kept))


def test_a_map_without_layers_has_nothing_to_open() -> None:
    assert gradual_layers(3, 10, ()) == ()
