"""Read what other libraries saved, or hold in memory: PEFT adapters, sentence-transformers folders, LLM2Vec folders.

Their settings come by the names of `EncoderConfig`'s fields. What cannot be taken over is refused.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm.backbone import loading
from bellm.backbone.source_names import EXPORT_FILE, SETTINGS_FILE, VIEWS_FILE, is_hub_id, split_revision
from bellm.errors import BellmError, BellmWarning, SourceError, warn
from bellm.io.hub import fetch_files
from bellm.prompts import PROMPTS, SLOT, Prompt

ADAPTER_FILE = "adapter_config.json"
MODULES_FILE = "modules.json"
LLM2VEC_FILE = "llm2vec_config.json"
MARKERS = (SETTINGS_FILE, ADAPTER_FILE, MODULES_FILE, LLM2VEC_FILE, VIEWS_FILE, EXPORT_FILE)
PATTERNS = [
    *loading.MODEL_FILES,
    "*/model*.safetensors",
    "adapter_model.safetensors",
    "fingerprint.safetensors",
    "vector_statistics.safetensors",
]
"""Files that are fetched from the Hub for a source with one of these."""

_POOLINGS = {"cls": "first", "max": "max", "mean": "mean", "weightedmean": "weighted-mean", "lasttoken": "last"}
"""Names of sentence-transformers; its older versions wrote them as `pooling_mode_cls_token: true`."""

_OLD_NAME = re.compile("^pooling_mode_|_tokens?$")

_ARGUMENTS = {"tokenizer_args": "processor_kwargs", "model_args": "model_kwargs", "config_args": "config_kwargs"}
"""Older names of arguments in a transformer's file, and their names of today."""

_HUB = {"subfolder", "token", "cache_dir", "revision", "local_files_only", "trust_remote_code"}
_MEMORY = {"attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"}
_LOADING = _HUB | _MEMORY
"""Arguments that say how a model is loaded, which is the affair of whoever loads it."""

_FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}
_USUAL = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}

_LLM2VEC_POOLINGS = {"mean": "mean-text", "weighted_mean": "weighted-mean", "eos_token": "last", "bos_token": "first"}

_WRAPPED = ("instruct", "chat", "-it")
"""In names of base models whose texts LLM2Vec wraps as a turn of a chat."""


@dataclass(frozen=True)
class Layout:
    """What a folder holds."""

    model_folder: Path
    """Where its weights, or adapters, and its tokenizer are."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What another library's files say of an encoder's settings."""
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    """Arguments that they load the tokenizer with."""
    base: str | None = None
    """Source of the model that its adapters were trained on; None for whole models."""


def fetch_layout(source: str) -> Path | None:
    """Folder of a source with files of bellm or another library, fetched from the Hub if need be; None for others."""
    hub_id, revision = split_revision(source)
    folder = Path(loading.reach(hub_id, revision) if is_hub_id(hub_id) else source)
    if str(folder) == hub_id and is_hub_id(hub_id):
        folder = fetch_files(hub_id, revision, MARKERS)
        if any((folder / name).is_file() for name in MARKERS):
            fetch_files(hub_id, revision, PATTERNS)
    return folder if any((folder / name).is_file() for name in MARKERS) else None


def read_layout(folder: Path) -> Layout:
    """Read what a folder of `fetch_layout` holds; where bellm wrote it, settings are the affair of `bellm.saving`."""
    layout, own = Layout(folder), _read_object(folder / SETTINGS_FILE)
    if (folder / EXPORT_FILE).is_file():
        return layout
    if not own and (folder / MODULES_FILE).is_file():
        layout = _read_sentence_transformers(folder)
    if not own and (folder / LLM2VEC_FILE).is_file():
        layout = replace(layout, settings=_read_llm2vec(folder))
    path = layout.model_folder / ADAPTER_FILE
    if not path.is_file():
        return layout
    config = _read_object(path)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    base, revision = (own["base_model"], None) if own else (base, revision)
    if not base or not isinstance(base, str):
        raise SourceError(f"{path} names no base model. Name it there as base_model_name_or_path.")
    if not isinstance(revision, str | None):
        raise SourceError(f"{path} has revision={revision!r}. Write a branch, tag or commit of the base model there.")
    return replace(layout, base=f"{base}@{revision}" if revision and is_hub_id(base) else base)


def plain_config(folder: Path) -> dict[str, Any]:
    """Configuration of the model of an export, without what opens layers there."""
    config = _read_object(folder / "config.json")
    is_open = config.pop("open_attention", None) is not None
    dropped = ("auto_map", "architectures", "keep_window", "is_causal") if is_open else ("is_causal",)
    model_type = str(config.get("model_type")).removeprefix("bellm_")
    return {name: value for name, value in config.items() if name not in dropped} | {"model_type": model_type}


def own_tokenizer(layout: Layout, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Tokenizer of a folder, loaded as its files say; None where that is the one that comes with the model."""
    folder, options = layout.model_folder, layout.tokenizer_options
    if not options and (layout.base is None or not (folder / "tokenizer_config.json").is_file()):
        return None
    try:
        return loading.load_tokenizer(str(folder), str(folder), trust_remote_code=trust_remote_code, **options)
    except BellmError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"The tokenizer in {folder} cannot be read: {' '.join(str(error).split())}") from error


def merge_folder(loaded: loading.LoadedModel, folder: Path) -> loading.LoadedModel:
    """Merge a folder of PEFT adapters into their base model."""
    from bellm.backbone import adapters

    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            names = list(file.keys())
        # Adapters of a model without head, such as LLM2Vec's, name its modules without the head's prefix.
        with_head = any(name.startswith(f"base_model.model.{loaded.model.base_model_prefix}.") for name in names)
        merged = adapters.load_adapters(loaded.model if with_head else loaded.model.base_model, folder)
    except (OSError, SafetensorError, AttributeError) as error:
        kind = _read_object(folder / ADAPTER_FILE).get("peft_type")
        raise SourceError(
            f"{folder} holds adapters of type {kind} that cannot be merged into their base model: {error}. bellm takes "
            "LoRA and its relatives, as safetensors."
        ) from error
    return replace(loaded, model=merged if with_head else loaded.model)


def has_adapters(model: nn.Module) -> bool:
    """Whether a model is one of PEFT, or PEFT put adapters into it."""
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def in_memory(model: Any) -> PreTrainedModel:
    """The model itself, or a copy of it with those of its adapters merged that act in a forward pass."""
    name = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise SourceError(f"{name} is what torch.compile gave. Give the model from before it.")
    if not isinstance(model, nn.Module) or not (isinstance(model, PreTrainedModel) or hasattr(model, "peft_config")):
        raise SourceError(
            f"A source is a Hub id, a folder, a GGUF file or a loaded transformers model, and this is {name}: load the "
            "model with transformers, and give it with its tokenizer."
        )
    if getattr(model, "is_loaded_in_8bit", False):
        raise SourceError(f"{name} is quantized to 8 bits, which bellm cannot run. Load it in bfloat16 or float32.")
    merged = model
    if has_adapters(model):
        from bellm.backbone import adapters  # It needs peft, which brought these.

        merged = adapters.merged_copy(model)
    if not isinstance(merged, PreTrainedModel):
        raise SourceError(
            f"{name} has adapters that cannot be merged into its weights, such as prompts. bellm takes LoRA and its "
            "relatives: give the model without these adapters."
        )
    return merged


def _read_sentence_transformers(folder: Path) -> Layout:
    """Folder of the transformer, arguments of its tokenizer, and the settings that the modules stand for."""

    def refuse(what: str) -> SourceError:
        return SourceError(
            f"{folder} is a sentence-transformers model with {what}, which bellm does not have. bellm evaluate takes "
            f"it as it is: st:{folder}."
        )

    model_folder = folder
    tokenizer_options: dict[str, Any] = {}
    settings: dict[str, Any] = {"pooling": "mean", "normalize": False}
    kinds = []
    for module in _read_modules(folder / MODULES_FILE):
        library, _, kind = str(module["type"]).partition(".")
        path, kind = folder / str(module.get("path", "")), kind.rpartition(".")[2]
        if library == "bellm":
            raise SourceError(
                f"{folder} was saved by bellm, and its {SETTINGS_FILE} is missing. Restore it, or take {MODULES_FILE} "
                "away to load the plain causal model."
            )
        match kind if library == "sentence_transformers" else None:
            case "Transformer":
                model_folder = path
                tokenizer_options, rest = _read_transformer(path / "sentence_bert_config.json")
                if rest:
                    raise refuse(", ".join(f"{name}={value!r}" for name, value in rest.items()))
                settings["max_tokens"] = tokenizer_options.get("model_max_length")
            case "Pooling":
                config = _read_object(path / "config.json")
                legacy = [name for name in config if name.startswith("pooling_mode_") and config[name]]
                modes = config.get("pooling_mode") or [_OLD_NAME.sub("", name) for name in legacy]
                modes = modes if isinstance(modes, list) else [modes]
                if len(modes) != 1 or str(modes[0]) not in _POOLINGS:
                    raise refuse(f"pooling {', '.join(map(str, modes))}")
                if not config.get("include_prompt", True):
                    raise refuse("include_prompt=false in its pooling")
                settings["pooling"] = _POOLINGS[modes[0]]
            case "Normalize":
                settings["normalize"] = True
            case "Dropout":
                continue  # Does nothing but in training.
            case _:
                raise refuse(f"a module {module['type']}")
        kinds.append(kind)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise refuse(
            f"modules other than Transformer, Pooling and perhaps Normalize in this order ({', '.join(kinds)})"
        )
    path = folder / "config_sentence_transformers.json"
    config = _read_object(path)
    settings |= {"prompt": _read_prompts(path, config), "truncate_dim": _read_count(path, config, "truncate_dim")}
    if settings["normalize"] and settings["truncate_dim"]:
        message = f"sentence-transformers cuts vectors of {folder} after it has normalized them, and bellm before."
        warn(f"{message} Cosines are the same, and bellm's vectors have length 1.", BellmWarning)
    return Layout(model_folder, settings, tokenizer_options)


def _read_transformer(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the tokenizer, and what else decides vectors in the file of a transformer module."""
    config = _read_object(path)
    arguments = {}
    for old, name in _ARGUMENTS.items():
        given = config.pop(name, None)
        given = config.pop(old, given) or {}
        if not isinstance(given, dict):
            raise SourceError(
                f"{path} has {old} or {name} that are no object. Restore what sentence-transformers wrote."
            )
        arguments[name] = {key: value for key, value in given.items() if key not in _LOADING}
    limit = _read_count(path, config, "max_seq_length")
    tokenizer_options = ({"model_max_length": limit} if limit else {}) | arguments["processor_kwargs"]
    _read_count(path, tokenizer_options, "model_max_length")
    modalities = config.pop("modality_config", None) or {"text": _FORWARD}
    if isinstance(modalities, dict) and "message" in modalities:
        message = f"sentence-transformers wraps texts of {path.parent} in a chat template, and bellm does not."
        warn(f"{message} Give prompt='chat' to do so.", BellmWarning)
    if not isinstance(modalities, dict) or modalities.get("text") != _FORWARD:
        config["modality_config"] = modalities
    config |= {name: arguments[name] for name in ("model_kwargs", "config_kwargs")}
    usual = {"max_seq_length": limit, "unpad_inputs": config.get("unpad_inputs"), **_USUAL}
    return tokenizer_options, {name: value for name, value in config.items() if value and value != usual.get(name)}


def _read_modules(path: Path) -> list[dict[str, Any]]:
    """The modules in their order, each with its type."""
    modules = _read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) and "type" in module for module in modules):
        raise SourceError(f"{path} is no list of objects with a type. Restore what sentence-transformers wrote.")
    return modules


def _read_count(path: Path, config: dict[str, Any], name: str) -> int | None:
    """A whole number of a file, or None."""
    count = config.get(name)
    if count is None or (type(count) is int and count > 0):
        return count
    raise SourceError(f"{path} has {name}={count!r}. Write a whole number from 1 on there, or null.")


def _read_prompts(path: Path, config: dict[str, Any]) -> Prompt:
    """The prompts that sentence-transformers puts before texts, queries and documents: nothing where it has none."""
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise SourceError(f"{path} has prompts that are no texts by name. Write an object of strings there.")
    if default is not None and default not in ("query", "document", *prompts):
        raise SourceError(
            f"{path} has default_prompt_name={default!r}, which is not among its prompts. Write it there."
        )
    used = [prompts.get(name) or "" for name in (default, "query", "document")]
    if slotted := next((prompt for prompt in used if SLOT in prompt), None):
        raise SourceError(
            f"{path} has the prompt {slotted!r}, which sentence-transformers puts before each text as it is, with "
            f"{SLOT}. Give prompt={slotted!r} for a template."
        )
    text, query, document = (f"{prompt}{SLOT}" for prompt in used)
    return (
        PROMPTS["raw"] if text == query == document == SLOT else Prompt("sentence-transformers", text, query, document)
    )


def _read_llm2vec(folder: Path) -> dict[str, Any]:
    """All layers open, and the pooling and length of LLM2Vec (arXiv 2404.05961)."""
    config = _read_object(folder / LLM2VEC_FILE)
    mode = config.get("pooling_mode", "mean")
    if str(mode) not in _LLM2VEC_POOLINGS:
        raise SourceError(f"{folder / LLM2VEC_FILE} asks for pooling {mode}, which bellm does not have.")
    base = str(_read_object(folder / ADAPTER_FILE).get("base_model_name_or_path", folder)).lower()
    if any(part in base for part in _WRAPPED):
        message = f"LLM2Vec wraps texts for {base} as a turn of a chat, and bellm does not."
        warn(f"{message} Give prompt='[INST] {{text}} [/INST]', or what its chat has.", BellmWarning)
    pooling = "mean" if mode == "mean" and not config.get("skip_instruction", True) else _LLM2VEC_POOLINGS[mode]
    limit = _read_count(folder / LLM2VEC_FILE, config, "max_length")
    return {"bidirectional": "all", "pooling": pooling, "prompt": PROMPTS["raw"], "max_tokens": limit}


def _read_json(path: Path) -> Any:
    """Content of a JSON file, and {} where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error


def _read_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object, and {} where there is no file."""
    content = _read_json(path)
    if not isinstance(content, dict):
        raise SourceError(f"{path} holds a {type(content).__name__}, not an object. Restore the file of its library.")
    return content
