"""GGUF files hold causal and wholly open models with their pooling, equal in llama.cpp and in transformers' reader."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from bellm import BellmError, Encoder
from bellm.export import runtimes
from bellm.export.gguf_file import write_gguf
from tests.decoders import with_tokens_of
from tests.export.exports import compared, exported

HELD: list[dict[str, Any]] = [
    {"bidirectional": "none", "pooling": "last", "prompt": "prompteol"},
    {"bidirectional": "all", "pooling": "mean", "prompt": "instruct", "hint": "Mind it.", "normalize": True},
    {"bidirectional": "all", "pooling": "first", "prompt": "raw", "truncate_dim": 12},
]


@pytest.mark.parametrize("settings", HELD, ids=lambda each: " ".join(map(str, each.values())))
def test_readers_give_the_vectors(
    tiny_encoder: Encoder, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exported(tiny_encoder.replace(**settings), "gguf", tmp_path / "out")
    assert found["runtime"].startswith("llama_cpp_python " if find_spec("llama_cpp") else "transformers ")
    assert found["max_difference"] < 1e-4
    monkeypatch.setattr(runtimes, "find_spec", lambda _: None)
    found = compared((tmp_path / "out").rename(tmp_path / "again")).to_json()
    assert found["runtime"].startswith("transformers ")
    assert found["max_difference"] < 1e-5


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3"])
def test_architectures(name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        name,
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=300,  # llama.cpp takes means of multiples of 256 tokens.
        initializer_range=0.15,
        sliding_window=None,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="all", pooling="mean")
    assert exported(encoder, "gguf", tmp_path / "out")["max_difference"] < 1e-4


def test_numbers_are_of_the_dtype_or_of_few_bits(tiny_encoder: Encoder, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(bidirectional="all")
    forms = {}
    for dtype, bits in (("float32", None), ("bfloat16", None), ("float16", None), ("float32", 8), ("float32", 4)):
        folder = tmp_path / f"{dtype}-{bits}"
        folder.mkdir()
        write_gguf(encoder.to(dtype=dtype), folder, bits)
        tensors = {tensor.name: tensor for tensor in GGUFReader(folder / "model.gguf").tensors}
        assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
        forms[dtype, bits] = tensors["blk.0.ffn_up.weight"].tensor_type.name
    assert list(forms.values()) == ["F32", "BF16", "F16", "Q8_0", "Q4_0"]


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("gpt-2", [pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        ("smollm", [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        (
            "llama-bpe",
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        ),
    ],
)
def test_texts_are_split_as_before(
    name: str, steps: list[Any], tiny_encoder: Encoder, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    names = {key: getattr(tiny_tokenizer, key) for key in ("pad_token", "bos_token", "eos_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128, **names)
    with tiny_encoder.causal() as model:
        encoder = Encoder.from_pretrained(model, tokenizer=tokenizer, bidirectional="none")
    assert exported(encoder, "gguf", tmp_path / "out")["max_difference"] < 1e-4
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == name


def test_what_llama_cpp_does_otherwise_is_refused(
    tiny_encoder: Encoder, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encoder = Encoder.from_pretrained(with_tokens_of(tiny_tokenizer, "bloom"), tokenizer=tiny_tokenizer)
    with pytest.raises(BellmError, match="gguf cannot hold a bloom: it takes llama, mistral, qwen2, qwen3"):
        write_gguf(encoder.replace(bidirectional="none"), tmp_path)
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    with tiny_encoder.causal() as model:
        other = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="<pad>")
        encoder = Encoder.from_pretrained(model, tokenizer=other, bidirectional="none")
    with pytest.raises(
        BellmError, match=r"gguf cannot hold the tokenizer of this model .* byte-level BPE that splits as"
    ):
        write_gguf(encoder, tmp_path)
    assert np.array_equal(list(tmp_path.iterdir()), [])
