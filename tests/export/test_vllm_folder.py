"""Folders for vLLM: flags where no layer or all are open, bellm's plugin elsewhere."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import BellmError, Encoder
from bellm.errors import MissingExtraError
from bellm.export import diagnose_export, export
from bellm.export.vllm_folder import write_vllm
from tests.decoders import with_tokens_of

PYTHON = os.environ.get("BELLM_VLLM_PYTHON")
NEEDS_VLLM = pytest.mark.skipif(
    not PYTHON and find_spec("vllm") is None,
    reason="vLLM is not installed: BELLM_VLLM_PYTHON names the Python of an environment that has it",
)


@pytest.mark.parametrize("opened", ["none", "all", "last:2"])
def test_what_config_says(tiny_encoder: Encoder, opened: str, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(bidirectional=opened, pooling="mean", normalize=True)
    manifest = write_vllm(encoder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert manifest["plugin"] == (opened == "last:2")
    assert config.get("is_causal", True) == (opened == "none")
    kinds = ("bellm_llama", ["BellmLlamaModel"]) if opened == "last:2" else ("llama", ["LlamaModel"])
    assert (config["model_type"], config["architectures"]) == kinds
    assert config.get("open_layers") == ([2, 3] if opened == "last:2" else None)
    assert json.loads((tmp_path / "1_Pooling" / "config.json").read_text())["pooling_mode"] == "mean"
    assert json.loads((tmp_path / "modules.json").read_text())[-1]["path"] == "2_Normalize"


def test_what_it_cannot_hold(
    tiny_encoder: Encoder, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.from_pretrained(with_tokens_of(tiny_tokenizer, "gpt2"), tokenizer=tiny_tokenizer)
    with pytest.raises(
        BellmError, match="vllm cannot hold some open layers of a gpt2, as of llama, mistral: take bidi"
    ):
        write_vllm(encoder.replace(bidirectional="last:2"), tmp_path)
    monkeypatch.setattr("bellm.export.parity.find_spec", lambda _: None)
    with pytest.raises(
        MissingExtraError, match="is proved in vllm, which is not installed here: name the Python of an"
    ):
        export(tiny_encoder, "vllm", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "export.json").write_text('{"format": "vllm", "tolerance": 0.001}')
    with pytest.raises(MissingExtraError, match="is proved in vllm"):  # And no folder is said to be changed.
        diagnose_export(tmp_path)


@NEEDS_VLLM
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"bidirectional": "none", "pooling": "last"},
        {"bidirectional": "all", "pooling": "mean", "prompt": "instruct", "normalize": True},
        {"bidirectional": "last:2", "pooling": "mean"},
    ],
    ids=lambda each: each["bidirectional"],
)
def test_vllm_gives_the_vectors(tiny_tokenizer: PreTrainedTokenizerFast, settings: Any, tmp_path: Path) -> None:
    config = LlamaConfig(  # Its heads are as wide as vLLM's attention on a processor asks for.
        vocab_size=len(tiny_tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    encoder = Encoder.from_pretrained(LlamaForCausalLM(config).eval(), tokenizer=tiny_tokenizer, **settings)
    parity = export(encoder, "vllm", tmp_path / "out", python=PYTHON)
    assert parity.max_difference < 1e-3
    assert parity.runtime.startswith("vllm")
