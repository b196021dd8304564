"""Texts in, vectors out: the promises of the Encoder."""

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configuration
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bellm import Encoder, Prompt
from bellm.backbone import adapters
from bellm.backbone.architecture import get_decoder, get_layers
from bellm.backbone.attention import get_open_layers
from bellm.backbone.leakage import measure_leakage
from bellm.errors import (
    BellmError,
    LayerError,
    NonFiniteError,
    NoOpWarning,
    PromptError,
    SourceError,
    TruncationWarning,
)
from bellm.multiview import open_encoder
from bellm.saved_encoder import FINGERPRINT_TEXTS

TEXTS = ["A heron.", "Snow fell all night in the street.", "", "Why does it rise?", "A heron."]
LONG = "Two trains leave the station at noon, one of them an hour late. " * 4


def relative(found: Any, wanted: Any) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def built(name: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PreTrainedModel:
    config = configuration(name)
    config.vocab_size = len(tokenizer)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


# Vectors


def test_vectors_are_float32_with_a_row_for_each_text(tiny_encoder: Encoder) -> None:
    vectors = tiny_encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, tiny_encoder.embedding_dim) == (5, 32)
    assert np.isfinite(vectors).all()


def test_bfloat16_weights_give_float32_vectors(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = built("llama", tiny_tokenizer).to(torch.bfloat16)
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="all", pooling="mean")
    assert encoder.dtype_name == "bfloat16"
    assert encoder.encode(TEXTS).dtype == np.float32


@pytest.mark.parametrize("max_batch_tokens", [1, 20, 40, None])
def test_order_and_batches_do_not_matter(tiny_encoder: Encoder, max_batch_tokens: int | None) -> None:
    wanted = tiny_encoder.encode(TEXTS)
    assert relative(tiny_encoder.encode(TEXTS, max_batch_tokens=max_batch_tokens), wanted) <= 1e-6
    assert relative(tiny_encoder.encode(TEXTS[::-1], max_batch_tokens=max_batch_tokens)[::-1], wanted) <= 1e-6
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2
    assert relative(wanted[0], wanted[4]) <= 1e-6


def test_no_text_gives_no_row_of_the_right_width(tiny_encoder: Encoder) -> None:
    unit = tiny_encoder.replace(normalize=True)
    for encode in (unit.encode, tiny_encoder.encode, tiny_encoder.encode_query, tiny_encoder.encode_document):
        assert encode([]).shape == (0, 32)
        assert encode([]).dtype == np.float32


def test_empty_text_without_prompt_is_the_bos_token(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="raw")
    with torch.inference_mode():
        wanted = get_decoder(encoder.model)(torch.tensor([[1]]), use_cache=False).last_hidden_state[0, -1]
    assert relative(encoder.encode([""])[0], wanted.numpy()) <= 1e-6


def test_normalised_vectors_have_length_one_and_keep_their_direction(tiny_encoder: Encoder) -> None:
    plain, unit = tiny_encoder.encode(TEXTS), tiny_encoder.replace(normalize=True).encode(TEXTS)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert unit.dtype == np.float32
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() <= 1e-6
    assert relative(unit * lengths, plain) <= 1e-6


def test_one_string_has_one_vector_and_is_no_list(tiny_encoder: Encoder) -> None:
    for encode in (tiny_encoder.encode, tiny_encoder.encode_query, tiny_encoder.encode_document):
        assert np.array_equal(encode("A heron."), encode(["A heron."])[0])
    with pytest.raises(BellmError, match=r"got one string\. Write \[text\]"):
        tiny_encoder.encode_with_stats("A heron.")


@pytest.mark.parametrize(("other", "kind"), [(None, "NoneType"), (3, "int"), (b"A", "bytes"), (["A"], "list")])
def test_what_is_no_string_is_refused_with_its_place(tiny_encoder: Encoder, other: Any, kind: str) -> None:
    with pytest.raises(BellmError, match=rf"texts\[2\] is {kind}, not a string"):
        tiny_encoder.encode(["A", "B", other])


def test_batches_of_none_are_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match="max_batch_tokens=0 is too small"):
        tiny_encoder.encode(TEXTS, max_batch_tokens=0)


# Prompts and length


def test_queries_get_the_instruction_and_documents_do_not(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="instruct:Find birds")
    raw = tiny_encoder.replace(prompt="raw")
    written = raw.encode([f"Instruct: Find birds\nQuery: {text}" for text in TEXTS])
    assert relative(encoder.encode_query(TEXTS), written) <= 1e-6
    assert relative(encoder.encode_document(TEXTS), raw.encode(TEXTS)) <= 1e-6
    assert relative(encoder.encode(TEXTS), raw.encode(TEXTS)) <= 1e-6
    assert relative(encoder.encode_query(TEXTS), encoder.encode_document(TEXTS)) > 1e-2


def test_documents_get_a_template_of_their_own_where_there_is_one(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt=Prompt("mine", "{text}", query="q: {text}", document="d: {text}"))
    raw = tiny_encoder.replace(prompt="raw")
    assert relative(encoder.encode_document(TEXTS), raw.encode([f"d: {text}" for text in TEXTS])) <= 1e-6
    assert relative(encoder.encode_query(TEXTS), raw.encode([f"q: {text}" for text in TEXTS])) <= 1e-6


def test_cut_texts_are_counted(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(max_tokens=40, prompt="raw")
    with pytest.warns(TruncationWarning, match="2 of 3 texts were cut to 40 tokens"):
        vectors = encoder.encode([LONG, "A heron.", LONG])
    assert np.isfinite(vectors).all()
    assert encoder.tokenize([LONG]).num_truncated == 1


def test_prompt_that_fills_the_input_is_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(PromptError, match="max_tokens=3 leaves no room for the text"):
        tiny_encoder.replace(max_tokens=3).encode(["A heron."])


def test_more_tokens_than_positions_are_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match="max_tokens=129 is more than the model's 128 positions"):
        tiny_encoder.replace(max_tokens=129)


def test_chat_prompt_is_the_tokenizers_template_with_one_bos(tiny_model: LlamaForCausalLM) -> None:
    from tests.conftest import train_tokenizer

    tokenizer = train_tokenizer()
    encoder = Encoder.from_pretrained(tiny_model, tokenizer=tokenizer)
    with pytest.raises(PromptError, match="the tokenizer has no chat template"):
        encoder.replace(prompt="chat")
    tokenizer.chat_template = "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [bot]"
    chat = encoder.replace(prompt="chat")
    assert chat.config.prompt.template == "[user] {text} [bot]"
    assert chat.tokenize(["A"]).ids[0].count(1) == 1
    assert relative(chat.encode(["A"]), encoder.replace(prompt="raw").encode(["[user] A [bot]"])) <= 1e-6
    with pytest.raises(BellmError, match="A hint would stand before the first turn"):
        chat.replace(hint="sense")


def test_a_hint_is_a_setting_like_all_others(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path) -> None:
    hinted = tiny_encoder.replace(hint="Mind the negations.")
    assert np.array_equal(
        hinted.encode(TEXTS),
        tiny_encoder.encode(TEXTS, prompt='Mind the negations. This sentence : "{text}" means in one word:"'),
    )
    hinted.save_pretrained(tmp_path / "hinted")
    again = Encoder.from_pretrained(tmp_path / "hinted")
    assert np.array_equal(again.encode(TEXTS), hinted.encode(TEXTS))
    assert np.array_equal(again.replace(hint="none").encode(TEXTS), tiny_encoder.encode(TEXTS))
    named = open_encoder(f"{tiny_folder}?hint=Mind+the+negations.")
    assert np.array_equal(named.encode(TEXTS), hinted.encode(TEXTS))


def test_fingerprint_holds_texts_and_queries(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="instruct")
    texts = list(FINGERPRINT_TEXTS)
    assert np.array_equal(encoder.fingerprint()[: len(texts)], encoder.encode(texts))
    assert np.array_equal(encoder.fingerprint()[len(texts) :], encoder.encode_query(texts))
    encoder.replace(max_tokens=8, prompt="raw").fingerprint()  # Cuts its texts without a warning.


# Settings


def test_replace_shares_weights_and_leaves_the_first_as_it_is(tiny_encoder: Encoder) -> None:
    before = tiny_encoder.encode(TEXTS)
    other = tiny_encoder.replace(bidirectional="all", pooling="mean")
    assert relative(other.encode(TEXTS), before) > 1e-2
    assert np.array_equal(tiny_encoder.encode(TEXTS), before)
    assert get_open_layers(tiny_encoder.model) == (2, 3)
    assert get_open_layers(other.model) == (0, 1, 2, 3)
    for ours, theirs in zip(other.model.parameters(), tiny_encoder.model.parameters(), strict=True):
        assert ours is theirs


def test_replace_there_and_back_gives_the_same_vectors(tiny_encoder: Encoder) -> None:
    other = tiny_encoder.replace(bidirectional="all", variant="parallel", window="open", pooling="max", prompt="raw")
    back = other.replace(
        bidirectional="last:2", variant="sequential", window="keep", pooling="last", prompt="prompteol"
    )
    assert back.config == tiny_encoder.config
    assert np.array_equal(back.encode(TEXTS), tiny_encoder.encode(TEXTS))


@pytest.mark.parametrize("variant", ["sequential", "parallel"])
def test_states_do_not_depend_on_which_states_were_pooled_before(tiny_encoder: Encoder, variant: Any) -> None:
    direct = tiny_encoder.replace(bidirectional=(0, 2), variant=variant, layer=2, pooling="mean")
    first = tiny_encoder.replace(bidirectional="none", layer=1, pooling="mean")
    first.encode(TEXTS)
    second = first.replace(bidirectional=(0, 2), variant=variant, layer=2)
    assert np.array_equal(second.encode(TEXTS), direct.encode(TEXTS))


@pytest.mark.parametrize("layer", range(-5, 5))
def test_every_layer_pools_the_state_of_transformers(tiny_encoder: Encoder, layer: int) -> None:
    encoder = tiny_encoder.replace(bidirectional="all", layer=layer, pooling="mean") if layer % 5 else None
    encoder = encoder or tiny_encoder.replace(bidirectional="none", layer=layer, pooling="mean")
    ids = torch.tensor(encoder.tokenize(TEXTS[1:2]).ids)
    with torch.inference_mode():
        output = get_decoder(encoder.model)(ids, use_cache=False, output_hidden_states=True)
    assert relative(encoder.encode(TEXTS[1:2])[0], output.hidden_states[layer][0].mean(0).numpy()) <= 1e-6


@pytest.mark.parametrize("layer", [5, -6])
def test_state_beyond_the_last_is_refused(tiny_encoder: Encoder, layer: int) -> None:
    with pytest.raises(BellmError, match=rf"layer={layer} does not exist: the model has states 0 \(embeddings\) to 4"):
        tiny_encoder.replace(layer=layer)


@pytest.mark.parametrize("spec", ["last:5", "4", "0-9", "every:0", "half", ""])
def test_map_that_does_not_fit_is_refused(tiny_encoder: Encoder, spec: str) -> None:
    with pytest.raises(LayerError, match="Direction map"):
        tiny_encoder.replace(bidirectional=spec)


def test_repr_says_everything_that_decides_the_vectors(tiny_encoder: Encoder) -> None:
    assert repr(tiny_encoder.replace(variant="parallel", prompt="angle", max_tokens=99)) == (
        "Encoder(LlamaForCausalLM, bidirectional=2-3, variant=parallel, window=keep, prompt=angle, hint=none, "
        "pooling=last, layer=-1, readout=hidden, max_tokens=99, token_prepending=0, centering=none, truncate_dim=None, "
        "normalize=False, num_layers=4, embedding_dim=32, float32 on cpu)"
    )


def test_similarity_is_the_cosine_of_every_pair(tiny_encoder: Encoder) -> None:
    vectors = tiny_encoder.encode(TEXTS)
    unit = tiny_encoder.replace(normalize=True).encode(TEXTS)
    np.testing.assert_allclose(tiny_encoder.similarity(vectors[:2], vectors), unit[:2] @ unit.T, atol=1e-6)


def test_truncated_vectors_are_the_first_numbers_and_normalized_after(tiny_encoder: Encoder) -> None:
    whole, short = tiny_encoder.encode(TEXTS), tiny_encoder.replace(truncate_dim=8)
    assert short.embedding_dim == 8
    assert np.array_equal(short.encode(TEXTS), whole[:, :8])
    unit = short.replace(normalize=True).encode(TEXTS)
    np.testing.assert_allclose(unit, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), rtol=1e-6)
    assert np.array_equal(short.replace(normalize=False, truncate_dim=32).encode(TEXTS), whole)
    # A view would keep the whole vectors, and files of safetensors would hold the first bytes of these.
    assert short.encode(TEXTS).flags.c_contiguous
    with pytest.raises(BellmError, match="truncate_dim=33 is more than the 32 numbers"):
        tiny_encoder.replace(truncate_dim=33)
    with pytest.raises(BellmError, match="truncate_dim=0 is too small"):
        tiny_encoder.replace(truncate_dim=0)


def test_with_settings_keeps_the_model(tiny_encoder: Encoder) -> None:
    other = tiny_encoder.with_settings(prompt="raw", pooling="mean", truncate_dim=8)
    assert other.model is tiny_encoder.model
    wanted = tiny_encoder.replace(prompt="raw", pooling="mean", truncate_dim=8)
    assert other.config == wanted.config
    assert np.array_equal(other.encode(TEXTS), wanted.encode(TEXTS))
    with pytest.raises(
        BellmError, match=r"bidirectional changes the model: write encoder\.replace\(bidirectional=...\)"
    ):
        tiny_encoder.with_settings(bidirectional="all")
    with pytest.raises(BellmError, match="truncate_dim=33 is more than the 32 numbers"):
        tiny_encoder.with_settings(truncate_dim=33)


# Maps that change nothing


def test_adapters_that_are_switched_off_and_on_count_each_time(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = ["A heron waits.", "Snow fell."]
    plain = Encoder.from_pretrained(copy.deepcopy(tiny_model), tokenizer=tiny_tokenizer, bidirectional="last:2").encode(
        texts
    )
    encoder = Encoder.from_pretrained(copy.deepcopy(tiny_model), tokenizer=tiny_tokenizer, bidirectional="last:2")
    encoder = encoder.with_model(adapters.add_lora(encoder.model, rank=2, alpha=4, dropout=0.0, targets="all-linear"))
    for name, weight in encoder.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    with_them = encoder.encode(texts)
    assert not np.allclose(with_them, plain, atol=0.01)
    with adapters.disable_adapters(encoder.model):
        np.testing.assert_allclose(encoder.encode(texts), plain, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode(texts), with_them)


def test_opening_the_last_layer_alone_is_said_to_change_nothing_and_changes_nothing(
    tiny_encoder: Encoder, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.warns(NoOpWarning, match="Opening only layer 3 changes nothing with last-token pooling"):
        encoder = tiny_encoder.replace(bidirectional="last:1")
    with pytest.warns(NoOpWarning, match="Opening only layer 3"):
        Encoder.from_pretrained(tiny_model, tokenizer=tiny_tokenizer, bidirectional="last:1")
    causal = tiny_encoder.replace(bidirectional="none")
    assert relative(encoder.encode(TEXTS), causal.encode(TEXTS)) <= 1e-6


def test_opening_layers_above_the_pooled_state_is_said_to_change_nothing(tiny_encoder: Encoder) -> None:
    with pytest.warns(NoOpWarning, match="taken below them"):
        encoder = tiny_encoder.replace(layer=2, pooling="mean")
    causal = tiny_encoder.replace(bidirectional="none", layer=2, pooling="mean")
    assert relative(encoder.encode(TEXTS), causal.encode(TEXTS)) == 0.0


@pytest.mark.parametrize(
    "choices", [{"pooling": "mean"}, {"bidirectional": "last:2"}, {"bidirectional": (0,)}], ids=str
)
def test_maps_that_reach_the_vector_pass_without_a_warning(tiny_encoder: Encoder, choices: dict[str, Any]) -> None:
    encoder = tiny_encoder.replace(**{"bidirectional": "last:1"} | choices)
    causal = tiny_encoder.replace(**choices | {"bidirectional": "none"})
    assert relative(encoder.encode(TEXTS), causal.encode(TEXTS)) > 1e-3


@pytest.mark.parametrize(("name", "kind"), [("lfm2", "Lfm2ShortConv"), ("qwen3_next", "Qwen3NextGatedDeltaNet")])
def test_layers_without_attention_stay_closed_and_are_named(
    tiny_tokenizer: PreTrainedTokenizerFast, name: str, kind: str
) -> None:
    model = built(name, tiny_tokenizer)
    with pytest.warns(NoOpWarning, match=rf"Layers 0,2 have no attention to open \({kind}\) and stay causal"):
        encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="all", pooling="mean")
    assert encoder.config.bidirectional == (1, 3) == get_open_layers(encoder.model)
    with pytest.raises(LayerError, match="None of the layers 0,2 has attention to open"):
        Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional=(0, 2))


def test_model_that_does_not_heed_its_mask_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LayerError, match="GPTNeoForCausalLM were opened but still do not see the future"):
        Encoder.from_pretrained(built("gpt_neo", tiny_tokenizer), tokenizer=tiny_tokenizer, bidirectional="last:2")


# The model that was given, and the causal one


def test_loaded_model_stays_as_it_was(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = built("llama", tiny_tokenizer).train()
    ids_1L = torch.arange(3, 20)[None]
    with torch.inference_mode():
        before = model(ids_1L).logits
        encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="all", variant="parallel")
        encoder.encode(TEXTS)
        assert torch.equal(model(ids_1L).logits, before)
    assert model.training
    assert not encoder.model.training
    assert get_open_layers(model) == ()
    assert all(ours is theirs for ours, theirs in zip(encoder.model.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("choices", [{}, {"bidirectional": "all"}, {"variant": "parallel"}], ids=str)
def test_causal_gives_the_untouched_model_back_exactly(
    tiny_encoder: Encoder, tiny_model: LlamaForCausalLM, choices: dict[str, Any]
) -> None:
    encoder = tiny_encoder.replace(**choices)
    before = encoder.encode(TEXTS)
    ids_1L = torch.arange(3, 20)[None]
    with encoder.causal() as model, torch.inference_mode():
        assert encoder.model is model
        assert torch.equal(model(ids_1L).logits, tiny_model(ids_1L).logits)
        baseline = encoder.encode(TEXTS)
    assert np.array_equal(encoder.encode(TEXTS), before)
    assert np.array_equal(baseline, encoder.replace(bidirectional="none").encode(TEXTS))


def test_generation_works_inside_causal_and_is_refused_outside(
    tiny_encoder: Encoder, tiny_model: LlamaForCausalLM
) -> None:
    ids_1L = torch.arange(3, 12)[None]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids_1L)}
    with tiny_encoder.causal() as model:
        written = model.generate(ids_1L, **options)
    assert torch.equal(written, tiny_model.generate(ids_1L, **options))
    with pytest.raises(LayerError, match=r"encoder\.causal\(\)"):
        tiny_encoder.model.generate(ids_1L, **options)


def test_causal_holds_in_its_own_thread_alone(tiny_encoder: Encoder) -> None:
    wanted = tiny_encoder.encode(TEXTS)
    found: list[Any] = []
    with tiny_encoder.causal():
        thread = threading.Thread(target=lambda: found.append(tiny_encoder.encode(TEXTS)))
        thread.start()
        thread.join()
        assert relative(tiny_encoder.encode(TEXTS), wanted) > 1e-2
    assert relative(found[0], wanted) <= 1e-6


def test_causal_ends_when_the_block_fails_and_may_be_nested(tiny_encoder: Encoder) -> None:
    other = tiny_encoder.replace(bidirectional="all")
    with pytest.raises(ZeroDivisionError), tiny_encoder.causal(), other.causal():
        assert get_open_layers(tiny_encoder.model) == get_open_layers(other.model) == ()
        raise ZeroDivisionError
    assert get_open_layers(tiny_encoder.model) == (2, 3)
    assert get_open_layers(other.model) == (0, 1, 2, 3)


def test_four_threads_on_open_and_causal_encoders_at_once(tiny_encoder: Encoder) -> None:
    maps = ["none", "all", "last:2", "0"]
    encoders = [tiny_encoder.replace(bidirectional=spec, pooling="mean") for spec in maps]
    wanted = [encoder.encode(TEXTS) for encoder in encoders]
    found: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        found[number] = [encoders[number].encode(TEXTS, max_batch_tokens=30) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, rounds in found.items():
        assert max(relative(vectors, wanted[number]) for vectors in rounds) <= 1e-6
    assert len(found) == 4


def test_loaded_model_needs_its_tokenizer_and_keeps_its_dtype(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(SourceError, match="A loaded model needs its tokenizer"):
        Encoder.from_pretrained(tiny_model)
    with pytest.raises(SourceError, match="keeps its dtype, device and attention"):
        Encoder.from_pretrained(tiny_model, tokenizer=tiny_tokenizer, dtype="bfloat16")


def test_half_a_character_is_refused_with_its_place(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match=r"texts\[1\] holds half a character at 2"):
        tiny_encoder.encode(["whole", "ab\ud800"])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"is_causal": False}),
        ("gpt2", {"is_causal": False}),
        ("gemma", {"use_bidirectional_attention": True}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        # transformers' own bidirectional windows reach a token further than those of its kernels, and bellm's.
        ("gemma4_text", {"is_causal": False, "sliding_window": 16, "vocab_size_per_layer_input": 400}),
    ],
    ids=str,
)
def test_a_model_that_looks_both_ways_by_its_own_config_is_open(
    kind: str, settings: dict[str, Any], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = built(kind, tiny_tokenizer, **settings)
    texts = ["A heron stands.", "Snow"]
    with torch.inference_mode():
        wanted = [get_decoder(model)(torch.tensor([tiny_tokenizer(text).input_ids])) for text in texts]
    means = torch.cat([output.last_hidden_state.mean(1) for output in wanted])
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, prompt="raw", pooling="mean")
    assert encoder.config.bidirectional == (0, 1, 2, 3)
    torch.testing.assert_close(torch.from_numpy(encoder.encode(texts)), means, rtol=1e-4, atol=1e-5)
    closed = encoder.replace(bidirectional="none")
    with encoder.causal() as causal:
        for each in (causal, closed.model):
            assert all(leakage.future <= 1e-6 for leakage in measure_leakage(each))
    assert all(leakage.future > 1e-3 for leakage in measure_leakage(model))
    asked = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="none")
    assert asked.config.bidirectional == ()
    encoder.save_pretrained(tmp_path / "saved")
    again = Encoder.from_pretrained(tmp_path / "saved", dtype="float32")
    assert again.config == encoder.config


def test_a_model_that_looks_both_ways_for_another_reason_is_refused_also_with_no_layer_open(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = copy.deepcopy(tiny_model)

    def everything(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": None, "is_causal": False}

    get_layers(model)[1].attention[0].register_forward_pre_hook(everything, with_kwargs=True)
    with pytest.raises(LayerError, match="Layers 1 of LlamaForCausalLM see the future although they were not opened"):
        Encoder.from_pretrained(model, tokenizer=tiny_tokenizer)


# Numbers


@pytest.mark.parametrize("how", ["packed", "padded"])
def test_a_surrounding_autocast_does_not_move_vectors(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, how: str
) -> None:
    kind = {"packed": tiny_model, "padded": built("gpt2", tiny_tokenizer)}[how]
    wanted = Encoder.from_pretrained(kind, tokenizer=tiny_tokenizer, bidirectional="last:2").encode(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        encoder = Encoder.from_pretrained(kind, tokenizer=tiny_tokenizer, bidirectional="last:2")
        found = encoder.encode(TEXTS)
        assert encoder.batching_mode.startswith(how)
    assert (found == wanted).all()


def changed(model: LlamaForCausalLM, factor: float, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model with the weights of one layer's MLP scaled, large enough for float16 to overflow."""
    own = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        own.model.layers[2].mlp.down_proj.weight.mul_(factor)
        own.model.layers[2].mlp.up_proj.weight.mul_(min(factor, 3e4))
    return own


@pytest.mark.parametrize("bidirectional", ["none", "all"])
@pytest.mark.parametrize(
    ("factor", "dtype", "said"),
    [
        (
            3e4,
            torch.float16,
            r"gives NaN or infinity: float16 overflows\. Load it with dtype='bfloat16' or 'float32'\.",
        ),
        (
            float("nan"),
            torch.float32,
            r"its weights hold them \(model\.layers\.2\.mlp\.\w+\.weight\)\. Load the checkp",
        ),
    ],
    ids=["float16", "nan"],
)
def test_nan_never_leaves(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    factor: float,
    dtype: torch.dtype,
    said: str,
    bidirectional: str,
) -> None:
    model = changed(tiny_model, factor, dtype)
    with pytest.raises(NonFiniteError, match=said) as caught:
        Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional=bidirectional)
    assert "\n" not in str(caught.value)
    unmeasured = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional=bidirectional, verify=False)
    with pytest.raises(NonFiniteError, match=said):
        unmeasured.encode(TEXTS)
    with pytest.raises(NonFiniteError, match=said):
        unmeasured.fingerprint()
