"""What the files of a saved encoder say of it: settings, fingerprint, headers of the weights. Read without torch."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from bellm.backbone.source_names import EXPORT_FILE, SETTINGS_FILE, VIEWS_FILE
from bellm.config import EncoderConfig
from bellm.errors import BellmError, FingerprintError, SeveralViewsError, SourceError
from bellm.tensors.vector_statistics import VectorStatistics
from bellm.types import TransformName, Vectors

FINGERPRINT_FILE = "fingerprint.safetensors"
STATISTICS_FILE = "vector_statistics.safetensors"

FINGERPRINT_TEXTS = (
    "A heron stands in the shallow water.",
    "The invoice was paid twice by mistake.",
    "Why does bread rise when it is left in a warm kitchen?",
    "Snow",
)
"""Texts whose vectors tell one encoder from another."""

_AGAIN = "Save the encoder again."
_COMBINE = "Combine the encoders again."


@dataclass(frozen=True)
class SavedEncoder:
    """Contents of `bellm.json` and of the fingerprint file."""

    config: EncoderConfig
    base_model: str
    dtype: str
    num_layers: int
    fingerprint: Vectors
    compression: tuple[dict[str, Any], ...] = ()
    """What was done to the weights, see `Encoder.compression`."""
    statistics: VectorStatistics | None = None
    """By which vectors are centered."""


def read_saved(folder: Path) -> SavedEncoder:
    """Read settings and fingerprint; a FingerprintError where it is missing or belongs to other settings."""
    settings = read_object(folder / SETTINGS_FILE)
    try:
        config = EncoderConfig.from_dict(settings)
        known = str(settings["base_model"]), str(settings["dtype"]), int(settings["num_layers"])
        compression = tuple(dict(step) for step in settings.get("compression", ()))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise SourceError(f"{folder / SETTINGS_FILE} cannot be read: {reason}. {_AGAIN}") from error
    vectors, metadata = _read_fingerprint(folder, _AGAIN)
    if metadata.get("config") != config.digest():
        raise FingerprintError(
            f"{folder / SETTINGS_FILE} was changed after saving: its settings are not those of the fingerprint. Put it "
            "back, or load it as saved and use Encoder.replace(...)."
        )
    return SavedEncoder(config, *known, vectors, compression, _read_statistics(folder / STATISTICS_FILE, config))


def _read_statistics(path: Path, config: EncoderConfig) -> VectorStatistics | None:
    if config.centering == "none" and not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings = (file.metadata() or {})["settings"]
        return VectorStatistics(arrays["mean"], arrays.get("whitening"), arrays["texts"], settings)
    except (OSError, SafetensorError, KeyError) as error:
        raise SourceError(f"{path} cannot be read, and vectors are centered by it: {error}. Center again.") from error


def read_views(folder: Path) -> tuple[dict[str, Any], Vectors]:
    """Read what `MultiViewEncoder.save_pretrained` wrote of the views, and their fingerprint."""
    path = folder / VIEWS_FILE
    record = read_object(path, _COMBINE)
    try:
        names = [Path(view["folder"]) for view in record["views"]]
        transforms = {view.get("transform", "amr") for view in record["views"]}
        missing = {"method", "weights", "weights_from", "dtype", "description"} - {*record}
    except (AttributeError, KeyError, TypeError) as error:
        raise SourceError(f"{path} cannot be read: it lists no views with their folders. {_COMBINE}") from error
    if not names or any(len(name.parts) != 1 or name.name in ("", "..") for name in names):
        raise SourceError(f"{path} cannot be read: a view's folder is none in this folder. {_COMBINE}")
    if unknown := transforms - {*get_args(TransformName)}:
        raise SourceError(f"{path} cannot be read: transform {sorted(unknown)[0]} is not known. {_COMBINE}")
    if missing:
        raise SourceError(f"{path} cannot be read: {sorted(missing)[0]} is missing. {_COMBINE}")
    vectors, metadata = _read_fingerprint(folder, _COMBINE)
    if metadata.get("views") != digest_views(record):
        raise FingerprintError(f"{path} was changed after saving. Put it back, or combine again.")
    return record, vectors


def digest_views(record: Mapping[str, Any]) -> str:
    """Digest of what is written of the views, which their fingerprint file has."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_fingerprint(folder: Path, advice: str) -> tuple[Vectors, dict[str, str]]:
    try:
        with safe_open(folder / FINGERPRINT_FILE, "numpy") as file:
            return file.get_tensor("vectors"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise FingerprintError(
            f"{folder} has no readable {FINGERPRINT_FILE}: nothing proves that these weights belong to these settings. "
            f"{advice}"
        ) from error


def read_export_settings(folder: Path) -> tuple[EncoderConfig, str]:
    """Settings and dtype of a folder that `bellm export` wrote for transformers or sentence-transformers.

    Raises:
        SourceError: It is for another library, or of a centered encoder, whose mean is not in it.
    """
    manifest = read_object(folder / EXPORT_FILE, "Export again.")
    kind = manifest.get("format")
    if kind not in ("transformers", "sentence-transformers"):
        opened = f"backend={kind!r}" if kind in ("onnx", "openvino") else "its own library"
        raise SourceError(
            f"{folder} is an export for {kind}: open it with {opened}, or load the encoder that it is of."
        )
    config = EncoderConfig.from_dict(manifest)
    if config.centering != "none":
        raise SourceError(f"{folder} is an export of a centered encoder, without its mean: load the encoder itself.")
    return config, str(manifest.get("dtype", "auto"))


def is_saved(source: str) -> bool:
    """Whether a source is a folder here that bellm saved an encoder to."""
    return (Path(source) / SETTINGS_FILE).is_file()


def check_one_encoder(folder: Path, source: str) -> None:
    """Raise a SeveralViewsError where a folder holds a multi-view encoder."""
    if (folder / VIEWS_FILE).is_file():
        raise SeveralViewsError(
            f"{source} holds several views, and this takes one encoder: give a view, as in {source}/view-1, or open it "
            "with bellm.MultiViewEncoder.from_pretrained."
        )


def check_trainable(source: str, settings: Mapping[str, Any]) -> None:
    """Refuse a folder here of which its files say that it cannot be trained, before data is read or a model loaded.

    Args:
        source: As users give it; what is no folder of bellm passes.
        settings: Those that it is trained with.

    Raises:
        BellmError: It holds several views, or what was saved is quantized or centered.
    """
    folder = Path(source)
    check_one_encoder(folder, source)
    if not is_saved(source):
        return
    saved = read_saved(folder)
    if any(step.get("kind") == "quantize" for step in saved.compression):
        raise quantized_error(source)
    config = settings.get("config", saved.config)
    if (settings.get("centering") or config.centering) != "none":
        raise centered_error(source, "training")


def quantized_error(name: str) -> BellmError:
    """What is said of an encoder with quantized weights that is to be trained."""
    return BellmError(
        f"{name} is quantized, and what is trained on it could not be saved. Give the model in full precision; "
        "LoRA(four_bit=True) keeps its frozen weights in four bits while it trains."
    )


def centered_error(name: str, what: str) -> BellmError:
    """What is said where vectors are centered by a mean that would no longer be theirs after what is done."""
    return BellmError(
        f"{name} centers its vectors by a mean that {what} would leave behind. Give centering='none', and learn the "
        "mean again after that (bellm center)."
    )


def describe_saved(folder: Path) -> dict[str, Any]:
    """What is known of a saved encoder without its model, as JSON values; None where only the model could tell.

    Raises:
        SourceError: A file is missing or cannot be read.
    """
    saved = read_saved(folder)
    is_adapted = (folder / "adapter_model.safetensors").is_file()  # Their base model is elsewhere.
    config = {} if is_adapted else read_object(folder / "config.json")
    architectures = config.get("architectures") or [None]
    has_template = "chat_template" in read_object(folder / "tokenizer_config.json")
    num_parameters = None if is_adapted else _count_parameters(folder)
    return {
        "base_model": saved.base_model,
        "architecture": architectures[0],
        "parameters": num_parameters,
        "layers": None,
        "name": saved.base_model,
        **saved.config.to_dict(),
        **({"centering_statistics": saved.statistics.digest} if saved.statistics else {}),
        "num_layers": saved.num_layers,
        "embedding_dim": saved.fingerprint.shape[1],
        "dtype": saved.dtype,
        "device": None,
        "compression": list(saved.compression),
        "attention": None,
        "batching_mode": None,
        "attention_kernel": None,
        "chat_template": has_template or (folder / "chat_template.jinja").is_file(),
    }


def _count_parameters(folder: Path) -> int | None:
    """Numbers in the files of weights; None for packed weights."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise SourceError(f"{folder} has no weights (model.safetensors). {_AGAIN}")
    total = 0
    for path in files:
        try:
            with safe_open(path, "numpy") as file:
                parts = [file.get_slice(name) for name in list(file.keys())]
        except (OSError, SafetensorError) as error:
            raise SourceError(f"{path} cannot be read: {error}. {_AGAIN}") from error
        if any(part.get_dtype() in ("I8", "U8") for part in parts):
            return None
        total += sum(math.prod(part.get_shape()) for part in parts)
    return total


def read_object(path: Path, advice: str = _AGAIN) -> dict[str, Any]:
    """The object that a file of JSON holds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. {advice}") from error
    except ValueError as error:
        reason = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise SourceError(f"{path} cannot be read: {reason}. {advice}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path} cannot be read: it holds no object. {advice}")
    return found
