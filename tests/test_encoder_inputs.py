"""What users hand to an encoder: texts in any container, tokenizers, settings, special tokens, vectors."""

import copy
import dataclasses
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder, EncoderPool
from bellm.backbone.states import token_states
from bellm.corpus import embed_corpus
from bellm.errors import BellmError, BellmWarning, LayerError, NoOpWarning, PromptError, SourceError
from bellm.text_files import embed_file
from bellm.train import Recipe
from tests.conftest import train_tokenizer

TEXTS = ["A heron.", "Snow fell all night in the street.", "", "Why does it rise?"]


# Containers of texts


@pytest.mark.parametrize(
    "hold",
    [
        tuple,
        iter,
        lambda texts: (text for text in texts),
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: pd.Series(texts, index=[9, 8, 7, 6]),
        lambda texts: pl.Series(texts),
        pa.array,
        lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
        lambda texts: dict.fromkeys(texts).keys(),
    ],
)
def test_any_iterable_of_strings_is_a_list_of_texts(tiny_encoder: Encoder, hold: Callable[[list[str]], Any]) -> None:
    wanted = tiny_encoder.encode(TEXTS)
    assert np.array_equal(tiny_encoder.encode(hold(TEXTS)), wanted)
    assert np.array_equal(tiny_encoder.encode_query(hold(TEXTS)), wanted)


def test_a_set_is_embedded_in_its_own_order(tiny_encoder: Encoder) -> None:
    texts = set(TEXTS)
    assert np.array_equal(tiny_encoder.encode(texts), tiny_encoder.encode(list(texts)))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (None, "got NoneType"),
        (3, "got int"),
        (object(), "got object"),
        ({"text": "A heron."}, "got a dict. Give one column"),
        (pd.DataFrame({"text": TEXTS}), "got a DataFrame. Give one column"),
        (pl.DataFrame({"text": TEXTS}), "got a DataFrame. Give one column"),
        (pa.table({"text": TEXTS}), "got a Table. Give one column"),
        (np.array([TEXTS]), "got a ndarray. Give one column"),
        (pd.Series(["A heron.", None]), r"texts\[1\] is (NoneType|float), not a string"),
        ([["A heron.", "A bird."]], r"texts\[0\] is list"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_texts_is_refused_in_one_line(tiny_encoder: Encoder, texts: Any, said: str) -> None:
    with pytest.raises(BellmError, match=said) as caught:
        tiny_encoder.encode(texts)
    assert "\n" not in str(caught.value)


def test_a_pool_takes_a_generator(tiny_encoder: Encoder) -> None:
    with EncoderPool(tiny_encoder, ["cpu"]) as pool:
        found = pool.encode(text for text in TEXTS)
    np.testing.assert_allclose(found, tiny_encoder.encode(TEXTS), rtol=0, atol=1e-5)


# Tokenizers


def test_another_thread_that_truncates_with_the_tokenizer_changes_no_vector(tiny_model: LlamaForCausalLM) -> None:
    encoder = Encoder.from_pretrained(tiny_model, tokenizer=train_tokenizer())
    wanted, stop = encoder.encode(TEXTS), threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            encoder.tokenizer(TEXTS, truncation=True, max_length=3, padding=True)

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        found = [encoder.encode(TEXTS) for _ in range(40)]
    finally:
        stop.set()
        thread.join()
    assert all(np.array_equal(vectors, wanted) for vectors in found)


def test_a_tokenizer_that_is_changed_later_changes_no_vector(tiny_model: LlamaForCausalLM) -> None:
    tokenizer = train_tokenizer()
    encoder = Encoder.from_pretrained(tiny_model, tokenizer=tokenizer)
    wanted = encoder.encode(TEXTS)
    tokenizer.add_tokens(["heron"])
    tokenizer.backend_tokenizer.post_processor = None  # type: ignore[assignment]
    assert np.array_equal(encoder.encode(TEXTS), wanted)
    assert np.array_equal(encoder.replace(normalize=True).replace(normalize=False).encode(TEXTS), wanted)


def test_another_tokenizer_makes_another_encoder(tiny_encoder: Encoder) -> None:
    other = train_tokenizer()
    other.backend_tokenizer.post_processor = None  # type: ignore[assignment]
    with pytest.raises(
        BellmError, match=r"encoder\.tokenizer cannot be set. Write encoder = Encoder\.from_pretrained\("
    ):
        tiny_encoder.tokenizer = other
    encoder = Encoder.from_pretrained(tiny_encoder.model, tokenizer=other, config=tiny_encoder.config)
    assert encoder.replace(prompt="raw").tokenize(["A heron."]).ids[0][0] != 1
    assert tiny_encoder.replace(prompt="raw").tokenize(["A heron."]).ids[0][0] == 1


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(SourceError, match=r"ids up to 399, and the model embeds 300 tokens.*resize_token_embeddings"):
        Encoder.from_pretrained(LlamaForCausalLM(config), tokenizer=tiny_tokenizer)


def test_special_tokens_that_no_text_can_reach_need_no_embedding(tiny_model: LlamaForCausalLM) -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<late>"]})
    encoder = Encoder.from_pretrained(tiny_model, tokenizer=tokenizer)
    assert np.isfinite(encoder.encode(["A <late> heron."])).all()


@pytest.mark.parametrize("typed", ["</s>", "<s>", "<pad>"])
def test_special_tokens_in_a_text_are_text(tiny_encoder: Encoder, typed: str) -> None:
    text, ids = f"A {typed} heron.", tiny_encoder.tokenizer.convert_tokens_to_ids(typed)
    [row] = tiny_encoder.replace(prompt="raw").tokenize([text]).ids
    assert ids not in row[1:]
    assert tiny_encoder.tokenizer.decode(row[1:]) == text


def test_special_tokens_of_the_prompt_are_tokens_and_those_of_texts_are_counted(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="{text}</s>")
    assert encoder.tokenize(["A heron."]).ids[0][-1] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["A heron."])
    with pytest.warns(BellmWarning, match="1 of 2 texts hold special tokens"):
        encoder.encode(["A heron.", "A </s> heron."])


@pytest.mark.parametrize(
    ("positions", "said"),
    [(64, "the model's 64 positions"), (4096, r"the tokenizer's 128 tokens \(model_max_length\)")],
)
def test_a_limit_is_said_with_whose_it_is(tiny_tokenizer: PreTrainedTokenizerFast, positions: int, said: str) -> None:
    config = LlamaConfig(
        vocab_size=400, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=positions,
    )  # fmt: skip
    with pytest.raises(BellmError, match=f"max_tokens=5000 is more than {said}"):
        Encoder.from_pretrained(LlamaForCausalLM(config), tokenizer=tiny_tokenizer, max_tokens=5000)


# Settings


@pytest.mark.parametrize("name", ["pooling", "bidirectional", "max_tokens", "normalize", "prompt", "config"])
def test_a_setting_is_not_changed_in_place(tiny_encoder: Encoder, name: str) -> None:
    with pytest.raises(BellmError, match=rf"encoder\.{name} cannot be set. Write encoder = encoder\.replace\("):
        setattr(tiny_encoder, name, getattr(tiny_encoder.config, name, tiny_encoder.config))


def test_settings_that_are_kept_together_cannot_be_set_one_by_one(tiny_encoder: Encoder) -> None:
    with pytest.raises(
        BellmError, match=r"^EncoderConfig\.pooling cannot be set\. .*encoder\.replace\(pooling='mean'\)\.$"
    ):
        tiny_encoder.config.pooling = "mean"  # type: ignore[misc]
    recipe = Recipe(epochs=2)
    with pytest.raises(
        BellmError, match=r"^Recipe\.epochs cannot be set\. .*dataclasses\.replace\(recipe, epochs=3\)\.$"
    ):
        recipe.epochs = 3  # type: ignore[misc]
    assert dataclasses.replace(recipe, epochs=3).epochs == 3
    assert (tiny_encoder.config.pooling, recipe.epochs) == ("last", 2)


def test_another_model_makes_another_encoder(tiny_encoder: Encoder) -> None:
    with tiny_encoder.causal() as plain:
        with pytest.raises(
            BellmError, match=r"encoder\.model cannot be set. Write encoder = Encoder\.from_pretrained\("
        ):
            tiny_encoder.model = plain  # type: ignore[misc]
        with pytest.raises(LayerError, match=r"open layers \(none and 2-3\) or .* Write encoder ="):
            tiny_encoder.with_model(plain)
    same = tiny_encoder.with_model(copy.deepcopy(tiny_encoder.model))
    assert same.model is not tiny_encoder.model
    assert np.array_equal(same.encode(TEXTS), tiny_encoder.encode(TEXTS))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"bidirectional": 3.5}, LayerError),
        ({"bidirectional": 8}, LayerError),
        ({"bidirectional": [1.5]}, LayerError),
        ({"bidirectional": ["last"]}, LayerError),
        ({"prompt": 5}, PromptError),
        ({"prompt": ["a {text}"]}, PromptError),
        ({"pooling": 3}, BellmError),
        ({"layer": "two"}, BellmError),
        ({"max_tokens": 64.0}, BellmError),
        ({"normalize": "yes"}, BellmError),
        ({"truncate_dim": True}, BellmError),
    ],
    ids=str,
)
def test_a_setting_of_another_type_is_one_line(
    tiny_encoder: Encoder, settings: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        tiny_encoder.replace(**settings)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_dtypes_of_torch_are_understood(tiny_encoder: Encoder, tiny_folder: Path) -> None:
    encoder = tiny_encoder.replace(bidirectional=np.arange(2, 4), max_tokens=np.int64(64), layer=np.int32(4))
    assert encoder.config == tiny_encoder.replace(max_tokens=64, layer=4).config
    assert encoder.config.digest() == tiny_encoder.replace(max_tokens=64, layer=4).config.digest()
    assert Encoder.from_pretrained(tiny_folder, device="cpu", dtype=torch.bfloat16).dtype_name == "bfloat16"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"config": {"pooling": "mean"}},
        {"device": None},
        {"device": 1.5},
        {"dtype": None},
        {"dtype": np.float32},
        {"tokenizer": "gpt2"},
        {"poolng": "mean"},
        {"revision": 3},
    ],
    ids=str,
)
def test_an_argument_of_another_type_is_one_line(tiny_folder: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(BellmError) as caught:
        Encoder.from_pretrained(tiny_folder, **arguments)
    assert "\n" not in str(caught.value)


def test_other_arguments_of_encode_are_one_line(tiny_encoder: Encoder) -> None:
    with pytest.raises(PromptError, match="input_type='doc' is not one of text, query, document"):
        tiny_encoder.encode(TEXTS, input_type="doc")  # type: ignore[arg-type]
    with pytest.raises(BellmError, match="max_batch_tokens=lots"):
        tiny_encoder.encode(TEXTS, max_batch_tokens="lots")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bidirectional": "none", "pooling": "first"}, "vectors do not depend on the text"),
        ({"bidirectional": (3,), "pooling": "first", "layer": 2}, "vectors do not depend on the text"),
        ({"bidirectional": "all", "pooling": "last", "layer": 0}, "the embedding of the last token alone"),
    ],
    ids=str,
)
def test_vectors_that_cannot_depend_on_the_text_are_warned_about(
    tiny_encoder: Encoder, settings: dict[str, Any], said: str
) -> None:
    with pytest.warns(NoOpWarning, match=said):
        encoder = tiny_encoder.replace(**settings)
    with pytest.warns(NoOpWarning, match="All texts have the same vector, although they differ"):
        vectors = encoder.encode(TEXTS)
    assert np.abs(vectors - vectors[0]).max() < 1e-6


def test_the_first_token_of_open_layers_is_no_reason_to_warn(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(pooling="first")
    assert np.abs(encoder.encode(TEXTS)[1] - encoder.encode(TEXTS)[0]).max() > 1e-3


def zero_the_last_norm(model: LlamaForCausalLM) -> None:
    model.model.norm.weight.zero_()


def make_all_tokens_alike(model: LlamaForCausalLM) -> None:
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[5:6].clone())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (zero_the_last_norm, "Some texts have vectors of zeros, which have no cosines"),
        (make_all_tokens_alike, "All texts have the same vector, although they differ"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_give_one_vector_or_zeros_are_warned_about(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    spoil: Callable[[LlamaForCausalLM], None],
    said: str,
    dtype: str,
) -> None:
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        spoil(model)
    encoder = Encoder.from_pretrained(model.to(getattr(torch, dtype)), tokenizer=tiny_tokenizer)
    with pytest.warns(NoOpWarning, match=f"{said}.*bellm doctor"):
        encoder.encode(["A heron.", "Snow."])
    (tmp_path / "t.txt").write_text("A heron.\nSnow.\n")
    with pytest.warns(NoOpWarning, match=said):
        embed_file(encoder, [str(tmp_path / "t.txt")], str(tmp_path / "v.npy"))
    with pytest.warns(NoOpWarning, match=said):
        embed_corpus(encoder, [tmp_path / "t.txt"], tmp_path / "corpus")


def test_vectors_of_one_text_or_of_long_texts_that_differ_in_a_word_are_no_reason_to_warn(
    tiny_encoder: Encoder,
) -> None:
    tiny_encoder.encode([])
    tiny_encoder.encode(["A heron."])
    tiny_encoder.encode(["A heron.", "A heron."])
    long = "a " * 80
    vectors = tiny_encoder.replace(pooling="mean", bidirectional="none").encode([f"{long}a", f"{long}b"])
    assert np.abs(vectors[0] - vectors[1]).max() < 0.05


# Similarity


def test_similarity_takes_single_vectors_and_lists(tiny_encoder: Encoder) -> None:
    vectors = tiny_encoder.encode(TEXTS)
    wanted = tiny_encoder.similarity(vectors, vectors)
    np.testing.assert_allclose(tiny_encoder.similarity(vectors[0], vectors), wanted[:1], atol=1e-6)
    np.testing.assert_allclose(tiny_encoder.similarity(vectors.tolist(), vectors), wanted, atol=1e-6)


@pytest.mark.parametrize("spoil", [np.nan, np.inf])
def test_similarity_of_numbers_that_are_none_is_refused(tiny_encoder: Encoder, spoil: float) -> None:
    vectors = tiny_encoder.encode(TEXTS)
    broken = copy.copy(vectors)
    broken[1, 2] = spoil
    for left, right in ((vectors, broken), (broken, vectors)):
        with pytest.raises(BellmError, match="NaN or infinity have no cosines"):
            tiny_encoder.similarity(left, right)
    with pytest.raises(BellmError, match="rows of one width"):
        tiny_encoder.similarity(vectors, vectors[:, :4])


def test_an_echo_is_the_mean_over_the_text_read_again(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="echo")
    assert encoder.config.pooling == "mean-text"
    assert encoder.replace(pooling="last").config.pooling == "last"
    [vector] = encoder.encode(["The heron waits."])
    tokens = encoder.tokenize(["The heron waits."])
    start, end = tokens.spans[0]
    assert encoder.tokenizer.decode(tokens.ids[0][start:end]).strip() == "The heron waits."
    assert "The heron waits." in encoder.tokenizer.decode(tokens.ids[0][:start])
    ids_1L = torch.tensor(tokens.ids)
    states_LD = token_states(encoder.model, ids_1L, torch.ones_like(ids_1L))[0]
    np.testing.assert_allclose(vector, states_LD[start:end].mean(0).detach().numpy(), atol=1e-5)
    plain = tiny_encoder.replace(prompt="Rewrite the following sentence: {text}", pooling="mean-text")
    assert not np.allclose(vector, plain.encode(["The heron waits."])[0], atol=1e-2)
