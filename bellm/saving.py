"""Save and load encoders: weights, tokenizer, settings, and a fingerprint that ties them together."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm.backbone import loading
from bellm.config import EncoderConfig, setting_names
from bellm.errors import FingerprintError, SourceError
from bellm.tensors.tolerances import relative_distance, tolerances
from bellm.types import Vectors

SETTINGS_FILE = "bellm.json"
FINGERPRINT_FILE = "fingerprint.safetensors"
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]
"""Files of a saved encoder; nothing else is fetched from the Hub."""

FINGERPRINT_TEXTS = (
    "A heron stands in the shallow water.",
    "The invoice was paid twice by mistake.",
    "Why does bread rise when it is left in a warm kitchen?",
    "Snow",
)
"""Texts whose vectors tell one encoder from another."""

_ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class SavedEncoder:
    """Contents of `bellm.json` and of the fingerprint file."""

    config: EncoderConfig
    base_model: str
    dtype: str
    num_layers: int
    fingerprint: Vectors


def find_saved(source: str) -> Path | None:
    """Folder of a saved encoder, fetched from the Hub where necessary; None for any other source.

    Raises:
        SourceError: The Hub refuses.
    """
    if (Path(source) / SETTINGS_FILE).is_file():
        return Path(source)
    if not loading.is_hub_id(source):
        return None
    try:
        huggingface_hub.hf_hub_download(source, SETTINGS_FILE)
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=PATTERNS))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise SourceError(f"{source} cannot be fetched from the Hub: {str(error).splitlines()[0]}") from error


def push_folder(path: Path, repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload a saved encoder to a Hub repository, made if it is not there; returns the commit's address.

    Args:
        path: Folder of the encoder.
        repo_id: Owner and name of the repository.
        private: Whether a new repository is private.
        token: Of the Hub; None for that of `hf auth login`.

    Raises:
        SourceError: The Hub refuses.
    """
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=path).commit_url)
    except (HfHubHTTPError, OSError) as error:
        raise SourceError(f"The Hub refuses {repo_id}: {str(error).splitlines()[0]}") from error


def write_saved(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    saved: SavedEncoder,
    version: str,
    notes: str = "",
) -> None:
    """Write weights (safetensors), tokenizer, settings, fingerprint and model card.

    Args:
        folder: An empty folder.
        model: The causal model, or one with unmerged adapters.
        tokenizer: Its tokenizer.
        saved: Settings and fingerprint.
        version: Of bellm.
        notes: Markdown for the end of the model card.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"bellm": version, "base_model": saved.base_model, "dtype": saved.dtype, "num_layers": saved.num_layers}
    settings |= saved.config.to_dict()
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    metadata = {"config": saved.config.digest(), "dtype": saved.dtype}
    save_file({"vectors": saved.fingerprint}, folder / FINGERPRINT_FILE, metadata=metadata)
    (folder / "README.md").write_text(f"{_card(saved, version)}{notes and chr(10)}{notes}", encoding="utf-8")
    mode = (folder / SETTINGS_FILE).stat().st_mode
    for path in folder.iterdir():  # safetensors writes files that only their owner can read.
        path.chmod(mode)


def read_saved(folder: Path) -> SavedEncoder:
    """Read settings and fingerprint.

    Raises:
        SourceError: `bellm.json` cannot be read.
        FingerprintError: The fingerprint is missing, or belongs to other settings.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        config = EncoderConfig.from_dict(settings)
        names = {name: str(settings[name]) for name in ("base_model", "dtype")}
        num_layers = int(settings["num_layers"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, SourceError) else repr(error)
        raise SourceError(f"{folder / SETTINGS_FILE} cannot be read: {reason} Save the encoder again.") from error
    try:
        with safe_open(folder / FINGERPRINT_FILE, "numpy") as file:
            vectors: Vectors = file.get_tensor("vectors")
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise FingerprintError(
            f"{folder} has no readable {FINGERPRINT_FILE}: nothing proves that these weights belong to these settings. "
            "Save the encoder again with bellm."
        ) from error
    if metadata.get("config") != config.digest():
        raise FingerprintError(
            f"{folder / SETTINGS_FILE} was changed after saving: its settings are not those of the fingerprint. Put it "
            "back, or load it as saved and use Encoder.replace(...)."
        )
    return SavedEncoder(config, names["base_model"], names["dtype"], num_layers, vectors)


def load_saved(folder: Path, saved: SavedEncoder, **options: Any) -> loading.LoadedModel:
    """Load a saved encoder's model and tokenizer; where only adapters were saved, merge them into the base model.

    Options are those of `loading.load_pretrained`.

    Raises:
        SourceError: The model cannot be loaded, or its base model, or what adapters need is not installed.
    """
    if not (folder / _ADAPTER_FILE).is_file():
        return loading.load_pretrained(folder, **options)
    try:
        from bellm.backbone import adapters

        loaded = loading.load_pretrained(saved.base_model, **options)
    except ImportError as error:
        raise SourceError(f"{folder} holds adapters, which need peft: pip install 'bellm[train]'.") from error
    except SourceError as error:
        raise SourceError(f"{folder} holds adapters, and their base model is not there: {error}") from error
    return replace(loaded, model=adapters.load_adapters(loaded.model, folder))


def check_fingerprint(saved: SavedEncoder, fingerprint: Vectors, dtype: str, source: str) -> None:
    """Compare the fingerprint of a loaded encoder with the saved one.

    Args:
        saved: Holds the saved fingerprint.
        fingerprint: Of the loaded encoder.
        dtype: Of the loaded weights.
        source: Where the encoder came from, for the message.

    Raises:
        FingerprintError: They differ by more than rounding.
    """
    distance = relative_distance(fingerprint, saved.fingerprint)
    limit = tolerances(saved.dtype, dtype).fingerprint
    if not distance <= limit:
        raise FingerprintError(
            f"{source} does not give the vectors it was saved with (relative distance {distance:.3g}, allowed "
            f"{limit:g}): its weights or its tokenizer are not those of the saved encoder. Restore them or save again."
        )


def _card(saved: SavedEncoder, version: str) -> str:
    values = saved.config.to_dict()
    values["bidirectional"] = f"`{values['bidirectional']}` of {saved.num_layers}"
    values["prompt"] = f"{values['prompt']}: `{values['template']}`"
    settings = "\n".join(f"| {name.replace('_', ' ')} | {values[name]} |" for name in setting_names())
    return f"""---
base_model: {saved.base_model}
library_name: bellm
tags: [bellm, sentence-embeddings, bidirectional-attention]
---

# A bellm encoder

| | |
|---|---|
| base model | `{saved.base_model}` |
{settings}
| dtype | {saved.dtype} |

```python
from bellm import Encoder

encoder = Encoder.from_pretrained("path/or/id")
vectors = encoder.encode(["A sentence."])
```

**Load this folder with bellm {version} or later.** The weights alone do not say which layers are open: loaded with
plain transformers (`AutoModel.from_pretrained`) or any other library they run *causally, without a word*, and give
other vectors. bellm recomputes the fingerprint on loading and refuses when the vectors are not the saved ones.
"""
