"""Load what other libraries saved, or hold in memory: PEFT adapters, sentence-transformers folders, LLM2Vec folders.

Their settings come by the names of `EncoderConfig`'s fields. What cannot be taken over is refused.
"""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from bellm.backbone import loading
from bellm.errors import BellmWarning, SourceError, warn
from bellm.prompts import PROMPTS, SLOT, Prompt

SETTINGS_FILE = "bellm.json"
ADAPTER_FILE = "adapter_config.json"
MODULES_FILE = "modules.json"
LLM2VEC_FILE = "llm2vec_config.json"
MARKERS = (SETTINGS_FILE, ADAPTER_FILE, MODULES_FILE, LLM2VEC_FILE)
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py", "README.md"]
"""Files that are fetched from the Hub for a source with one of these; code runs with `trust_remote_code` alone."""

_POOLINGS = {"cls": "first", "max": "max", "mean": "mean", "weightedmean": "weighted-mean", "lasttoken": "last"}
"""Names of sentence-transformers; its older versions wrote them as `pooling_mode_cls_token: true`."""

_OLD_NAME = re.compile("^pooling_mode_|_tokens?$")

_LLM2VEC_POOLINGS = {"mean": "mean-text", "weighted_mean": "weighted-mean", "eos_token": "last", "bos_token": "first"}

_WRAPPED = ("instruct", "chat", "-it")
"""In names of base models whose texts LLM2Vec wraps as a turn of a chat."""


def fetch_layout(source: str) -> Path | None:
    """Folder of a source with files of bellm or another library, fetched from the Hub if need be; None for others."""
    hub_id, revision = loading.split_revision(source)
    folder = Path(loading.reach(hub_id, revision) if loading.is_hub_id(hub_id) else source)
    if str(folder) == hub_id and loading.is_hub_id(hub_id):
        try:
            folder = Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=list(MARKERS)))
            if any((folder / name).is_file() for name in MARKERS):
                huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=PATTERNS)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise SourceError(f"{source} cannot be fetched from the Hub: {str(error).splitlines()[0]}") from error
    return folder if any((folder / name).is_file() for name in MARKERS) else None


def load_layout(source: Any, folder: Path | None, **options: Any) -> tuple[loading.LoadedModel, dict[str, Any]]:
    """Load a source, and the settings that its files ask for; `folder` is what `fetch_layout` gave for it.

    Options are those of `loading.load_pretrained`.
    """
    if not isinstance(source, str | Path):
        return loading.load_pretrained(_in_memory(source), **options), {}
    if folder is None:
        return loading.load_pretrained(source, **options), {}
    model_folder = folder
    settings: dict[str, Any] = {}
    if (folder / MODULES_FILE).is_file():
        model_folder, settings = _read_sentence_transformers(folder)
    if (model_folder / ADAPTER_FILE).is_file():
        loaded = load_adapted(model_folder, **options)
    else:
        loaded = loading.load_pretrained(model_folder, **options)
    if (folder / LLM2VEC_FILE).is_file():
        settings = _read_llm2vec(folder)
    if limit := settings.pop("max_tokens", None):
        settings["max_tokens"] = min(limit, loading.max_positions(loaded.model, loaded.tokenizer))
    return replace(loaded, name=str(source)), settings


def load_adapted(folder: Path, base: str | None = None, **options: Any) -> loading.LoadedModel:
    """Load the base model of a folder of PEFT adapters, `base` or the one that they name, and merge them into it.

    The tokenizer is the folder's own where it has one.
    """
    try:
        from bellm.backbone import adapters
    except ImportError as error:
        raise SourceError(f"{folder} holds adapters, which need peft: pip install 'bellm[train]'.") from error
    config = _read_object(folder / ADAPTER_FILE)
    base = base or config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise SourceError(f"{folder / ADAPTER_FILE} names no base model. Name it there as base_model_name_or_path.")
    if folder.resolve() in (Path(base).resolve(), (folder / base).resolve()):
        raise SourceError(
            f"{folder / ADAPTER_FILE} names its own folder as base model. Name there, as base_model_name_or_path, the "
            "model that the adapters were trained on."
        )
    if not options.get("tokenizer") and (folder / "tokenizer_config.json").is_file():
        try:
            options["tokenizer"] = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise SourceError(f"The tokenizer in {folder} cannot be read: {' '.join(str(error).split())}") from error
    base = str(folder / base) if (folder / base).is_dir() else base
    try:
        loaded, _ = load_layout(base, fetch_layout(base), **options)
    except SourceError as error:
        raise SourceError(f"{folder} holds adapters, and their base model is not there: {error}") from error
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            names = list(file.keys())
        # Adapters of a model without head, such as LLM2Vec's, name its modules without the head's prefix.
        with_head = any(name.startswith(f"base_model.model.{loaded.model.base_model_prefix}.") for name in names)
        merged = adapters.load_adapters(loaded.model if with_head else loaded.model.base_model, folder)
    except (OSError, SafetensorError, AttributeError, NotImplementedError) as error:
        raise SourceError(
            f"{folder} holds adapters of type {config.get('peft_type')} that cannot be merged into their base model: "
            f"{error}. bellm takes LoRA and its relatives, as safetensors."
        ) from error
    return replace(loaded, model=merged if with_head else loaded.model)


def _in_memory(model: Any) -> PreTrainedModel:
    """The model itself, or a copy of it with its adapters merged."""
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
    merged: Any = copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model  # type: ignore[operator]
    if not isinstance(merged, PreTrainedModel):
        raise SourceError(
            f"{name} has adapters that cannot be merged into its weights, such as prompts. bellm takes LoRA and its "
            "relatives: give the model without these adapters."
        )
    return merged


def _read_sentence_transformers(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of the transformer, and the settings that the modules stand for."""

    def refuse(what: str) -> SourceError:
        return SourceError(
            f"{folder} is a sentence-transformers model with {what}, which bellm does not have. bellm evaluate takes "
            f"it as it is: st:{folder}."
        )

    model_folder, settings = folder, {"pooling": "mean", "normalize": False}
    kinds = []
    for module in _read_modules(folder / MODULES_FILE):
        library, _, kind = str(module["type"]).partition(".")
        path, kind = folder / str(module.get("path", "")), kind.rpartition(".")[2]
        match kind if library == "sentence_transformers" else None:
            case "Transformer":
                model_folder, config = path, _read_object(path / "sentence_bert_config.json")
                if config.get("do_lower_case"):
                    raise refuse("do_lower_case")
                if "message" in (config.get("modality_config") or {}):
                    message = f"sentence-transformers wraps texts of {folder} in a chat template, and bellm does not."
                    warn(f"{message} Give prompt='chat' to do so.", BellmWarning)
                settings["max_tokens"] = _read_count(path / "sentence_bert_config.json", config, "max_seq_length")
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
    return model_folder, settings


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
    text, query, document = (f"{prompts.get(name) or ''}{SLOT}" for name in (default, "query", "document"))
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
