"""Load sources with their settings; save encoders, with a fingerprint that ties weights, tokenizer and settings."""

import hashlib
import importlib.util
import json
import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import save_file
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from bellm.backbone import loading
from bellm.backbone.architecture import MERGED, get_decoder
from bellm.backbone.source_layouts import (
    ADAPTER_FILE,
    MODULES_FILE,
    fetch_layout,
    in_memory,
    merge_folder,
    own_tokenizer,
    plain_config,
    read_layout,
)
from bellm.backbone.source_names import EXPORT_FILE, SETTINGS_FILE, is_hub_id, split_revision
from bellm.config import setting_names
from bellm.errors import BellmWarning, FingerprintError, SourceError, warn
from bellm.saved_encoder import FINGERPRINT_FILE, STATISTICS_FILE, SavedEncoder, read_export_settings, read_saved
from bellm.tensors.similarity import relative_distance, tolerances
from bellm.types import Vectors
from bellm.version import __version__

ENCODER_MODULE = {"idx": 0, "name": "0", "path": "", "type": "bellm.integrations.sentence_transformer.EncoderModule"}
"""What makes sentence-transformers load a folder by bellm, or refuse it; else it would run the causal model."""

TEMPLATE_NAMES = {"query": "<the encoder's query template>", "document": "<the encoder's document template>"}
"""Prompts in sentence-transformers, by name: they stand for templates, which have no one text to put before another."""


def find_saved(source: str) -> Path | None:
    """Folder of a saved encoder, fetched from the Hub where necessary; None for any other source."""
    folder = fetch_layout(source)
    return folder if folder and (folder / SETTINGS_FILE).is_file() else None


def push_folder(path: Path, repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload a saved encoder to a Hub repository, made if it is not there; returns the commit's address.

    Without a token that of `hf auth login` is used.
    """
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=path).commit_url)
    except (HfHubHTTPError, OSError) as error:
        raise SourceError(f"The Hub refuses {repo_id}: {str(error).splitlines()[0]}") from error


def write_saved(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, saved: SavedEncoder, notes: str = ""
) -> None:
    """Write weights (safetensors), tokenizer, settings, fingerprint and model card to an empty folder.

    The model is causal, or has unmerged adapters; `notes` is Markdown for the end of the model card.
    """
    _mend_generation_config(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model_settings = {"base_model": saved.base_model, "dtype": saved.dtype, "num_layers": saved.num_layers}
    settings = {"bellm": __version__, **model_settings, **saved.config.to_dict()}
    settings |= {"compression": saved.compression} if saved.compression else {}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / MODULES_FILE).write_text(json.dumps([ENCODER_MODULE], indent=2) + "\n", encoding="utf-8")
    prompts = {"prompts": TEMPLATE_NAMES, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts, indent=2) + "\n", encoding="utf-8")
    metadata = {"config": saved.config.digest(), "dtype": saved.dtype}
    save_file({"vectors": saved.fingerprint}, folder / FINGERPRINT_FILE, metadata=metadata)
    if saved.statistics:
        arrays = saved.statistics.to_arrays()
        save_file(arrays, folder / STATISTICS_FILE, metadata={"settings": saved.statistics.settings})
    (folder / "README.md").write_text(f"{_card(saved)}{notes and chr(10)}{notes}", encoding="utf-8")
    mode = (folder / SETTINGS_FILE).stat().st_mode
    for path in folder.iterdir():  # safetensors writes files that only their owner can read.
        path.chmod(mode)


def load_source(
    source: Any, folder: Path | None, *, above: tuple[Path, ...] = (), **options: Any
) -> tuple[loading.LoadedModel, dict[str, Any]]:
    """Load any source, its adapters merged into their base model, and the settings that its files ask for.

    Args:
        source: As users give it.
        folder: What `fetch_layout` gave for it.
        above: Folders of adapters on this base model, outermost first.
        options: Those of `loading.load_pretrained`.
    """
    if not isinstance(source, str | Path):
        return loading.load_pretrained(in_memory(source), **options), {}
    if folder is None:
        return loading.load_pretrained(source, **options), {}
    saved = read_saved(folder) if (folder / SETTINGS_FILE).is_file() else None
    layout = read_layout(folder)
    is_export = (folder / EXPORT_FILE).is_file()
    settings = dict(vars(saved.config)) if saved else layout.settings
    if is_export:
        config, dtype = read_export_settings(folder)
        settings = dict(vars(config))
        options["dtype"] = dtype if options["dtype"] == "auto" else options["dtype"]
    options["tokenizer"] = options.get("tokenizer") or own_tokenizer(layout, options.get("trust_remote_code", False))
    if is_export:
        loaded = _load_with_config(folder, plain_config(folder), **options)
    elif layout.base is None:
        loaded = loading.load_pretrained(layout.model_folder, **options)
    else:
        loaded, below = _load_base(layout.base, (*above, layout.model_folder.resolve()), **options)
        settings = below | settings
        loaded = merge_folder(loaded, layout.model_folder)
    if layout.settings and loaded.tokenizer.truncation_side == "left":
        raise SourceError(
            f"{layout.model_folder} has a tokenizer that cuts texts at their beginning (truncation_side), and bellm "
            "cuts them at their end. Where your texts are short enough, write right there."
        )
    if limit := settings.pop("max_tokens", None):
        if limit > (positions := loading.max_positions(loaded.model)):
            message = f"{folder} takes texts of {limit} tokens, and its model has {positions} positions"
            warn(f"{message}: texts are cut to these.", BellmWarning)
        settings["max_tokens"] = min(limit, loading.max_positions(loaded.model, loaded.tokenizer))
    return replace(loaded, name=str(source)), settings


def _load_base(base: str, above: tuple[Path, ...], **options: Any) -> tuple[loading.LoadedModel, dict[str, Any]]:
    """Load the base model of a folder of adapters, the last of those above it."""
    if importlib.util.find_spec("peft") is None:
        raise SourceError(f"{above[-1]} holds adapters, which need peft: pip install 'bellm[train]'.")
    base = str(above[-1] / base) if (above[-1] / base).is_dir() else base
    folder = fetch_layout(base)
    place = (folder or Path(base)).resolve()
    if place == above[-1] and any(place.glob("model*.safetensors")):
        return _load_with_config(place, None, **options), {}
    if place in above:
        chain = " -> ".join(map(str, (*above[above.index(place) :], place)))
        raise SourceError(
            f"{place / ADAPTER_FILE}: the adapter rests on itself ({chain}). Name the model that it was trained on "
            "there, as base_model_name_or_path."
        )
    try:
        return load_source(base, folder, above=above, **options)
    except SourceError as error:
        raise SourceError(f"{above[-1]} holds adapters, and their base model cannot be loaded: {error}") from error


def _load_with_config(folder: Path, config: Mapping[str, Any] | None, **options: Any) -> loading.LoadedModel:
    """Load the model of a folder without the adapters beside it, which transformers would add, or by another config."""
    with tempfile.TemporaryDirectory() as links:
        for file in folder.resolve().iterdir():
            if not file.name.startswith("adapter_") and not (config and file.name == "config.json"):
                (Path(links) / file.name).symlink_to(file)
        if config:
            (Path(links) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            loaded = loading.load_pretrained(links, **options)
        except SourceError as error:
            raise SourceError(str(error).replace(links, str(folder))) from error
    loaded.model.name_or_path = loaded.tokenizer.name_or_path = str(folder)
    return loaded


def weights_digest(model: torch.nn.Module) -> str:
    """Digest of the decoder's weights and adapters, as in `bfloat16:1c8e...`: the same wherever they lie.

    Names and the language-model head do not count, because vectors do not depend on them. Empty where a weight is not
    in memory.
    """
    decoder = get_decoder(model)
    is_merged = any(MERGED in vars(module) for module in (model, decoder))
    return parameters_digest(decoder).replace(":", "+merged:" if is_merged else ":")


def parameters_digest(module: torch.nn.Module) -> str:
    """Digest of all weights of a module, in their order; see `weights_digest`."""
    weights = list(module.parameters())
    if any(weight.is_meta for weight in weights):
        return ""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Hashing lets go of the interpreter.
        digests = pool.map(_digest_tensor, weights)
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    has_adapters = any("lora_" in name for name, _ in module.named_parameters())
    form = "+".join([*dtypes, *["adapters"] * has_adapters])
    return f"{form}:{hashlib.blake2b(b''.join(digests), digest_size=16).hexdigest()}"


def weights_differ(known: str, other: str) -> bool:
    """Whether two digests of weights are of different ones; another dtype, or merged adapters, prove nothing."""
    form = known.partition(":")[0]
    return known != other and form == other.partition(":")[0] and bool(form) and "merged" not in form


def check_fingerprint(saved: SavedEncoder, fingerprint: Vectors, dtype: str, source: str) -> None:
    """Raise a FingerprintError where an encoder loaded in `dtype` has another fingerprint than the saved one."""
    distance = relative_distance(fingerprint, saved.fingerprint)
    limit = tolerances(saved.dtype, dtype).fingerprint
    if not distance <= limit:
        raise FingerprintError(
            f"{source} does not give the vectors it was saved with (relative distance {distance:.3g}, allowed "
            f"{limit:g}): its weights or its tokenizer are not those of the saved encoder. Restore them or save again."
        )


def _digest_tensor(weight: torch.Tensor) -> bytes:
    data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(f"{weight.dtype} {tuple(weight.shape)}".encode(), digest_size=16)
    digest.update(data.data)
    return digest.digest()


def _mend_generation_config(model: PreTrainedModel) -> None:
    """Make a generation config that contradicts itself one that transformers agrees to save; vectors need none."""
    if getattr(model, "generation_config", None) is None:
        return
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig.from_model_config(model.config)


def _card(saved: SavedEncoder) -> str:
    values = saved.config.to_dict()
    values["bidirectional"] = f"`{values['bidirectional']}` of {saved.num_layers}"
    values["prompt"] = f"{values['prompt']}: `{values['template']}`"
    settings = "\n".join(f"| {name.replace('_', ' ')} | {values[name]} |" for name in setting_names())
    compression = "".join(f"| compression | {step['summary']} |\n" for step in saved.compression)
    hub_id, _ = split_revision(saved.base_model)
    # Cards are public: a name that is not of the Hub is refused there, and a path is nobody's affair.
    is_public = is_hub_id(hub_id) and re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id)
    return f"""---
{f"base_model: {hub_id}{chr(10)}" if is_public else ""}library_name: bellm
tags: [bellm, sentence-embeddings, bidirectional-attention]
---

# A bellm encoder

| | |
|---|---|
| base model | `{saved.base_model if is_public else Path(saved.base_model).name}` |
{settings}
| dtype | {saved.dtype} |
{compression}
```python
from bellm import Encoder

encoder = Encoder.from_pretrained("path/or/id")
vectors = encoder.encode(["A sentence."])
```

**Load this folder with bellm {__version__} or later.** bellm recomputes the fingerprint on loading and refuses when the
vectors are not the saved ones. sentence-transformers takes it where bellm is installed, and refuses it elsewhere:
`SentenceTransformer("path/or/id", trust_remote_code=True)`. The weights alone do not say which layers are open: loaded
with plain transformers (`AutoModel.from_pretrained`) they run *causally, without a word*, and give other vectors.
"""
