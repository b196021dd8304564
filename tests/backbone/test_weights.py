"""A source whose weights are not those of its model is refused, or says what was done about it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, BertConfig, BertModel, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone import loading
from bellm.backbone.architecture import count_layers
from bellm.backbone.states import check_lm_head
from bellm.backbone.weights import check_class
from bellm.errors import BellmError, SourceError, SourceWarning

TEXTS = ["A heron stands in the water.", "Snow fell all night."]


@pytest.fixture
def folder(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    """Write the weights again, each name through `change`; None drops it."""
    weights = load_file(folder / "model.safetensors")
    renamed = {change(name): tensor.clone() for name, tensor in weights.items()}
    save_file(
        {name: tensor for name, tensor in renamed.items() if name}, folder / "model.safetensors", {"format": "pt"}
    )


def configure(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(torch.arange(3, 20)[None]).logits
    return found


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        loading.load_pretrained(folder, dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["base_model.model.", "module.", "_orig_mod.", "module._orig_mod."])
def test_known_wrappers_of_names_are_taken_off_with_a_note(
    folder: Path, tiny_model: LlamaForCausalLM, prefix: str
) -> None:
    rewrite(folder, lambda name: prefix + name)
    with pytest.warns(SourceWarning, match="were saved with a wrapper's prefix"):
        loaded = loading.load_pretrained(folder, dtype="float32", device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model))


@pytest.mark.parametrize("prefix", ["transformer.", "encoder.model."])
def test_names_of_another_model_are_refused(folder: Path, prefix: str) -> None:
    rewrite(folder, lambda name: prefix + name)
    assert "lacks 38 weights of the model (embed_tokens.weight" in refusal(folder)


def test_a_missing_projection_is_named(folder: Path) -> None:
    rewrite(folder, lambda name: None if name == "model.layers.2.self_attn.q_proj.weight" else name)
    assert "lacks 1 weight of the model (layers.2.self_attn.q_proj.weight)" in refusal(folder)


def test_a_config_of_more_layers_than_the_file_is_refused(folder: Path) -> None:
    configure(folder, num_hidden_layers=6)
    assert "lacks 18 weights of the model (layers.4." in refusal(folder)


def test_a_config_of_fewer_layers_than_the_file_is_refused(folder: Path) -> None:
    configure(folder, num_hidden_layers=3)
    assert "has 9 weights that its config.json gives no place (layers.3." in refusal(folder)


def test_layers_that_predict_further_tokens_are_no_layers_of_the_decoder(folder: Path) -> None:
    configure(folder, num_hidden_layers=3, num_nextn_predict_layers=1)
    assert count_layers(loading.load_pretrained(folder, dtype="float32", device="cpu").model) == 3


def test_a_bias_that_the_config_leaves_out_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "has 1 weight that its config.json gives no place (layers.1.self_attn.q_proj.bias)" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "self_attn.q_norm.weight",
        "self_attn.q_proj.lora_A.default.weight",
        "self_attn.q_proj.SCB",
        "mlp.up_proj.weight_scale_inv",
        "input_layernorm.bias",
        "self_attn.sinks",
        "layer_scalar",
    ],
)
def test_a_weight_in_a_layer_without_place_is_refused(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors") | {f"model.layers.1.{name}": torch.ones(8)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"has 1 weight that its config.json gives no place (layers.1.{name})" in refusal(folder)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaModel"])
@pytest.mark.parametrize("prefix", ["model.", ""], ids=["prefix", "bare"])
@pytest.mark.parametrize(
    "name", ["embedding_norm.weight", "embed_positions.weight", "project_in.weight", "layers.1.self_attn.sinks"]
)
def test_a_weight_anywhere_in_the_decoder_without_place_is_refused(
    folder: Path, name: str, prefix: str, architecture: str
) -> None:
    configure(folder, architectures=[architecture])
    weights = load_file(folder / "model.safetensors") | {f"model.{name}": torch.ones(8)}
    weights.pop("lm_head.weight")
    renamed = {prefix + name.removeprefix("model."): weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    assert f"has 1 weight that its config.json gives no place ({name})" in refusal(folder)


def test_a_second_set_of_weights_beside_the_model_is_said(folder: Path, tiny_model: LlamaForCausalLM) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {f"ema.{name}": weight + 1 for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.warns(
        SourceWarning,
        match=r"holds a second set of weights beside the model.s \(ema\.model\.embed_tokens\.weight, \.\.\.\)",
    ):
        loaded = loading.load_pretrained(folder, dtype="float32", device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model))


def test_integers_without_a_quantization_are_refused(folder: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: weights[name].to(torch.int8)}, folder / "model.safetensors", {"format": "pt"})
    assert f"holds 1 weight in integers ({name}), and config.json has no quantization_config" in refusal(folder)


@pytest.mark.parametrize("index", ['{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", "{}", "{"])
def test_an_index_without_a_map_of_files_is_refused(folder: Path, index: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(folder)


def test_weights_and_an_index_of_others_are_refused(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00001.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert "holds model.safetensors and model.safetensors.index.json, two sets of weights. Remove one" in refusal(
        folder
    )


@pytest.mark.parametrize("other", ["", "_orig_mod."])
def test_a_weight_under_two_names_is_refused(folder: Path, other: str) -> None:
    weights = load_file(folder / "model.safetensors")
    more = {f"module.{name}": tensor + 1 for name, tensor in weights.items() if "q_proj" in name}
    save_file({f"{other}{name}": each for name, each in (weights | more).items()}, folder / "model.safetensors")
    said = "holds 4 weights under two names (layers.0.self_attn.q_proj.weight, ...), with a prefix and without"
    assert said in refusal(folder)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaModel"])
@pytest.mark.parametrize("part", ["", "layers.0."], ids=["all", "some"])
@pytest.mark.parametrize("other", ["", "model.model."], ids=["bare", "twice"])
def test_a_weight_under_the_models_prefix_and_another_is_refused(
    folder: Path, other: str, part: str, architecture: str
) -> None:
    configure(folder, architectures=[architecture])
    weights = load_file(folder / "model.safetensors")
    more = {name.replace("model.", other, 1): weight + 1 for name, weight in weights.items() if f"model.{part}" in name}
    save_file(weights | more, folder / "model.safetensors", {"format": "pt"})
    assert "weights under two names (" in refusal(folder)


def test_weights_may_be_under_two_prefixes_where_each_is_under_one(folder: Path, tiny_model: LlamaForCausalLM) -> None:
    rewrite(folder, lambda name: name.removeprefix("model.") if "layers.0" in name else name)
    loaded = loading.load_pretrained(folder, dtype="float32", device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model))


@pytest.mark.parametrize(("kind", "architecture"), [("gemma", "LlamaForCausalLM"), ("llama", "GemmaForCausalLM")])
def test_a_config_of_one_kind_for_the_class_of_another_is_refused(folder: Path, kind: str, architecture: str) -> None:
    configure(folder, model_type=kind, architectures=[architecture])
    assert f"has model_type {kind!r} and architectures [{architecture!r}], which are of two models" in refusal(folder)


@pytest.mark.parametrize(
    "architectures", [None, [], ["LlamaModel"], ["LlamaForCausalLM"], ["FSDPLlamaForCausalLM"]], ids=str
)
def test_a_class_of_the_same_kind_is_taken(folder: Path, architectures: Any) -> None:
    configure(folder, architectures=architectures)
    loading.load_pretrained(folder, device="cpu")


def test_a_class_that_nobody_knows_is_said(folder: Path) -> None:
    configure(folder, architectures=["LlamaBidirectionalModel"])
    with pytest.warns(SourceWarning, match="is of the class LlamaBidirectionalModel, which transformers does not have"):
        loading.load_pretrained(folder, device="cpu")


OWN_CODE = """
from transformers import LlamaForCausalLM, LlamaModel

class OwnModel(LlamaModel):
    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

class OwnForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()
"""


@pytest.mark.parametrize(
    "code",
    [
        {"AutoModel": "modeling_own.OwnModel"},
        {"AutoModel": "modeling_own.OwnModel", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
        {"AutoModel": "owner/name--modeling_own.LlamaModel"},
        {"AutoConfig": "configuration_own.OwnConfig"},
        {"AutoConfig": "configuration_own.LlamaConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    ],
    ids=["base", "both", "same name", "config", "head"],
)
def test_code_of_another_model_is_refused_until_it_is_trusted(folder: Path, code: dict[str, str]) -> None:
    configure(folder, auto_map=code)
    (folder / "modeling_own.py").write_text(OWN_CODE)
    said = refusal(folder)
    assert f"brings Python code of its own for {next(iter(code.values()))}" in said
    assert "give trust_remote_code=True" in said


@pytest.mark.parametrize("with_head", [True, False])
def test_code_that_is_trusted_runs(
    folder: Path, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, with_head: bool
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    head = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"} if with_head else {}
    configure(folder, auto_map={"AutoModel": "modeling_own.OwnModel", **head})
    (folder / "modeling_own.py").write_text(OWN_CODE)
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "prompt": "raw", "pooling": "last"}
    found = Encoder.from_pretrained(folder, trust_remote_code=True, **settings)
    wanted = Encoder.from_pretrained(tiny_model, tokenizer=found.tokenizer, prompt="raw", pooling="last")
    assert np.allclose(found.encode(TEXTS), 2 * wanted.encode(TEXTS), atol=1e-5)


def test_code_that_transformers_took_over_is_said(folder: Path) -> None:
    code = {"AutoConfig": "configuration_own.LlamaConfig", "AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"}
    configure(folder, auto_map=code)
    with pytest.warns(
        SourceWarning, match="brings Python code for modeling_own.LlamaForCausalLM, and transformers' class of"
    ):
        loading.load_pretrained(folder, device="cpu")


def test_code_of_a_tokenizer_is_refused_until_it_is_trusted_or_replaced(
    folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.Own", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "brings Python code of its own for its tokenizer (tokenization_own.Own)" in refusal(folder)
    loading.load_pretrained(folder, tokenizer=tiny_tokenizer, device="cpu")


def test_kinds_that_share_a_class_are_taken() -> None:
    """As transformers maps them: Llama's class runs InternLM3, and a part of Llama 4 the whole."""
    for kind, name in (("internlm3", "LlamaForCausalLM"), ("llama4", "Llama4ForCausalLM")):
        check_class(AutoConfig.for_model(kind, architectures=[name]), "a model")
    check_class(AutoConfig.for_model("llama4_text", architectures=["Llama4ForConditionalGeneration"]), "a model")


def test_a_config_of_other_widths_than_the_file_is_refused(folder: Path) -> None:
    configure(folder, intermediate_size=48)
    said = refusal(folder)
    assert "has 12 weights of another shape than its config.json says (model.layers.0.mlp.down_proj.weight: " in said
    assert "(32, 64), not (32, 48))" in said


def write_remote_code(folder: Path) -> None:
    configure(folder, model_type="own_llm", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    (folder / "configuration_own.py").write_text("")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer is missing or incomplete. Put the"),
        (lambda folder: (folder / "config.json").unlink(), "its config.json is missing, or names no model_type. Give"),
        (lambda folder: (folder / "model.safetensors").unlink(), "(model.safetensors) are missing. Give a whole"),
        (lambda folder: configure(folder, model_type="own_llm"), "does not know its model_type. Install a newer"),
        (write_remote_code, "it brings Python code of its own. Where you trust that, give trust_remote_code=True."),
    ],
    ids=["tokenizer", "config", "weights", "new", "code"],
)
def test_what_is_missing_is_named_with_the_way_out(folder: Path, spoil: Any, said: str) -> None:
    spoil(folder)
    assert said in refusal(folder)


def test_weights_beside_the_decoder_do_not_matter(folder: Path, tiny_model: LlamaForCausalLM) -> None:
    weights = load_file(folder / "model.safetensors")
    others = ("score.weight", "vision_tower.layers.0.fc1.weight", "model.layers.0.self_attn.masked_bias")
    others += ("model.layers.0.self_attn.bias", "model.layers.0.self_attn.rotary_emb.inv_freq")
    others += ("model.layers.0.self_attn.rotary.inv_freq", "model.position_ids", "model.mtp_block.weight", "mtp.weight")
    weights |= {name: torch.zeros(2, 32) for name in others}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    loaded = loading.load_pretrained(folder, dtype="float32", device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model))


def test_a_missing_head_matters_to_logits_alone(
    folder: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rewrite(folder, lambda name: None if name == "lm_head.weight" else name)
    model = loading.load_pretrained(folder, dtype="float32", device="cpu").model
    found, wanted = (Encoder.from_pretrained(each, tokenizer=tiny_tokenizer) for each in (model, tiny_model))
    assert (found.encode(TEXTS) == wanted.encode(TEXTS)).all()
    with pytest.raises(BellmError, match="has no language-model head"):
        check_lm_head(model)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named_with_the_way_out(folder: Path, name: str) -> None:
    (folder / name).write_bytes(LFS)
    assert refusal(folder).endswith(f"{name} is a pointer of Git LFS, not the file. Fetch it: git lfs pull.")


def test_pickled_weights_are_named_with_the_way_out(folder: Path, tiny_model: LlamaForCausalLM) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), folder / "pytorch_model.bin")
    said = refusal(folder)
    assert "cannot be loaded: its weights are pickled (pytorch_model.bin), which can run code" in said
    assert "save_pretrained" in said


NOT_DECODERS = {
    "t5": "an encoder-decoder",
    "bart": "an encoder-decoder",
    "whisper": "an encoder-decoder",
    "bert": "an encoder",
    "roberta": "an encoder",
    "modernbert": "an encoder",
    "vit": "no language model",
    "clip": "several models in one",
    "llava": "several models in one",
}


@pytest.mark.parametrize("kind", NOT_DECODERS)
def test_what_is_no_decoder_is_refused_before_its_weights_are_read(folder: Path, kind: str) -> None:
    (folder / "model.safetensors").unlink()
    AutoConfig.for_model(kind).save_pretrained(folder)
    said = refusal(folder)
    assert f"is {NOT_DECODERS[kind]} ({kind})" in said
    assert "decoder-only" in said


def test_a_loaded_encoder_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=400)
    with pytest.raises(SourceError, match=r"is an encoder \(bert\)"):
        Encoder.from_pretrained(BertModel(config), tokenizer=tiny_tokenizer)
