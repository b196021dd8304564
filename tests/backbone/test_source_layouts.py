"""Folders of other libraries give the vectors that those libraries give, or are refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LNTuningConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.nn.utils import prune
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.errors import BellmError, BellmWarning, SourceError, TruncationWarning

SENTENCE_CONFIG = "sentence_bert_config.json"
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
TEXTS = ["A heron.", "Snow fell all night in the street.", "Why does it rise?"]

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:pooling='first':bellm.errors.NoOpWarning"
)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def relative(found: Any, wanted: Any) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module")
def base(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("base") / "model"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def adapted(base: Path, *, head: bool = True, seed: int = 0) -> Any:
    """The base model with random adapters, as PEFT makes it."""
    model = (AutoModelForCausalLM if head else AutoModel).from_pretrained(base)
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, config).eval()


def vectors_of(model: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Last-token states by transformers alone."""
    decoder = model.base_model.model if isinstance(model, PeftModel) else model
    decoder = getattr(decoder, "model", decoder)
    with torch.inference_mode():
        states = [decoder(tokenizer(text, return_tensors="pt").input_ids).last_hidden_state[0, -1] for text in TEXTS]
    return torch.stack(states).numpy()


# Adapters


@pytest.mark.parametrize("head", [True, False], ids=["causal-lm", "decoder"])
@pytest.mark.parametrize("beside", [(), ("config.json",), ("tokenizer.json", "tokenizer_config.json")], ids=str)
def test_a_folder_of_adapters_is_its_base_with_them_merged(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, head: bool, beside: tuple[str, ...]
) -> None:
    model = adapted(base, head=head)
    model.save_pretrained(tmp_path / "adapter")
    for name in beside:
        (tmp_path / "adapter" / name).write_bytes((base / name).read_bytes())
    encoder = Encoder.from_pretrained(tmp_path / "adapter", device="cpu", dtype="float32", prompt="raw")
    assert relative(encoder.encode(TEXTS), vectors_of(model, tiny_tokenizer)) < 1e-5
    assert encoder.name == str(tmp_path / "adapter")


def test_adapters_on_adapters_are_merged_in_their_order(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = adapted(base)
    first.save_pretrained(tmp_path / "first")
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    second = get_peft_model(first.merge_and_unload(), config).eval()
    second.save_pretrained(tmp_path / "second")
    change(tmp_path / "second" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "first"))
    encoder = Encoder.from_pretrained(tmp_path / "second", device="cpu", dtype="float32", prompt="raw")
    assert relative(encoder.encode(TEXTS), vectors_of(second, tiny_tokenizer)) < 1e-5


def with_two(base: Path) -> Any:
    """A PEFT model with two adapters on the same and on different modules, the first of them active."""
    model = adapted(base)
    model.add_adapter("two", LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    return model


def with_whole(base: Path) -> Any:
    """A PEFT model with an adapter and a whole module of its own."""
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    with torch.no_grad():
        model.base_model.model.model.norm.modules_to_save["default"].weight *= torch.linspace(0.5, 2, 32)
    return model


def query(model: Any) -> Any:
    return model.base_model.model.model.layers[1].self_attn.q_proj


def injected(base: Path) -> Any:
    """A transformers model with two adapters inside, both of them active."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False), "one")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "two")
    model.set_adapter(["one", "two"])
    return model.eval()


STATES = {
    "one": (adapted, lambda model: None),
    "first": (with_two, lambda model: None),
    "second": (with_two, lambda model: model.set_adapter("two")),
    "both": (with_two, lambda model: model.base_model.set_adapter(["default", "two"])),
    "none": (with_two, lambda model: model.base_model.set_adapter([])),
    "merged": (adapted, lambda model: model.merge_adapter()),
    "disabled": (adapted, lambda model: model.base_model.disable_adapter_layers()),
    "disabled and merged": (adapted, lambda model: (model.merge_adapter(), model.base_model.disable_adapter_layers())),
    "merged and second": (with_two, lambda model: (model.merge_adapter(), query(model).set_adapter(["two"]))),
    "layer by layer": (with_two, lambda model: query(model).set_adapter(["two"])),
    "all but one layer": (adapted, lambda model: query(model).enable_adapters(False)),
    "whole modules": (with_whole, lambda model: None),
    "whole modules, disabled": (with_whole, lambda model: model.base_model.disable_adapter_layers()),
    "inside": (injected, lambda model: None),
    "inside, one": (injected, lambda model: model.set_adapter("two")),
    "inside, disabled": (injected, lambda model: model.disable_adapters()),
    "inside, of peft": (lambda base: inject_adapter_in_model(LORA, AutoModelForCausalLM.from_pretrained(base)), None),
}
LORA = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("state", STATES)
def test_what_is_active_in_a_model_in_memory_is_merged_into_a_copy(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, state: str
) -> None:
    make, change_state = STATES[state]
    model = make(base)
    if change_state:
        change_state(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, prompt="raw")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert relative(encoder.encode(TEXTS), vectors_of(model, tiny_tokenizer)) < 1e-5
    encoder.save_pretrained(tmp_path / "saved")
    saved = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert relative(saved.encode(TEXTS), encoder.encode(TEXTS)) < 1e-5


TIED: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "own head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "own embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 70, 80]},
}


@pytest.fixture(scope="module")
def tied(base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: Any) -> Path:
    """A base model whose head is its table of embeddings."""
    folder: Path = tmp_path_factory.mktemp("tied") / "model"
    config = AutoConfig.from_pretrained(base, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def shifted(model: Any) -> Any:
    """The model, with what PEFT put in moved at random."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens", "ln_tuning")):
                weight += 0.1 * torch.randn_like(weight)
    return model.eval()


def logits_of(model: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    with torch.inference_mode():
        return model(tokenizer(TEXTS[1], return_tensors="pt").input_ids).logits.numpy()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", TIED)
def test_adapters_of_tied_embeddings_change_what_they_are_on_alone(
    tied: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, case: str
) -> None:
    model = shifted(get_peft_model(AutoModelForCausalLM.from_pretrained(tied), LoraConfig(r=2, **TIED[case])))
    model.save_pretrained(tmp_path / "adapter")
    found = [
        Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, prompt="raw"),
        Encoder.from_pretrained(tmp_path / "adapter", device="cpu", dtype="float32", prompt="raw"),
    ]
    found[0].save_pretrained(tmp_path / "saved")
    found.append(Encoder.from_pretrained(tmp_path / "saved", device="cpu"))
    for encoder in found:
        assert relative(encoder.encode(TEXTS), vectors_of(model, tiny_tokenizer)) < 1e-5
        with encoder.causal() as causal:
            assert relative(logits_of(causal, tiny_tokenizer), logits_of(model, tiny_tokenizer)) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_of_a_tied_head_inside_a_model_leave_its_embeddings(
    tied: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tied)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    encoder = Encoder.from_pretrained(model.eval(), tokenizer=tiny_tokenizer, prompt="raw")
    assert relative(encoder.encode(TEXTS), vectors_of(model, tiny_tokenizer)) < 1e-5
    with encoder.causal() as causal:
        assert relative(logits_of(causal, tiny_tokenizer), logits_of(model, tiny_tokenizer)) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_of_norms_are_merged(base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = LNTuningConfig(target_modules=["input_layernorm"])
    model = shifted(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config))
    model.save_pretrained(tmp_path / "adapter")
    encoder = Encoder.from_pretrained(tmp_path / "adapter", device="cpu", dtype="float32", prompt="raw")
    assert relative(encoder.encode(TEXTS), vectors_of(model, tiny_tokenizer)) < 1e-5


UNMERGEABLE: dict[str, tuple[dict[str, Any], str]] = {
    "replicated": ({"layer_replication": [(0, 3), (1, 4)]}, "layer_replication"),
    "bias": ({"lora_bias": True}, "has no bias"),
    "invoked": ({"alora_invocation_tokens": [5, 6]}, "aLoRA"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", UNMERGEABLE)
def test_lora_that_cannot_be_merged_is_refused_in_one_line(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, case: str
) -> None:
    values, said = UNMERGEABLE[case]
    config = LoraConfig(r=2, target_modules=["q_proj"], **values)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "adapter")
    for source in (model, tmp_path / "adapter"):
        with pytest.raises(SourceError, match=said) as caught:
            Encoder.from_pretrained(source, tokenizer=tiny_tokenizer)
        assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_copied_is_refused_in_one_line(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = adapted(base)
    prune.l1_unstructured(query(model).lora_A["default"], "weight", amount=2)
    with pytest.raises(SourceError, match="cannot be merged into their model: Only Tensors") as caught:
        Encoder.from_pretrained(model, tokenizer=tiny_tokenizer)
    assert "\n" not in str(caught.value)


def test_adapters_beside_the_weights_of_their_base_are_merged_into_these(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    model = adapted(folder)
    model.save_pretrained(folder)
    for name in (str(folder), "."):
        change(folder / "adapter_config.json", base_model_name_or_path=name)
        encoder = Encoder.from_pretrained(folder, device="cpu", dtype="float32", prompt="raw")
        assert relative(encoder.encode(TEXTS), vectors_of(model, tiny_tokenizer)) < 1e-5
        assert (encoder.name, encoder.model.name_or_path) == (str(folder), str(folder))
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(SourceError, match=rf"^{folder} cannot be loaded: ") as caught:
        Encoder.from_pretrained(folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("put", [get_peft_model, lambda model, config: model.add_adapter(config)], ids=["peft", "add"])
def test_adapters_that_were_put_into_an_encoders_model_are_saved_merged(
    base: Path, tmp_path: Path, put: Callable[[Any, Any], Any]
) -> None:
    encoder = Encoder.from_pretrained(base, device="cpu", dtype="float32", bidirectional="last:2", prompt="raw")
    put(encoder.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    vectors = encoder.encode(TEXTS)
    encoder.save_pretrained(tmp_path / "saved")
    assert (encoder.encode(TEXTS) == vectors).all()
    assert relative(Encoder.from_pretrained(tmp_path / "saved", device="cpu").encode(TEXTS), vectors) < 1e-5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base_model_name_or_path": "/no/where"}, "holds adapters, and their base model cannot be loaded: /no/where"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": 3}, "names no base model"),
        ({"revision": 3}, "has revision=3. Write a branch"),
        ({"base_model_name_or_path": "."}, r"the adapter rests on itself \(.*adapter -> .*adapter\). Name the model"),
        ({"lora_alpha": "x"}, "do not fit their base model"),
    ],
)
def test_adapters_without_their_base_are_refused_in_one_line(
    base: Path, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    adapted(base).save_pretrained(tmp_path / "adapter")
    change(tmp_path / "adapter" / "adapter_config.json", **values)
    with pytest.raises(SourceError, match=said) as caught:
        Encoder.from_pretrained(tmp_path / "adapter", device="cpu")
    assert "\n" not in str(caught.value)


def test_code_of_a_tokenizer_beside_adapters_is_refused(base: Path, tmp_path: Path) -> None:
    adapted(base).save_pretrained(tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path / "adapter")
    change(tmp_path / "adapter" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    with pytest.raises(SourceError, match=r"for its tokenizer \(tokenization_own.Own\)"):
        Encoder.from_pretrained(tmp_path / "adapter", device="cpu")


def test_adapters_that_name_each_other_are_refused(base: Path, tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "three"), ("three", "two")):
        adapted(base).save_pretrained(tmp_path / name)
        change(tmp_path / name / "adapter_config.json", base_model_name_or_path=f"../{other}")
    with pytest.raises(SourceError, match=r"rests on itself \(.*two -> .*three -> .*two\)") as caught:
        Encoder.from_pretrained(tmp_path / "one", device="cpu")
    assert "\n" not in str(caught.value)


SETTINGS = {"bidirectional": "first:2", "pooling": "mean", "prompt": "Text: {text}", "normalize": True}


def test_adapters_on_a_saved_encoder_keep_its_settings_below_their_own(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encoder = Encoder.from_pretrained(base, device="cpu", dtype="float32", max_tokens=40, **SETTINGS)
    encoder.save_pretrained(tmp_path / "encoder")
    model = adapted(tmp_path / "encoder")
    model.save_pretrained(tmp_path / "adapter")
    found = Encoder.from_pretrained(tmp_path / "adapter", device="cpu", dtype="float32")
    wanted = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, config=encoder.config)
    assert found.config == encoder.config
    assert relative(found.encode(TEXTS), wanted.encode(TEXTS)) < 1e-5
    assert Encoder.from_pretrained(tmp_path / "adapter", device="cpu", pooling="last").config.pooling == "last"
    # An encoder that was saved without its base is a base, too.
    alone = Encoder(model, tiny_tokenizer, encoder.config, str(tmp_path / "encoder"))
    alone.replace(verify=False).save_pretrained(tmp_path / "alone")
    change(tmp_path / "alone" / "adapter_config.json", base_model_name_or_path=None)
    assert Encoder.from_pretrained(tmp_path / "alone", device="cpu").config == encoder.config
    second = adapted(base, seed=2)
    second.save_pretrained(tmp_path / "second")
    change(tmp_path / "second" / "adapter_config.json", base_model_name_or_path="../alone")
    settings = {"pooling_mode": "eos_token", "max_length": 64}
    (tmp_path / "second" / "llm2vec_config.json").write_text(json.dumps(settings))
    config = Encoder.from_pretrained(tmp_path / "second", device="cpu", dtype="float32").config
    assert (config.bidirectional, config.pooling, config.max_tokens, config.normalize) == (
        (0, 1, 2, 3),
        "last",
        64,
        True,
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"target_modules": ["q_proj"]}, r"8 of their weights find no place \(model.layers.0.mlp.down_proj.lora_A"),
        ({"layers_to_transform": [0, 1, 2]}, r"4 of their weights find no place \(model.layers.3.mlp.down_proj"),
        ({}, r"1 of their weights find no place \(model.layers.9.self_attn.q_proj.lora_A.weight\)"),
    ],
    ids=["targets", "layers", "deeper"],
)
def test_adapters_with_weights_that_find_no_place_are_refused(
    base: Path, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    adapted(base).save_pretrained(tmp_path / "adapter")
    change(tmp_path / "adapter" / "adapter_config.json", **values)
    if not values:
        weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(2, 32)
        save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=said) as caught:
        Encoder.from_pretrained(tmp_path / "adapter", device="cpu")
    assert "\n" not in str(caught.value)


def test_adapters_that_cannot_be_merged_are_refused_in_one_line(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(SourceError, match="PROMPT_TUNING"):
        Encoder.from_pretrained(tmp_path / "adapter", device="cpu")
    with pytest.raises(SourceError, match="cannot be merged into its weights"):
        Encoder.from_pretrained(model, tokenizer=tiny_tokenizer)  # type: ignore[arg-type]
    (tmp_path / "adapter" / "adapter_config.json").write_text("[]")
    with pytest.raises(SourceError, match="holds a list, not an object"):
        Encoder.from_pretrained(tmp_path / "adapter", device="cpu")


# sentence-transformers


def sentence_transformer(base: Path, folder: Path, pooling: str, *more: Any, **options: Any) -> SentenceTransformer:
    transformer = Transformer(str(base), max_seq_length=24)
    transformer.tokenizer.model_max_length = 24
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling), *more], device="cpu", **options)
    model.save(str(folder))
    return model


@pytest.mark.filterwarnings("ignore:All texts have the same vector")  # That of the first token of a causal model.
@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "weightedmean", "lasttoken"])
def test_a_sentence_transformers_folder_gives_its_vectors(base: Path, tmp_path: Path, pooling: str) -> None:
    prompts = {"query": "Find: ", "passage": "Doc: ", "topic": "Topic of "}
    model = sentence_transformer(
        base, tmp_path / "st", pooling, Normalize(), prompts=prompts, default_prompt_name="topic"
    )
    encoder = Encoder.from_pretrained(tmp_path / "st", device="cpu", dtype="float32")
    assert encoder.config.max_tokens == 24
    assert relative(encoder.encode(TEXTS), model.encode(TEXTS)) < 1e-5
    assert relative(encoder.encode_query(TEXTS), model.encode_query(TEXTS)) < 1e-5
    assert relative(encoder.encode_document(TEXTS), model.encode_document(TEXTS)) < 1e-5
    other = Encoder.from_pretrained(tmp_path / "st", device="cpu", prompt="raw", normalize=False, pooling="mean")
    assert (other.config.prompt.name, other.config.normalize, other.config.pooling) == ("raw", False, "mean")


def test_names_and_folders_of_older_sentence_transformers_are_understood(base: Path, tmp_path: Path) -> None:
    wanted = sentence_transformer(base, tmp_path / "st", "mean").encode(TEXTS)
    flags = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ("cls_token", "mean_tokens", "max_tokens")}
    pooling = {"word_embedding_dimension": 32, **flags, "pooling_mode_mean_sqrt_len_tokens": False}
    (tmp_path / "st" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "st" / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", SENTENCE_CONFIG):
        (tmp_path / "st" / name).rename(tmp_path / "st" / "0_Transformer" / name)
    modules = json.loads((tmp_path / "st" / "modules.json").read_text())
    modules[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    modules[1] |= {"type": "sentence_transformers.models.Pooling"}
    (tmp_path / "st" / "modules.json").write_text(json.dumps(modules))
    encoder = Encoder.from_pretrained(tmp_path / "st", device="cpu", dtype="float32")
    assert relative(encoder.encode(TEXTS), wanted) < 1e-5
    assert encoder.config.max_tokens == 24


LONG = [" ".join(TEXTS * 12), *TEXTS]


@pytest.mark.parametrize(
    "values",
    [
        {"tokenizer_args": {"model_max_length": 12}},
        {"processor_kwargs": {"model_max_length": 12}, "max_seq_length": 24},
        {"max_seq_length": 100},
        {"max_seq_length": None},
        {"max_seq_length": None, "processor_kwargs": {"model_max_length": 100, "padding_side": "left"}},
        {"processor_kwargs": {"bos_token": "</s>"}, "model_kwargs": {"attn_implementation": "eager"}},
    ],
    ids=str,
)
def test_arguments_of_a_tokenizer_are_those_of_sentence_transformers(
    base: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    sentence_transformer(base, tmp_path / "st", "mean")
    change(tmp_path / "st" / SENTENCE_CONFIG, **values)
    model = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    encoder = Encoder.from_pretrained(tmp_path / "st", device="cpu", dtype="float32")
    assert encoder.config.max_tokens == model.max_seq_length
    with pytest.warns(TruncationWarning):
        assert relative(encoder.encode(LONG), model.encode(LONG)) < 1e-5


def test_a_given_tokenizer_replaces_that_of_the_folder_within_its_limit(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sentence_transformer(base, tmp_path / "st", "mean")
    change(tmp_path / "st" / SENTENCE_CONFIG, max_seq_length=24)
    encoder = Encoder.from_pretrained(tmp_path / "st", device="cpu", tokenizer=tiny_tokenizer)
    assert (encoder.tokenizer, encoder.config.max_tokens, tiny_tokenizer.model_max_length) == (tiny_tokenizer, 24, 128)


def test_a_limit_beyond_the_models_positions_is_said(base: Path, tmp_path: Path) -> None:
    sentence_transformer(base, tmp_path / "st", "mean")
    change(tmp_path / "st" / SENTENCE_CONFIG, max_seq_length=4096)
    with pytest.warns(BellmWarning, match="takes texts of 4096 tokens, and its model has 128 positions"):
        assert Encoder.from_pretrained(tmp_path / "st", device="cpu").config.max_tokens == 128


def test_a_chat_template_around_texts_is_said(base: Path, tmp_path: Path) -> None:
    sentence_transformer(base, tmp_path / "st", "mean")
    modality = {"text": TEXT, "message": {"method": "forward", "format": "flat"}}
    change(tmp_path / "st" / SENTENCE_CONFIG, modality_config=modality)
    with pytest.warns(BellmWarning, match="wraps texts of .* in a chat template, and bellm does not"):
        Encoder.from_pretrained(tmp_path / "st", device="cpu")


SPOILT: list[tuple[dict[str, Any], str]] = [
    ({"do_lower_case": True}, "do_lower_case"),
    ({"tokenizer_name_or_path": "elsewhere"}, "tokenizer_name_or_path='elsewhere'"),
    ({"config_args": {"is_causal": False}}, r"config_kwargs=\{'is_causal': False\}"),
    ({"model_kwargs": {"variant": "fp16"}}, r"model_kwargs=\{'variant': 'fp16'\}"),
    ({"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs="),
    ({"query_length": 9}, "query_length=9"),
    ({"transformer_task": "fill-mask"}, "transformer_task='fill-mask'"),
    ({"module_output_name": "sentence_embedding"}, "module_output_name='sentence_embedding'"),
    ({"modality_config": {"text": TEXT | {"method": "get_text_features"}}}, "get_text_features"),
    ({"what_comes_next": 1}, "what_comes_next=1"),
]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: change(folder / "1_Pooling" / "config.json", pooling_mode="mean_sqrt_len_tokens"), "mean_sqrt"),
        (lambda folder: change(folder / "1_Pooling" / "config.json", pooling_mode=["mean", "cls"]), "mean, cls"),
        (lambda folder: change(folder / "1_Pooling" / "config.json", include_prompt=False), "include_prompt"),
        *((lambda folder, spoilt=spoilt: change(folder / SENTENCE_CONFIG, **spoilt), said) for spoilt, said in SPOILT),
    ],
)
def test_what_bellm_has_not_is_refused_in_one_line(
    base: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    sentence_transformer(base, tmp_path / "st", "mean")
    spoil(tmp_path / "st")
    with pytest.raises(SourceError, match=said) as caught:
        Encoder.from_pretrained(tmp_path / "st", device="cpu")
    assert "\n" not in str(caught.value)
    assert "st:" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (SENTENCE_CONFIG, {"processor_kwargs": {"truncation_side": "left"}}),
        (SENTENCE_CONFIG, {"tokenizer_args": {"truncation_side": "left"}}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
    ],
)
def test_texts_that_are_cut_at_their_beginning_are_refused(
    base: Path, tmp_path: Path, file: str, values: dict[str, Any]
) -> None:
    sentence_transformer(base, tmp_path / "st", "mean")
    change(tmp_path / "st" / file, **values)
    with pytest.raises(SourceError, match="a tokenizer that cuts texts at their beginning") as caught:
        Encoder.from_pretrained(tmp_path / "st", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompts", [{}, {"topic": "Topic of "}, {"topic": "Topic of ", "passage": "Doc: "}], ids=str)
def test_prompts_and_truncation_are_those_of_sentence_transformers(
    base: Path, tmp_path: Path, prompts: dict[str, str]
) -> None:
    sentence_transformer(base, tmp_path / "st", "mean")
    default = "topic" if prompts else None
    change(
        tmp_path / "st" / "config_sentence_transformers.json",
        prompts=prompts,
        default_prompt_name=default,
        truncate_dim=8,
    )
    model = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    encoder = Encoder.from_pretrained(tmp_path / "st", device="cpu", dtype="float32")
    for method in ("encode", "encode_query", "encode_document"):
        found, wanted = getattr(encoder, method)(TEXTS), getattr(model, method)(TEXTS)
        assert found.shape == (3, 8)
        assert relative(found, wanted) < 1e-5, method


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("modules.json", {}, "no list of objects with a type"),
        ("modules.json", [{"idx": 0}], "no list of objects with a type"),
        ("1_Pooling/config.json", [], "holds a list, not an object"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "with pooling 3"),
        ("config_sentence_transformers.json", [], "holds a list, not an object"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts that are no texts"),
        ("config_sentence_transformers.json", {"default_prompt_name": ["a"]}, "not among its prompts"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "Find {text}: "}},
            r"has the prompt 'Find \{text\}: '.* Give prompt='Find \{text\}: '",
        ),
        (SENTENCE_CONFIG, {"max_seq_length": "24"}, "has max_seq_length='24'"),
        (SENTENCE_CONFIG, {"tokenizer_args": {"model_max_length": 0}}, "has model_max_length=0"),
        (SENTENCE_CONFIG, {"tokenizer_args": [1]}, "has tokenizer_args or processor_kwargs that are no object"),
        (SENTENCE_CONFIG, {"processor_kwargs": {"bos_token": 7}}, "The tokenizer in .* cannot be read"),
    ],
)
def test_spoilt_files_are_refused_in_one_line(base: Path, tmp_path: Path, name: str, content: Any, said: str) -> None:
    sentence_transformer(base, tmp_path / "st", "mean")
    (tmp_path / "st" / name).write_text(json.dumps(content))
    with pytest.raises(SourceError, match=said) as caught:
        Encoder.from_pretrained(tmp_path / "st", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 1), (0,), (1, 2)], ids=str)
def test_modules_in_another_order_are_refused(base: Path, tmp_path: Path, order: tuple[int, ...]) -> None:
    sentence_transformer(base, tmp_path / "st", "mean", Normalize())
    modules = json.loads((tmp_path / "st" / "modules.json").read_text())
    (tmp_path / "st" / "modules.json").write_text(json.dumps([modules[index] for index in order]))
    with pytest.raises(SourceError, match="modules other than Transformer, Pooling and perhaps Normalize"):
        Encoder.from_pretrained(tmp_path / "st", device="cpu")


def test_a_dense_layer_is_refused(base: Path, tmp_path: Path) -> None:
    sentence_transformer(base, tmp_path / "st", "mean", Dense(32, 8))
    with pytest.raises(SourceError, match="Dense"):
        Encoder.from_pretrained(tmp_path / "st", device="cpu")


# LLM2Vec


def test_an_llm2vec_folder_opens_every_layer_and_pools_the_text(
    base: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    adapted(base, head=False).save_pretrained(tmp_path / "l2v")
    settings = {"pooling_mode": "mean", "max_length": 64, "doc_max_length": 40, "skip_instruction": True}
    (tmp_path / "l2v" / "llm2vec_config.json").write_text(json.dumps(settings))
    encoder = Encoder.from_pretrained(tmp_path / "l2v", device="cpu", dtype="float32")
    config = encoder.config
    assert (config.bidirectional, config.pooling, config.max_tokens) == ((0, 1, 2, 3), "mean-text", 64)
    model = adapted(base, head=False).merge_and_unload()
    model.config.is_causal = False
    with torch.inference_mode():
        states = [model(tiny_tokenizer(text, return_tensors="pt").input_ids).last_hidden_state[0] for text in TEXTS]
    wanted = torch.stack([states_LD[1:].mean(0) for states_LD in states]).numpy()  # Without the BOS token.
    assert relative(encoder.encode(TEXTS), wanted) < 1e-5


def test_llm2vecs_own_poolings_and_wrapped_texts_are_said(base: Path, tmp_path: Path) -> None:
    base.rename(base.with_name("model-instruct"))
    try:
        adapted(base.with_name("model-instruct")).save_pretrained(tmp_path / "l2v")
        (tmp_path / "l2v" / "llm2vec_config.json").write_text(json.dumps({"pooling_mode": "eos_token"}))
        with pytest.warns(BellmWarning, match=r"Give prompt='\[INST\] \{text\} \[/INST\]'"):
            assert Encoder.from_pretrained(tmp_path / "l2v", device="cpu").config.pooling == "last"
        (tmp_path / "l2v" / "llm2vec_config.json").write_text(json.dumps({"pooling_mode": "latent"}))
        with pytest.raises(SourceError, match="asks for pooling latent"):
            Encoder.from_pretrained(tmp_path / "l2v", device="cpu")
    finally:
        base.with_name("model-instruct").rename(base)


# Objects


def test_objects_that_are_no_models_in_memory_are_refused_in_one_line(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.device("meta"):
        meta = LlamaForCausalLM(tiny_model.config)
    eight_bit = LlamaForCausalLM(tiny_model.config)
    eight_bit.is_loaded_in_8bit = True
    cases = {
        "torch.compile": torch.compile(tiny_model),
        "not in memory": meta,
        "8 bits": eight_bit,
        "Linear": torch.nn.Linear(2, 2),
        "this is int": 3,
        "this is NoneType": None,
    }
    for said, source in cases.items():
        with pytest.raises(BellmError, match=said) as caught:
            Encoder.from_pretrained(source, tokenizer=tiny_tokenizer)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
