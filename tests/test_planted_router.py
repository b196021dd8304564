"""A mixture of experts whose routers know the topic of a text and whose final states do not.

Words have a topic and a mood. The topic is in the first numbers of an embedding, which the rows of every gate read and
the final norm drops; the mood is in the numbers after them.
"""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder, MultiViewEncoder
from bellm.tensors.similarity import normalize_rows
from bellm.types import Embedder, PoolingName

TOPICS, MOODS, WORDS_EACH = 4, 4, 6
POOLINGS: tuple[PoolingName, ...] = ("last", "mean")


def planted_model() -> OlmoeForCausalLM:
    """Two layers, in which every token attends to all before it alike and carries their topics and moods on."""
    config = OlmoeConfig(
        vocab_size=1 + (TOPICS + MOODS) * WORDS_EACH,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=TOPICS,
        num_experts_per_tok=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = OlmoeForCausalLM(config).eval()
        embeddings = model.get_input_embeddings().weight.normal_(std=0.3)
        for kind in range(TOPICS + MOODS):
            first = 1 + kind * WORDS_EACH
            embeddings[first : first + WORDS_EACH, kind] += 2.0
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()  # Every score is 0.
            layer.self_attn.v_proj.weight.copy_(torch.eye(16))
            layer.self_attn.o_proj.weight.copy_(torch.eye(16))
            layer.mlp.experts.down_proj.zero_()  # What an expert adds would tell which one it was.
            layer.mlp.gate.weight.copy_(4 * torch.eye(TOPICS, 16))
        model.model.norm.weight[:TOPICS] = 0
    return model


def planted_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0}
    for kind in (*(f"topic{number}" for number in range(TOPICS)), *(f"mood{number}" for number in range(MOODS))):
        vocabulary |= {f"{kind}-{word}": len(vocabulary) + word for word in range(WORDS_EACH)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=64)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_pretrained(planted_model(), tokenizer=planted_tokenizer(), prompt="raw")


def planted_texts() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts of words of one topic and one mood in any order, with both."""
    draw = np.random.default_rng(0)
    topics, moods = (draw.integers(number, size=60) for number in (TOPICS, MOODS))
    texts = []
    for topic, mood in zip(topics, moods, strict=True):
        words = [f"topic{topic}-{word}" for word in draw.integers(WORDS_EACH, size=4)]
        words += [f"mood{mood}-{word}" for word in draw.integers(WORDS_EACH, size=4)]
        texts.append(" ".join(draw.permutation(words)))
    return texts, topics, moods


def cosines_of_pairs(embedder: Embedder, texts: list[str]) -> np.ndarray:
    unit_ND = normalize_rows(embedder.encode(texts))
    return (unit_ND @ unit_ND.T)[np.triu_indices(len(texts), 1)]


def told_apart(embedder: Embedder, texts: list[str], kinds: np.ndarray) -> float:
    """How often two texts of one kind are nearer than two of different kinds; 0.5 is chance."""
    same = np.equal.outer(kinds, kinds)[np.triu_indices(len(kinds), 1)]
    cosines = cosines_of_pairs(embedder, texts)
    return float(mannwhitneyu(cosines[same], cosines[~same]).statistic / same.sum() / (~same).sum())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_routing_recovers_what_the_states_lack(encoder: Encoder, pooling: PoolingName) -> None:
    texts, topics, moods = planted_texts()
    hidden = encoder.replace(pooling=pooling)
    routing = hidden.replace(readout="routing")
    assert told_apart(routing, texts, topics) > 0.95
    assert told_apart(hidden, texts, moods) > 0.95
    assert abs(told_apart(hidden, texts, topics) - 0.5) < 0.05
    assert abs(told_apart(routing, texts, moods) - 0.5) < 0.05


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_sum_knows_more_than_either(encoder: Encoder, pooling: PoolingName) -> None:
    texts, topics, moods = planted_texts()
    shared = np.equal.outer(topics, topics).astype(int) + np.equal.outer(moods, moods)
    wanted = shared[np.triu_indices(len(texts), 1)]
    both = MultiViewEncoder.moee(encoder.replace(pooling=pooling), alpha=1.0)
    hidden, routing, summed = (
        spearmanr(cosines_of_pairs(each, texts), wanted).statistic for each in (*both.embedders, both)
    )
    assert summed > max(hidden, routing) + 0.1
