"""GGUF files are converted once, and give what transformers reads from them."""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone import loading
from bellm.backbone.gguf_conversion import conversion_name
from bellm.backbone.source_names import ALIASES
from bellm.errors import BellmWarning, SourceError
from bellm.io import cache
from bellm.io.cache import cache_entries

TEXTS = ["A heron.", "Snow fell all night in the street."]
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a Llama with a byte-level BPE as llama.cpp does, its weights in float16."""
    config, bpe = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([3] * 3 + [1] * (len(bpe["vocab"]) - 3))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    for add, token_id in ((writer.add_pad_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(token_id)
    for name, weight in model.state_dict().items():
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        short = NAMES.get(name) or f"blk.{layer}.{PARTS[part.removesuffix('.weight')]}.weight"
        if "q_proj" in name or "k_proj" in name:  # llama.cpp has the halves of a head one by one.
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        kind = torch.float32 if weight.ndim == 1 else torch.float16
        writer.add_tensor(short, weight.to(kind).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def file(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path: Path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_model, tiny_tokenizer)
    return path


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that gguf parses, each time."""
    parsed: list[Path] = []
    reader = gguf.GGUFReader

    def read(path: Any, *arguments: Any) -> Any:
        parsed.append(path)
        return reader(path, *arguments)

    monkeypatch.setattr(gguf, "GGUFReader", read)
    return parsed


def load(file: Path, **options: Any) -> Encoder:
    return Encoder.from_pretrained(file, device="cpu", prompt="raw", **{"dtype": "float32", **options})


def test_a_file_is_converted_once_and_gives_what_it_holds(
    file: Path, parses: list[Path], tiny_model: LlamaForCausalLM, capfd: pytest.CaptureFixture[str]
) -> None:
    first = load(file)
    assert len(parses) == 1
    said = capfd.readouterr().err
    assert "GGUF" not in said
    assert "Writing" not in said
    [entry] = cache_entries(["models"])
    written = (entry.path / "model.safetensors").stat().st_mtime_ns
    second = load(file)
    assert len(parses) == 1
    assert (entry.path / "model.safetensors").stat().st_mtime_ns == written
    whole, options = Path(file), {"trust_remote_code": False}
    model, tokenizer = loading._read_gguf(whole, "tiny", torch.float32, options)
    for encoder in (first, second):
        assert encoder.name == str(file)
        assert encoder.model.name_or_path == str(file)
        found, wanted = encoder.model.state_dict(), model.state_dict()
        assert {name: torch.equal(found[name], wanted[name]) for name in wanted} == dict.fromkeys(wanted, True)
        assert encoder.tokenizer(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    expected, found = tiny_model.state_dict(), first.model.state_dict()
    assert all(torch.allclose(weight, expected[name], atol=1e-3) for name, weight in found.items())


def test_dtypes_are_those_of_the_file_rounded_once(file: Path) -> None:
    whole, options = Path(file), {"trust_remote_code": False}
    wanted, _ = loading._read_gguf(whole, "tiny", torch.bfloat16, options)
    found = load(file, dtype="bfloat16").model.state_dict()
    assert all(torch.equal(weight, found[name]) for name, weight in wanted.state_dict().items())


def test_another_file_of_the_same_name_is_another(
    file: Path, tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    load(file)
    other = LlamaForCausalLM(tiny_model.config)
    (tmp_path / "other").mkdir()
    write_gguf(tmp_path / "other" / "tiny.gguf", other, tiny_tokenizer)
    encoder = load(tmp_path / "other" / "tiny.gguf")
    assert len(cache_entries(["models"])) == 2
    weight = encoder.model.get_input_embeddings().weight
    assert torch.allclose(weight, other.get_input_embeddings().weight, atol=1e-3)


def test_without_room_in_the_cache_a_file_is_read_each_time(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = load(file).encode(TEXTS)
    monkeypatch.setattr(cache, "LIMIT", 1000)
    monkeypatch.setenv("BELLM_CACHE", str(folder / "small"))
    assert (load(file).encode(TEXTS) == wanted).all()
    assert cache_entries(["models"]) == []
    monkeypatch.setattr(cache, "LIMIT", 2**30)
    (folder / "file").write_text("")
    monkeypatch.setenv("BELLM_CACHE", str(folder / "file"))
    with pytest.warns(BellmWarning, match="BELLM_CACHE names another folder"):
        assert (load(file).encode(TEXTS) == wanted).all()


def test_a_spoilt_file_is_refused_and_not_kept(file: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.gguf"
    for content in (b"", b"GGUF garbage" * 9, file.read_bytes()[:20_000]):
        spoilt.write_bytes(content)
        with pytest.raises(SourceError, match=r"spoilt.gguf cannot be loaded") as caught:
            load(spoilt)
        assert "\n" not in str(caught.value)
        assert cache_entries(["models"]) == []


def test_without_gguf_what_is_converted_is_loaded_and_more_is_refused(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    load(file)
    monkeypatch.setenv("BELLM_CACHE", str(folder / "empty"))
    with pytest.raises(SourceError, match=r"needs the packages that read GGUF files: pip install 'bellm\[gguf\]'"):
        load(file)


def test_the_alias_is_its_converted_copy_before_its_package(file: Path, folder: Path) -> None:
    alias = ALIASES["smollm2"]
    load(file)
    [entry] = cache_entries(["models"])
    entry.path.rename(entry.path.with_name(conversion_name(alias.file, alias.sha256)))
    encoder = Encoder.from_pretrained("smollm2", device="cpu")
    assert (encoder.num_layers, encoder.name, encoder.model.name_or_path) == (4, "smollm2", "smollm2")
