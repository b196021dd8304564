"""Saved encoders: what comes back, what is refused, and what a failure leaves behind."""

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder, saving
from bellm.backbone.attention import get_open_layers
from bellm.errors import BellmError, FingerprintError, SourceError
from bellm.saved_encoder import read_saved
from bellm.saving import weights_differ, weights_digest
from bellm.tensors.similarity import relative_distance, tolerances
from tests.processes import run

TEXTS = ["A heron.", "Snow fell all night in the street.", "", "Why does it rise?"]


@pytest.fixture
def saved(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the saved encoder that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def change(path: Path, **facts: Any) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | facts), encoding="utf-8")


# What comes back


def test_a_new_process_gives_the_same_vectors(tiny_folder: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    code = (
        "import sys, json, numpy\n"
        "from bellm import Encoder\n"
        "encoder = Encoder.from_pretrained(sys.argv[1], device='cpu')\n"
        "numpy.save(sys.argv[2], encoder.encode(json.loads(sys.argv[3])))\n"
    )
    target = tmp_path / "vectors.npy"
    done = run([sys.executable, "-c", code, tiny_folder, target, json.dumps(TEXTS)])
    assert done.returncode == 0, done.stderr
    wanted = tiny_encoder.encode(TEXTS)
    assert np.abs(np.load(target) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"bidirectional": "none"},
        {"bidirectional": "all", "pooling": "mean-text", "prompt": "instruct:Find the bird"},
        {"bidirectional": (0, 2), "variant": "parallel", "pooling": "mean", "layer": 2, "max_tokens": 100},
        {"window": "open", "prompt": 'Ünïcode "{text}" \\ {brace}', "pooling": "max", "layer": -2},
    ],
    ids=str,
)
def test_every_setting_comes_back(tiny_encoder: Encoder, tmp_path: Path, choices: dict[str, Any]) -> None:
    encoder = tiny_encoder.replace(**choices)
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = Encoder.from_pretrained(tmp_path / "encoder", device="cpu")
    assert loaded.config == encoder.config
    assert loaded.name == encoder.name
    assert get_open_layers(loaded.model) == encoder.config.bidirectional
    assert np.array_equal(loaded.encode_query(TEXTS), encoder.encode_query(TEXTS))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_comes_back_unless_another_is_asked_for(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    encoder = Encoder.from_pretrained(tiny_folder, device="cpu", dtype=dtype)
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = Encoder.from_pretrained(tmp_path / "encoder", device="cpu")
    assert loaded.dtype_name == encoder.dtype_name == dtype
    assert np.array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))
    assert Encoder.from_pretrained(tmp_path / "encoder", device="cpu", dtype="float32").dtype_name == "float32"


def test_choices_are_applied_after_the_proof(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    loaded = Encoder.from_pretrained(tiny_folder, device="cpu", bidirectional="all", pooling="mean")
    wanted = tiny_encoder.replace(bidirectional="all", pooling="mean")
    assert np.array_equal(loaded.encode(TEXTS), wanted.encode(TEXTS))


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_adapters_are_saved_merged_or_alone(tiny_folder: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_folder, device="cpu")
    encoder.name = str(tmp_path / "base")
    tiny_encoder.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    encoder = encoder.with_model(get_peft_model(encoder.model, config).eval())  # type: ignore[arg-type]
    adapted = encoder.encode(TEXTS)
    assert np.abs(adapted - tiny_encoder.encode(TEXTS)).max() > 1e-3
    encoder.save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    alone = Encoder.from_pretrained(tmp_path / "adapter", device="cpu")
    assert alone.config == encoder.config
    assert np.abs(alone.encode(TEXTS) - adapted).max() <= 1e-5 * np.abs(adapted).max()
    encoder = encoder.with_model(encoder.model.merge_and_unload())  # type: ignore[operator]
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = Encoder.from_pretrained(tmp_path / "encoder", device="cpu")
    assert np.abs(loaded.encode(TEXTS) - adapted).max() <= 1e-5 * np.abs(adapted).max()
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="holds adapters, and their base model cannot be loaded"):
        Encoder.from_pretrained(tmp_path / "adapter", device="cpu")
    shutil.copytree(tmp_path / "encoder", tmp_path / "base")
    with pytest.raises(FingerprintError):  # Another base model.
        Encoder.from_pretrained(tmp_path / "adapter", device="cpu")


def test_plain_transformers_reads_the_folder_causally_and_the_card_says_so(
    tiny_folder: Path, tiny_model: LlamaForCausalLM
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids_1L = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(plain(ids_1L).logits, tiny_model(ids_1L).logits)
    card = (tiny_folder / "README.md").read_text(encoding="utf-8")
    assert "loaded\nwith plain transformers" in card
    assert "run *causally, without a word*" in card
    assert "| bidirectional | `2-3` of 4 |" in card


def test_nothing_but_data_is_written(tiny_folder: Path) -> None:
    assert {path.name for path in tiny_folder.iterdir()} == {
        "README.md",
        "bellm.json",
        "config.json",
        "config_sentence_transformers.json",
        "fingerprint.safetensors",
        "generation_config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert tiny_folder.stat().st_mode & 0o777 == 0o755
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in tiny_folder.iterdir()} == {0o666 & ~umask}


def card_of(encoder: Encoder, name: str, folder: Path) -> str:
    """The model card of an encoder whose base model has this name."""
    named = copy.copy(encoder)
    named.name = name
    named.save_pretrained(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    huggingface_hub.ModelCardData(**metadata)
    assert metadata["library_name"] == "bellm"
    return card


@pytest.mark.parametrize(
    ("name", "base_model", "shown"),
    [
        ("owner/model-1.5B", "owner/model-1.5B", "owner/model-1.5B"),
        ("owner/model@v2", "owner/model", "owner/model@v2"),
        ("/home/someone/secret/model", None, "model"),
        ("secret/runs/model", None, "model"),
        ("../secret/model", None, "model"),
        ("smollm2", None, "smollm2"),
        ("secret: odd/model", None, "model"),
    ],
)
def test_a_card_names_a_base_model_of_the_hub_and_no_path(
    tiny_encoder: Encoder, tmp_path: Path, name: str, base_model: str | None, shown: str
) -> None:
    card = card_of(tiny_encoder, name, tmp_path / "encoder")
    assert yaml.safe_load(card.split("---")[1]).get("base_model") == base_model
    assert f"| base model | `{shown}` |" in card
    assert "secret" not in card
    assert str(tmp_path) not in card


def test_a_generation_config_that_contradicts_itself_does_not_keep_from_saving(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = copy.deepcopy(tiny_model)
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.6
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="last:2")
    encoder.save_pretrained(tmp_path / "encoder")
    assert np.array_equal(
        Encoder.from_pretrained(tmp_path / "encoder", device="cpu").encode(TEXTS), encoder.encode(TEXTS)
    )
    assert model.generation_config.temperature == 0.6


# What is refused


@pytest.mark.parametrize(
    "facts",
    [
        {"bidirectional": "0-3"},
        {"bidirectional": "none"},
        {"variant": "parallel"},
        {"window": "open"},
        {"pooling": "mean"},
        {"layer": 3},
        {"max_tokens": 64},
        {"template": "{text}"},
        {"hint": "Mind the negations."},
        {"query_template": "Query: {text}"},
        {"token_prepending": 2},
        {"normalize": True},
        {"truncate_dim": 16},
    ],
    ids=str,
)
def test_a_changed_setting_is_found_out(saved: Path, facts: dict[str, Any]) -> None:
    change(saved / "bellm.json", **facts)
    with pytest.raises(FingerprintError, match="changed after saving"):
        Encoder.from_pretrained(saved, device="cpu")


def test_keys_that_decide_nothing_may_be_added(saved: Path, tiny_encoder: Encoder) -> None:
    change(saved / "bellm.json", note="for the third floor")
    assert np.array_equal(Encoder.from_pretrained(saved, device="cpu").encode(TEXTS), tiny_encoder.encode(TEXTS))


def test_a_missing_fingerprint_is_refused(saved: Path) -> None:
    (saved / "fingerprint.safetensors").unlink()
    with pytest.raises(FingerprintError, match=r"no readable fingerprint\.safetensors"):
        Encoder.from_pretrained(saved, device="cpu")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100])
def test_an_unreadable_fingerprint_is_refused(saved: Path, content: bytes) -> None:
    (saved / "fingerprint.safetensors").write_bytes(content)
    with pytest.raises(FingerprintError, match=r"no readable fingerprint\.safetensors"):
        Encoder.from_pretrained(saved, device="cpu")


@pytest.mark.parametrize("spoil", [lambda rows: rows[:-1], lambda rows: rows * np.nan, lambda rows: rows * 1.01])
def test_other_vectors_are_refused(saved: Path, spoil: Callable[[Any], Any]) -> None:
    place = saved / "fingerprint.safetensors"
    vectors = spoil(load_file(place)["vectors"])
    record = read_saved(saved)
    save_file({"vectors": np.ascontiguousarray(vectors)}, place, {"config": record.config.digest()})
    with pytest.raises(FingerprintError, match="does not give the vectors it was saved with"):
        Encoder.from_pretrained(saved, device="cpu")


def test_weights_of_another_model_are_refused(saved: Path, tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(tiny_model.config).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    with pytest.raises(FingerprintError, match="its weights or its tokenizer are not those of the saved encoder"):
        Encoder.from_pretrained(saved, device="cpu")


def test_one_changed_weight_is_found_out(saved: Path) -> None:
    place = saved / "model.safetensors"
    weights = load_file(place)
    weights["model.layers.0.self_attn.v_proj.weight"][3] *= 1.5
    save_file(weights, place, {"format": "pt"})
    with pytest.raises(FingerprintError, match="does not give the vectors"):
        Encoder.from_pretrained(saved, device="cpu")


def test_a_tokenizer_that_counts_otherwise_is_refused(saved: Path) -> None:
    place = saved / "tokenizer.json"
    record = json.loads(place.read_text(encoding="utf-8"))
    record["post_processor"] = None
    place.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(FingerprintError, match="does not give the vectors"):
        Encoder.from_pretrained(saved, device="cpu")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"none"', b"{}", b"\xff\xfe\x00", b'{"bidirectional": [0]}'],
)
def test_an_unreadable_record_is_refused(saved: Path, content: bytes) -> None:
    (saved / "bellm.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"bellm\.json cannot be read"):
        Encoder.from_pretrained(saved, device="cpu")


@pytest.mark.parametrize(
    "facts",
    [
        {"query_template": "no slot"},
        {"template": "no slot"},
        {"pooling": "median"},
        {"bidirectional": "two"},
        {"max_tokens": "many"},
        {"num_layers": "four"},
        {"num_layers": None},
    ],
    ids=str,
)
def test_a_record_with_a_setting_of_the_wrong_kind_is_refused(saved: Path, facts: dict[str, Any]) -> None:
    change(saved / "bellm.json", **facts)
    with pytest.raises(SourceError, match=r"bellm\.json cannot be read"):
        Encoder.from_pretrained(saved, device="cpu")


def test_half_a_weights_file_is_refused(saved: Path) -> None:
    place = saved / "model.safetensors"
    place.write_bytes(place.read_bytes()[:1000])
    with pytest.raises(BellmError, match="cannot be loaded"):
        Encoder.from_pretrained(saved, device="cpu")


# What a failure leaves behind


def test_an_existing_folder_is_not_touched(tiny_encoder: Encoder, saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(SourceError, match="exists already and is not empty"):
        tiny_encoder.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_an_existing_file_is_not_touched(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(SourceError, match="exists already"):
        tiny_encoder.save_pretrained(tmp_path / "notes")
    with pytest.raises(SourceError, match="cannot be written"):
        tiny_encoder.save_pretrained(tmp_path / "notes" / "encoder")
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "deep" / "down"):
        tiny_encoder.save_pretrained(place)
        assert (place / "bellm.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["deep", "empty"]


@pytest.mark.parametrize(
    ("failure", "raised"), [(OSError(28, "No space left on device"), SourceError), (KeyboardInterrupt(), None)]
)
def test_nothing_half_written_stays_when_saving_fails(
    tiny_encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[Exception] | None,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.raises(raised or KeyboardInterrupt, match="No space left" if raised else None):
        tiny_encoder.save_pretrained(tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_nan_is_not_saved(tiny_encoder: Encoder, tmp_path: Path) -> None:
    broken = copy.deepcopy(tiny_encoder)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(BellmError, match="NaN") as caught:
        broken.save_pretrained(tmp_path / "encoder")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_folder_without_a_record_is_a_plain_model_where_it_claims_to_be_no_more(
    saved: Path, tiny_encoder: Encoder
) -> None:
    (saved / "bellm.json").unlink()
    with pytest.raises(SourceError, match=r"its bellm.json is missing. Restore it, or take modules.json away"):
        Encoder.from_pretrained(saved, device="cpu")
    (saved / "modules.json").unlink()
    loaded = Encoder.from_pretrained(saved, device="cpu", dtype="float32")
    assert loaded.config.bidirectional == ()
    assert np.array_equal(loaded.encode(TEXTS), tiny_encoder.replace(bidirectional="none").encode(TEXTS))


# The distance


def test_distance_is_relative_to_the_saved_vector() -> None:
    saved = np.array([[3, 4], [0, 2]], dtype=np.float32)
    assert relative_distance(saved, saved) == 0.0
    assert relative_distance(saved + np.float32([[0, 0], [0, 1]]), saved) == pytest.approx(0.5)
    assert relative_distance(saved[:1], saved) == float("inf")
    assert relative_distance(saved * np.float32("nan"), saved) == float("inf")


def test_the_coarser_dtype_sets_the_limit() -> None:
    assert tolerances("float32", "float32").fingerprint == 1e-3
    assert tolerances("float32", "bfloat16").fingerprint == tolerances("bfloat16", "float32").fingerprint == 0.05


def test_opening_another_map_moves_the_fingerprint_far_beyond_its_limit(tiny_encoder: Encoder) -> None:
    fingerprint = tiny_encoder.fingerprint()
    for other in ("none", "first:2", "all", "last:3"):
        found = tiny_encoder.replace(bidirectional=other).fingerprint()
        assert relative_distance(found, fingerprint) > 50 * tolerances("float32", "float32").fingerprint


# Which weights


def test_equal_weights_have_one_digest_and_no_others(tiny_folder: Path) -> None:
    first, second = Encoder.from_pretrained(tiny_folder), Encoder.from_pretrained(tiny_folder)
    digest = weights_digest(first.model)
    assert digest.startswith("float32:")
    assert digest == weights_digest(second.model) == weights_digest(second.replace(bidirectional="all").model)
    with torch.no_grad():
        second.model.get_output_embeddings().weight.zero_()  # No vector depends on it.
        assert weights_digest(second.model) == digest
        weight = second.model.model.layers[1].mlp.up_proj.weight
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(1.0))
    assert weights_differ(digest, weights_digest(second.model))
    with torch.device("meta"):
        assert weights_digest(LlamaForCausalLM(first.model.config)) == ""


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.
def test_another_dtype_and_merged_adapters_prove_nothing(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    digest = weights_digest(tiny_encoder.model)
    half = weights_digest(Encoder.from_pretrained(tiny_folder, dtype="bfloat16").model)
    adapted = weights_digest(get_peft_model(copy.deepcopy(tiny_encoder.model), LoraConfig(target_modules=["q_proj"])))
    assert (half.partition(":")[0], adapted.partition(":")[0]) == ("bfloat16", "float32+adapters")
    assert not any(weights_differ(*pair) for pair in ((digest, half), (digest, adapted), (digest, ""), ("", digest)))


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.
def test_adapters_that_were_merged_at_loading_differ_by_rounding(tiny_encoder: Encoder, tmp_path: Path) -> None:
    tiny_encoder.save_pretrained(tmp_path / "base")
    encoder = Encoder.from_pretrained(tmp_path / "base")
    encoder.name = str(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    encoder = encoder.with_model(get_peft_model(encoder.model, config).eval())  # type: ignore[arg-type]
    encoder.save_pretrained(tmp_path / "adapter")
    loaded = Encoder.from_pretrained(tmp_path / "adapter")
    digest = weights_digest(loaded.replace(bidirectional="all").model)
    assert digest.startswith("float32+merged:")
    with torch.no_grad():
        loaded.model.model.layers[0].self_attn.q_proj.weight.mul_(1 + 1e-7)  # As another device may round.
    assert digest != weights_digest(loaded.model)
    assert not weights_differ(digest, weights_digest(loaded.model))
