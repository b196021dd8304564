import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from bellm.backbone import loading
from bellm.errors import BellmError, SourceError
from tests.decoders import CPU


@pytest.fixture(scope="module")
def plain_folder(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_gives_its_model_ready_for_inference(plain_folder: Path, tiny_model: LlamaForCausalLM) -> None:
    loaded = loading.load_pretrained(plain_folder, dtype="float32", device="cpu")
    assert isinstance(loaded.model, LlamaForCausalLM)
    assert not loaded.model.training
    assert loaded.name == str(plain_folder)
    with torch.inference_mode():
        ids_1L = torch.arange(3, 20)[None]
        assert torch.equal(loaded.model(ids_1L).logits, tiny_model(ids_1L).logits)


def test_a_checkpoint_without_head_is_loaded_without_one(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    AutoModel.from_config(tiny_model.config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert isinstance(loading.load_pretrained(tmp_path, device="cpu").model, LlamaModel)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_and_attention_are_those_asked_for(plain_folder: Path, dtype: str, backend: str) -> None:
    model = loading.load_pretrained(plain_folder, dtype=dtype, device="cpu", attention=backend).model
    assert model.dtype == getattr(torch, dtype)
    assert model.config._attn_implementation == backend


def test_given_tokenizer_replaces_the_folders_own(plain_folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert loading.load_pretrained(plain_folder, tokenizer=tiny_tokenizer, device="cpu").tokenizer is tiny_tokenizer


@pytest.mark.parametrize("source", ["./nowhere", "/no/where", "nowhere", "a/b/c", "~/nowhere"])
def test_nothing_there_is_said_with_what_would_do(source: str) -> None:
    with pytest.raises(SourceError, match=r"is no folder, GGUF file, Hub id \(owner/name\) or alias \(smollm2\)"):
        loading.load_pretrained(source)


def test_a_file_that_is_no_gguf_is_refused(plain_folder: Path) -> None:
    with pytest.raises(SourceError, match="is a file, but not a GGUF file"):
        loading.load_pretrained(plain_folder / "config.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "no-such-model"}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": 64, "vocab_size": 300, "num_attention_heads": 4}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"garbage" * 10),
        ("tokenizer.json", b"{"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_spoilt_files_are_refused_in_one_line(plain_folder: Path, tmp_path: Path, name: str, content: bytes) -> None:
    for path in plain_folder.iterdir():
        (tmp_path / path.name).write_bytes(content if path.name == name else path.read_bytes())
    with pytest.raises(SourceError, match="cannot be loaded") as caught:
        loading.load_pretrained(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files_are_refused(plain_folder: Path, tmp_path: Path, missing: str) -> None:
    for path in plain_folder.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BellmError):
        loading.load_pretrained(tmp_path, device="cpu")


def test_pickled_weights_are_not_read(plain_folder: Path, tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    for path in plain_folder.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(tiny_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match="cannot be loaded"):
        loading.load_pretrained(tmp_path, device="cpu")


def test_dtype_and_device_that_do_not_exist_are_refused(plain_folder: Path) -> None:
    with pytest.raises(SourceError, match="dtype='int7' is not one of auto, float32, bfloat16, float16"):
        loading.load_pretrained(plain_folder, dtype="int7", device="cpu")
    with pytest.raises(SourceError, match="device='abacus' is not known to torch"):
        loading.load_pretrained(plain_folder, device="abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_what_torch_was_built_for_is_not_taken_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._C._accelerator_getAccelerator", lambda: torch.device("cuda"))  # As in a build for it.
    assert loading.resolve_device("auto") == CPU


def test_auto_dtype_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, dtype in (({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert loading.resolve_dtype("auto", CPU) == dtype


def test_a_tokenizer_without_offsets_is_refused(tiny_model: LlamaForCausalLM) -> None:
    class Slow:
        is_fast = False

    slow: Any = Slow()
    with pytest.raises(SourceError, match="Slow gives no character offsets"):
        loading.load_pretrained(tiny_model, tokenizer=slow)


def test_longest_input_is_the_shorter_of_model_and_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def limit(positions: int) -> int:
        config = LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            max_position_embeddings=positions,
        )  # fmt: skip
        return loading.max_positions(LlamaForCausalLM(config), tiny_tokenizer)

    assert limit(64) == 64
    assert limit(4096) == tiny_tokenizer.model_max_length == 128


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("meta", "holds no weights"),
        ("toaster", "not known to torch"),
        pytest.param(
            "cuda", "cannot be moved to cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
        ),
    ],
)
def test_a_device_that_is_not_there_is_one_line(tiny_folder: Path, device: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        loading.load_pretrained(tiny_folder, device=device)
    assert "\n" not in str(caught.value)


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(SourceError, match="names no model"):
        loading.load_pretrained("")


def test_flex_attention_on_a_cpu_is_refused_at_once(
    plain_folder: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    flexible = copy.deepcopy(tiny_model)
    flexible.set_attn_implementation("flex_attention")
    for source, options in ((plain_folder, {"attention": "flex_attention", "device": "cpu"}), (flexible, {})):
        with pytest.raises(SourceError, match="attention='flex_attention' is for accelerators") as caught:
            loading.load_pretrained(source, tokenizer=tiny_tokenizer, **options)
        assert "\n" not in str(caught.value)
