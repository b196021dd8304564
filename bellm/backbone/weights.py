"""Read a checkpoint's weights, and make sure that they are all those of a decoder."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING_NAMES,
)

import bellm.backbone.quantized_modules  # noqa: F401 - so that transformers knows them
from bellm.backbone.architecture import count_layers, get_decoder, get_text_config
from bellm.errors import SourceError, SourceWarning, warn

_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

_WRAPPERS = r"^(?:base_model\.model\.|module\.|_orig_mod\.)+"
"""What PEFT, DistributedDataParallel and torch.compile put before the names of a model that is saved inside them."""

_WEIGHT = re.compile(r"\.lora_|(^|\.)(weight|bias)$")
"""What is a weight of a quantized model, which has scales and more beside them."""

_TABLE = re.compile(r"masked_bias|causal_mask|position_ids|\w*inv_freq|(cos|sin)_cached|_float_tensor|version")
_AHEAD = re.compile(r"(^|\.)mtp")
"""Layers that predict further tokens."""

_INTEGERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LFS = b"version https://git-lfs"


def check_kind(config: PreTrainedConfig, source: str) -> None:
    """Raise a SourceError where a configuration is not that of a decoder-only language model."""
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map")
    if config.is_encoder_decoder:
        kind, advice = "an encoder-decoder", "Its encoder looks both ways already: sentence-transformers takes it."
    elif masked:
        kind, advice = "an encoder", "It looks both ways already: sentence-transformers takes it."
    elif not known and config.sub_configs:
        kind, advice = "several models in one", "Save its language model alone, and load that."
    elif not known:
        kind, advice = "no language model", "Give a causal language model."
    else:
        return
    raise SourceError(f"{source} is {kind} ({config.model_type}); bellm opens decoder-only language models. {advice}")


def check_class(config: PreTrainedConfig, source: str) -> None:
    """Raise a SourceError where a configuration is of one model, and the class that it names is of another."""
    name = (config.architectures or [""])[0]
    own = getattr(getattr(transformers, name, None), "config_class", None)  # None for classes of others.
    if not isinstance(own, type) or name == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type):
        return
    kinds = (own, *getattr(own, "sub_configs", {}).values())
    if not isinstance(config, kinds) and not isinstance(config.get_text_config(), kinds):
        raise SourceError(
            f"{source} has model_type {config.model_type!r} and architectures {config.architectures}, which are of two "
            "models, and one of them computes other vectors. Restore its config.json."
        )


def check_code(config: PreTrainedConfig, source: str, *, is_trusted: bool) -> None:
    """Raise a SourceError where code that is not trusted makes another model than the class that would run instead.

    Where transformers took the code over, or the source names a class that nobody has, that is a SourceWarning.
    """
    config_class, kind = type(config).__name__, config.model_type
    base_class, head_class = MODEL_MAPPING_NAMES.get(kind), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    native = {"AutoConfig": config_class, "AutoModel": base_class, "AutoModelForCausalLM": head_class}
    code = getattr(config, "auto_map", None) or {}
    own = {part: str(code[part]) for part in native if part in code}
    if own and is_trusted:
        return
    # Whoever brings a configuration, too, wrote before transformers had this kind of model.
    if "AutoConfig" in own and all(own[part].endswith(f".{native[part]}") for part in own):
        message = f"{source} brings Python code for {list(own.values())[-1]}, and transformers' class of that name"
        warn(f"{message} is loaded. Give trust_remote_code=True to run the code.", SourceWarning)
    elif own:
        raise SourceError(
            f"{source} brings Python code of its own for {next(iter(own.values()))}, and transformers would run "
            "another model in its place. Where you trust the code, give trust_remote_code=True; where you want "
            "transformers' model, take auto_map out of config.json."
        )
    name = (config.architectures or [""])[0]
    if name and not own and not hasattr(transformers, name) and not name.endswith(str(head_class)):
        message = f"{source} is of the class {name}, which transformers does not have: a {head_class or base_class}"
        warn(f"{message} is loaded. Where {name} computes otherwise, its vectors are others.", SourceWarning)


def check_files(folder: Path, patterns: Collection[str]) -> None:
    """Raise a SourceError where a folder holds pointers of Git LFS or, for weights, pickles or two sets of them."""
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_LFS):
            raise SourceError(f"{path} is a pointer of Git LFS, not the file. Fetch it: git lfs pull.")
    if "*.safetensors" in patterns:
        _check_index(folder / _INDEX)
        if (folder / _INDEX).is_file() and (folder / _WHOLE).is_file():
            raise SourceError(f"{folder} holds {_WHOLE} and {_INDEX}, two sets of weights. Remove one of them.")
    pickles = sorted(path.name for path in folder.glob("*.bin") if "model" in path.name)
    if pickles and "*.safetensors" in patterns and not any(folder.glob("*.safetensors")):
        raise SourceError(
            f"{folder} cannot be loaded: its weights are pickled ({pickles[0]}), which can run code when they are "
            "read. Where you trust them, load them with transformers, and save_pretrained writes safetensors."
        )


def load_weights(path: str, config: PreTrainedConfig, source: str, **options: Any) -> PreTrainedModel:
    """Load a model, without a language-model head where the checkpoint has none; options are transformers'.

    Raises:
        SourceError: The checkpoint lacks weights of the decoder, or has some that the decoder has no place for.
    """
    quantized = any(getattr(part, "quantization_config", None) for part in (config, config.get_text_config()))
    if not quantized and not options.get("gguf_file"):
        _check_integers(Path(path))
    classes = config.architectures
    loader: Any = AutoModelForCausalLM if not classes or classes[0].endswith(_HEADS) else AutoModel
    if options.get("trust_remote_code"):  # For the other of the two transformers would take its own class.
        code = getattr(config, "auto_map", None) or {}
        if len(own := [each for each in (AutoModel, AutoModelForCausalLM) if each.__name__ in code]) == 1:
            loader = own[0]
    options |= {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = loader.from_pretrained(path, **options)
    names = {name for dtypes in _headers(Path(path)).values() for name in dtypes}
    _check_names(names, model.base_model_prefix, source)
    if wrapped := next(filter(None, (re.match(_WRAPPERS, name) for name in info["unexpected_keys"])), None):
        model, info = loader.from_pretrained(path, **options, key_mapping={_WRAPPERS: ""})
        message = f"The weights of {source} were saved with a wrapper's prefix ({wrapped[0]}), which was taken off."
        warn(message, SourceWarning)
        names = {re.sub(_WRAPPERS, "", name) for name in names}
    decoder = get_decoder(model)
    # Beside the decoder there may be other parts of a larger model, which embed no text.
    prefix = next(f"{name}." * bool(name) for name, module in model.named_modules() if module is decoder)
    missing = [name.removeprefix(prefix) for name in info["missing_keys"] if name.startswith(prefix)]
    # transformers reads names with the base model's prefix and without.
    base = f"{model.base_model_prefix}." * bool(model.base_model_prefix)
    inner = prefix.removeprefix(base)
    is_bare = not names.isdisjoint(inner + name for name, _ in decoder.named_parameters())
    starts = (base + inner, inner) if is_bare else (base + inner,)
    unexpected = [name for name in info["unexpected_keys"] if name.startswith(starts)]
    inside = [name.removeprefix(base).removeprefix(inner) for name in unexpected]
    unplaced = _unplaced(model, inside, quantized)
    problem = ""
    if missing:
        problem = f"it lacks {_count(missing)} of the model ({_first(missing)}), which would be random"
    elif info["mismatched_keys"]:
        name, actual, expected = min(info["mismatched_keys"])
        shapes = f"{name}: {tuple(actual)}, not {tuple(expected)}"
        problem = f"it has {_count(info['mismatched_keys'])} of another shape than its config.json says ({shapes})"
    elif unplaced:
        problem = f"it has {_count(unplaced)} that its config.json gives no place ({_first(unplaced)})"
    if problem:
        raise SourceError(f"{source} cannot be loaded: {problem}. Restore config.json and weights of one model.")
    if other := _second_set(info["unexpected_keys"], decoder):
        warn(f"{source} holds a second set of weights beside the model's ({_first(other)}): not used.", SourceWarning)
    head = model.get_output_embeddings()
    head_is_random = any(
        f"{name}.weight" in info["missing_keys"] for name, part in model.named_modules() if part is head
    )
    return model.base_model if head_is_random else model


def _unplaced(model: PreTrainedModel, unexpected: Collection[str], quantized: bool) -> list[str]:
    """Weights among unexpected ones inside the decoder that are neither tables nor predict further tokens."""
    parts = dict(get_decoder(model).named_modules())
    num_layers, num_ahead = count_layers(model), getattr(get_text_config(model), "num_nextn_predict_layers", 0) or 0
    ahead = {str(index) for index in range(num_layers, num_layers + num_ahead)}
    names = [name for name in unexpected if not (_AHEAD.search(name) or ahead & set(name.split(".")))]
    return [name for name in names if not _is_table(name, parts) and (_WEIGHT.search(name) or not quantized)]


def _second_set(unexpected: Collection[str], decoder: nn.Module) -> list[str]:
    """Names of another whole set of the decoder's weights, such as their moving average."""
    wanted = {name for name, _ in decoder.named_parameters()}
    sets: defaultdict[str, set[str]] = defaultdict(set)
    for name in unexpected:
        parts = name.split(".")
        for start in range(1, len(parts)):
            if (rest := ".".join(parts[start:])) in wanted:
                sets[name.removesuffix(rest)].add(rest)
    return [f"{prefix}{name}" for prefix, found in sets.items() if found == wanted for name in found]


def _is_table(name: str, parts: dict[str, nn.Module]) -> bool:
    """Whether a name is that of a table that models compute and older versions saved, masks as bias of attention."""
    owner, _, slot = name.rpartition(".")
    is_mask = slot == "bias" and owner in parts and "weight" not in parts[owner]._parameters
    return is_mask or bool(_TABLE.fullmatch(slot))


def _check_index(path: Path) -> None:
    try:
        index = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"weight_map": {}}
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise SourceError(f"{path} has no weight_map of weights to files. Restore the file, or save the model again.")


def _check_names(names: Collection[str], prefix: str, source: str) -> None:
    """Raise a SourceError where several names are read as one weight, with a prefix that comes off and without."""
    counts = Counter(re.sub(rf"^(?:{prefix}\.)+", "", re.sub(_WRAPPERS, "", name)) for name in names)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise SourceError(
            f"{source} holds {_count(twice)} under two names ({_first(twice)}), with a prefix and without or with "
            "another. Remove those that are not the model's."
        )


def _check_integers(folder: Path) -> None:
    """Raise a SourceError where a weight in the files of a folder is an integer."""
    for path, dtypes in _headers(folder).items():
        integers = [name for name, dtype in dtypes.items() if name.endswith(".weight") and dtype in _INTEGERS]
        if integers:
            raise SourceError(
                f"{path} holds {_count(integers)} in integers ({_first(integers)}), and config.json has no "
                "quantization_config that says what they stand for. Restore that, or give weights in floating point."
            )


def _headers(folder: Path) -> dict[Path, dict[str, str]]:
    """Dtypes of the weights in the files of a folder, by name; files that cannot be read are left to the loading."""
    headers = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                headers[path] = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            continue
    return headers


def _count(names: Collection[str]) -> str:
    return f"{len(names)} weight{'s' * (len(names) > 1)}"


def _first(names: Collection[str]) -> str:
    return min(names) + ", ..." * (len(names) > 1)
