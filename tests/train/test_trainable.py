"""Which weights learn, and what is saved of them."""

import copy
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Params4bit
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.adapters import quantize_4bit
from bellm.compress import prune
from bellm.errors import BellmError, SourceError
from bellm.train import trainable
from bellm.train.loop import train
from bellm.train.recipe import FullFineTuning, LoRA, Recipe
from bellm.train.train_step import TrainStep
from bellm.train.trainable import export_encoder, load_trainable, rehearse_saving
from bellm.types import Vectors
from tests.train.rows import dataset, triplets

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.

TEXTS = ["A heron stands in the shallow water.", "", "Snow fell all night.", "The invoice was paid twice."]


def taught(recipe: Recipe, steps: int = 3) -> Encoder:
    """An encoder that has taken a few steps."""
    encoder, autocast = load_trainable(recipe)
    train_step = TrainStep(encoder, recipe.objective, autocast=autocast)
    optimiser = torch.optim.AdamW(train_step.parameters.values(), lr=1e-2)
    for step in range(steps):
        optimiser.zero_grad()
        train_step.learn(triplets(4), step)
        optimiser.step()
    return encoder


@pytest.mark.parametrize("settings", [{}, {"bidirectional": "all", "pooling": "mean"}, {"bidirectional": "none"}])
def test_merged_vectors_are_those_of_the_adapter_and_come_back_from_disk(
    tiny_folder: Path, tiny_encoder: Encoder, tmp_path: Path, settings: dict[str, Any]
) -> None:
    encoder = taught(Recipe(model=str(tiny_folder), encoder_options=settings, tuning=LoRA(rank=3, dropout=0.2)))
    before = tiny_encoder.replace(**settings).encode(TEXTS)
    adapted = encoder.encode(TEXTS)
    assert np.linalg.norm(adapted - before) > 0.1 * np.linalg.norm(before)
    merged = export_encoder(encoder, Recipe())
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    np.testing.assert_allclose(merged.encode(TEXTS), adapted, atol=1e-5 * np.abs(adapted).max(), rtol=1e-5)
    merged.save_pretrained(tmp_path / "saved")
    loaded = Encoder.from_pretrained(tmp_path / "saved")
    assert loaded.config == merged.config == tiny_encoder.replace(**settings).config
    np.testing.assert_allclose(loaded.encode(TEXTS), merged.encode(TEXTS), atol=1e-6, rtol=1e-6)


def test_a_folder_that_was_trained_from_stays_as_it_was(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    before = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    encoder = export_encoder(taught(Recipe(model=str(tiny_folder))), Recipe())
    assert {path.name: path.read_bytes() for path in tiny_folder.iterdir()} == before
    np.testing.assert_allclose(
        Encoder.from_pretrained(tiny_folder).encode(TEXTS), tiny_encoder.encode(TEXTS), rtol=1e-6
    )
    assert not np.allclose(encoder.encode(TEXTS), tiny_encoder.encode(TEXTS), rtol=1e-2)


@pytest.mark.parametrize("tuning", [LoRA(), LoRA(merged=False), FullFineTuning()], ids=repr)
def test_training_after_pruning_is_part_of_what_was_done(
    tiny_encoder: Encoder, tmp_path: Path, tuning: LoRA | FullFineTuning
) -> None:
    """Removed weights come back, and the record of their removal alone would say that they are zeros."""
    prune(tiny_encoder, 0.5, method="magnitude").save_pretrained(tmp_path / "pruned")
    recipe = Recipe(model=str(tmp_path / "pruned"), tuning=tuning)
    trained = export_encoder(load_trainable(recipe)[0], recipe)
    assert [step["kind"] for step in trained.compression] == ["prune", "train"]


def test_the_tuning_alone_decides_which_weights_learn(tiny_folder: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_folder)
    encoder.model.requires_grad_(False)
    full, _ = load_trainable(Recipe(model=encoder, tuning=FullFineTuning()))
    assert all(weight.requires_grad for weight in full.model.parameters())
    encoder.model.requires_grad_(True)
    adapted, _ = load_trainable(Recipe(model=encoder, tuning=LoRA(rank=2)))
    learning = {name: weight.requires_grad for name, weight in adapted.model.named_parameters()}
    assert learning == {name: "lora_" in name for name in learning}
    assert any(learning.values())


def test_adapters_begin_by_the_seed_and_change_nothing(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    first, again, other = (
        {
            name: each
            for name, each in load_trainable(Recipe(model=str(tiny_folder), seed=seed))[0].model.named_parameters()
            if each.requires_grad
        }
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all("lora_" in name and each.dtype == torch.float32 for name, each in first.items())
    encoder, _ = load_trainable(Recipe(model=str(tiny_folder)))
    np.testing.assert_allclose(encoder.encode(TEXTS), tiny_encoder.encode(TEXTS), rtol=1e-5, atol=1e-6)


def test_adapters_where_they_are_wanted(tiny_folder: Path) -> None:
    encoder, _ = load_trainable(Recipe(model=str(tiny_folder), tuning=LoRA(rank=3, targets=("q_proj", "v_proj"))))
    learned = [name for name, each in encoder.model.named_parameters() if each.requires_grad]
    assert len(learned) == 4 * 2 * 2
    assert all("q_proj" in name or "v_proj" in name for name in learned)
    with pytest.raises(BellmError, match="No adapter fits: ") as refusal:
        load_trainable(Recipe(model=str(tiny_folder), tuning=LoRA(targets=("nowhere",))))
    assert "\n" not in str(refusal.value)


def test_full_training_keeps_weights_in_float32_and_multiplies_in_less(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=str(tiny_folder), encoder_options={"dtype": "bfloat16"}, tuning=FullFineTuning())
    encoder, autocast = load_trainable(recipe)
    assert autocast == torch.bfloat16
    parameters = dict(encoder.model.named_parameters())
    assert all(each.requires_grad and each.dtype == torch.float32 for each in parameters.values())
    seen: set[torch.dtype] = set()
    layer = next(module for name, module in encoder.model.named_modules() if name.endswith("layers.0"))
    hook = layer.register_forward_hook(lambda *call: seen.add(layer.mlp.up_proj(call[1][0]).dtype))
    TrainStep(encoder, recipe.objective, autocast=autocast).learn(triplets(3), 0)
    hook.remove()
    assert torch.bfloat16 in seen
    assert all(each.grad is None or each.grad.dtype == torch.float32 for each in parameters.values())
    taught(recipe)
    export_encoder(encoder, Recipe()).save_pretrained(tmp_path / "saved")
    assert {tensor.dtype for tensor in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "saved" / "bellm.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("tuning", "dtype", "wanted"),
    [
        (LoRA(), "float32", None),
        (LoRA(), "bfloat16", torch.bfloat16),
        (FullFineTuning(), "float32", None),
        (FullFineTuning(), "bfloat16", torch.bfloat16),
    ],
)
def test_products_are_in_the_dtype_that_was_asked_for(
    tiny_folder: Path, tuning: LoRA | FullFineTuning, dtype: str, wanted: torch.dtype | None
) -> None:
    _, autocast = load_trainable(Recipe(model=str(tiny_folder), encoder_options={"dtype": dtype}, tuning=tuning))
    assert autocast == wanted


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_adapters_may_be_saved_alone(tiny_folder: Path, tmp_path: Path, dtype: str, rounding: float) -> None:
    """The fingerprint is that of merged adapters, because merging rounds as coarsely as the weights are."""
    recipe = Recipe(model=str(tiny_folder), encoder_options={"dtype": dtype}, tuning=LoRA(rank=3, merged=False))
    encoder = export_encoder(taught(recipe), recipe)
    encoder.save_pretrained(tmp_path / "saved")
    size = sum(path.stat().st_size for path in (tmp_path / "saved").glob("*.safetensors"))
    assert size < 0.5 * (tiny_folder / "model.safetensors").stat().st_size
    loaded = Encoder.from_pretrained(tmp_path / "saved", dtype=dtype)
    np.testing.assert_allclose(loaded.fingerprint(), fingerprint_in(tmp_path / "saved"), atol=1e-6)
    found, wanted = loaded.encode(TEXTS), encoder.encode(TEXTS)
    assert np.linalg.norm(found - wanted) < rounding * np.linalg.norm(wanted)
    assert any("lora" in name for name, _ in encoder.model.named_parameters())


def fingerprint_in(folder: Path) -> Vectors:
    found: Vectors = load_file(folder / "fingerprint.safetensors")["vectors"].numpy()
    return found


def test_adapters_alone_find_their_base_from_another_folder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    recipe = Recipe(model=f"./{tiny_folder.name}", tuning=LoRA(rank=2, merged=False))
    encoder = export_encoder(taught(recipe, 1), recipe)
    encoder.save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert Encoder.from_pretrained("saved").encode(TEXTS).shape == (4, 32)


def test_what_saving_would_refuse_is_refused_before_the_first_step(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, steps = Recipe(model=str(tiny_folder), tuning=LoRA(rank=2), max_steps=2), []

    def refused() -> str:
        with pytest.raises(BellmError) as refusal:
            train(recipe, [(dataset(6), 1.0)], tmp_path / "out", progress=lambda *given: steps.append(given))
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    def fails(*_: object, **__: object) -> None:
        raise NotImplementedError("This part\nhas no file.")

    for part in (PreTrainedTokenizerFast, LlamaConfig):
        with monkeypatch.context() as patch:
            patch.setattr(part, "save_pretrained", fails)
            assert "could not be saved after training: NotImplementedError: This part has no file." in refused()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        patch.setattr(trainable, "_SMALL", 2000)
        assert "has 0.0 GiB left, and training there takes 0.0" in refused()
    assert steps == []
    assert not list((tmp_path / "out").glob(".model-*"))
    train(recipe, [(dataset(6), 1.0)], tmp_path / "out")


@pytest.mark.parametrize("merged", [True, False])
def test_a_disk_needs_room_for_checkpoints_their_drafts_and_the_encoder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    recipe = Recipe(model=str(tiny_folder), tuning=LoRA(rank=2, merged=merged))
    encoder, _ = load_trainable(recipe)
    weights = list(encoder.model.parameters())
    learned = sum(weight.nbytes for weight in weights if weight.requires_grad)
    saved = sum(weight.nbytes for weight in weights) if merged else learned
    monkeypatch.setattr(trainable, "_SMALL", 2000)
    for missing in (1, 0):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, n=missing: SimpleNamespace(free=5 * learned + saved - n))
        with pytest.raises(SourceError, match=r"has 0\.0 GiB left") if missing else nullcontext():
            rehearse_saving(encoder, recipe, tmp_path)


def test_a_quantized_base_is_refused(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encoder = wide_encoder(tiny_model, tiny_tokenizer)
    quantize_4bit(encoder.model)
    with pytest.raises(
        BellmError, match=r"is quantized, and what is trained on it could not be saved\. Give the model"
    ):
        load_trainable(Recipe(model=encoder))


def wide_encoder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """One whose weights fill the blocks of 64 that four bits take."""
    config = copy.deepcopy(model.config)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(0)
    return Encoder.from_pretrained(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


def test_weights_of_four_bits_learn_and_adapters_go_onto_whole_ones(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    wide_encoder(tiny_model, tiny_tokenizer).save_pretrained(tmp_path / "wide")
    recipe = Recipe(model=str(tmp_path / "wide"), tuning=LoRA(rank=3, four_bit=True))
    whole = dict(Encoder.from_pretrained(tmp_path / "wide").model.named_parameters())
    encoder, _ = load_trainable(recipe)
    small = {name: each for name, each in encoder.model.named_parameters() if isinstance(each, Params4bit)}
    assert len(small) == 7 * 4
    for name, each in small.items():
        plain = whole[name.removeprefix("base_model.model.").replace(".base_layer", "")]
        apart = (dequantize_4bit(each.data, each.quant_state) - plain).norm() / plain.norm()
        assert 0.05 < apart < 0.15  # Sixteen values for a normal distribution are about a tenth off.
    encoder = taught(recipe)
    learned = {name: each.clone() for name, each in encoder.model.named_parameters() if "lora_" in name}
    assert any(each.any() for name, each in learned.items() if "lora_B" in name)
    done = export_encoder(encoder, replace(recipe, tuning=LoRA(rank=3, four_bit=True, merged=False)))
    found = dict(done.model.named_parameters())
    assert all(torch.equal(found[name], each) for name, each in learned.items())
    assert all(each.is_floating_point() for each in found.values())
