from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors
from transformers import LlamaForCausalLM

from bellm import Encoder
from bellm.backbone.token_prepending import PLACEHOLDER
from bellm.data import sts
from bellm.errors import BellmError, LayerError, PromptError, TruncationWarning
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.sts_task import score_sts
from bellm.tensors.similarity import paired_cosine_similarity
from tests.backbone.test_token_prepending import by_hand
from tests.conftest import train_tokenizer
from tests.evaluate.sets import write_pairs

TEXTS = ["A heron stands in the shallow water.", "Snow fell all night; in the morning it was quiet.", "Snow"]


@pytest.fixture
def causal(tiny_encoder: Encoder) -> Encoder:
    return tiny_encoder.replace(bidirectional="none")


@pytest.mark.parametrize("prompt", ["prompteol", "raw", "Read: {text}", "{text} Sum:"])
def test_the_placeholder_stands_before_the_text_and_nothing_else_changes(causal: Encoder, prompt: str) -> None:
    encoder = causal.replace(prompt=prompt)
    plain, found = encoder.tokenize(TEXTS), encoder.replace(token_prepending=4).tokenize(TEXTS)
    for ids, (start, end), wanted, (first, last) in zip(found.ids, found.spans, plain.ids, plain.spans, strict=True):
        assert ids.index(PLACEHOLDER) == first
        assert [token for token in ids if token != PLACEHOLDER] == wanted
        assert (start, end) == (first + 1, last + 1)
    if prompt == "raw":
        assert all(ids[:2] == [encoder.tokenizer.bos_token_id, PLACEHOLDER] for ids in found.ids)


def test_without_a_bos_the_placeholder_comes_first(tiny_model: LlamaForCausalLM) -> None:
    tokenizer = train_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    encoder = Encoder.from_pretrained(tiny_model, tokenizer=tokenizer, prompt="raw")
    assert all(ids[0] == PLACEHOLDER for ids in encoder.replace(token_prepending=4).tokenize(TEXTS).ids)


def test_queries_have_their_own_template(causal: Encoder) -> None:
    encoder = causal.replace(prompt="instruct")
    prepending = encoder.replace(token_prepending=3)
    assert prepending.tokenize(TEXTS, "query").ids != prepending.tokenize(TEXTS, "document").ids
    assert not np.allclose(prepending.encode_query(TEXTS), prepending.encode(TEXTS))
    np.testing.assert_allclose(prepending.encode_document(TEXTS), prepending.encode(TEXTS))


@pytest.mark.parametrize("pooling", ["last", "mean", "mean-text"])
def test_vectors_are_those_of_the_loop(tiny_model: LlamaForCausalLM, causal: Encoder, pooling: str) -> None:
    prepending = causal.replace(pooling=pooling, token_prepending=3)
    found = prepending.encode(TEXTS)
    tokens = prepending.tokenize(TEXTS)
    for vector, ids, (start, end) in zip(found, tokens.ids, tokens.spans, strict=True):
        states_LD = by_hand(tiny_model, ids, 3, causal.tokenizer.bos_token_id)[-1]
        pooled = {"last": states_LD[-1:], "mean": states_LD, "mean-text": states_LD[start:end]}[pooling]
        np.testing.assert_allclose(vector, pooled.mean(0).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prompt", ["prompteol", "raw"])
def test_a_text_without_tokens_is_as_without_prepending(causal: Encoder, prompt: str) -> None:
    encoder = causal.replace(prompt=prompt)
    found = encoder.replace(token_prepending=4).encode(["", *TEXTS])
    np.testing.assert_allclose(found[:1], encoder.encode([""]), rtol=1e-5, atol=1e-5)
    assert not np.allclose(found[1:], encoder.encode(TEXTS), atol=1e-2)


def test_long_texts_leave_room_for_the_placeholder(causal: Encoder) -> None:
    encoder = causal.replace(max_tokens=24)
    prepending = encoder.replace(token_prepending=4)
    with pytest.warns(TruncationWarning, match="1 of 3 texts were cut to 24 tokens"):
        prepending.encode([TEXTS[2], TEXTS[2], TEXTS[1] * 3])
    long = prepending.tokenize([TEXTS[1] * 3])
    assert [len(ids) for ids in long.ids] == [24]
    assert long.ids[0].count(PLACEHOLDER) == long.num_truncated == 1
    suffix = encoder.tokenize([""]).ids[0][-3:]
    assert long.ids[0][-3:] == suffix
    said = "max_tokens=2 leaves no room for the text: the prompt alone takes [0-9]+ tokens and Token Prepending 1\\."
    with pytest.raises(PromptError, match=said):
        causal.replace(max_tokens=2).replace(token_prepending=4).encode(TEXTS)


def test_no_texts_and_wrong_texts(causal: Encoder) -> None:
    prepending = causal.replace(token_prepending=4)
    assert prepending.encode([]).shape == (0, causal.embedding_dim)
    with pytest.raises(BellmError, match="got one string"):
        prepending.encode_with_stats("A heron")


def test_an_encoder_with_open_layers_is_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(LayerError, match=r"layers 2-3 are open. Set bidirectional='none'"):
        tiny_encoder.replace(token_prepending=4)


def test_it_is_ready_for_evaluation(causal: Encoder, tmp_path: Path) -> None:
    write_pairs(tmp_path, "dev")
    dev = sts.read_sts("STSBenchmark-dev", tmp_path)
    prepending = causal.replace(token_prepending=4)
    found = score_sts(EvaluatedModel.of(prepending), dev)
    wanted = paired_cosine_similarity(prepending.encode(dev.left), prepending.encode(dev.right))
    np.testing.assert_allclose(found.item_scores_N, wanted, atol=1e-5)
