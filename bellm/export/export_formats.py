"""What each format of an export can hold of an encoder, and what to do about the rest. Read without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from bellm.config import EncoderConfig
from bellm.errors import BellmError
from bellm.layer_spec import format_layers
from bellm.types import PoolingName

FormatName = Literal["sentence-transformers", "transformers", "onnx", "static"]
"""Names of the formats."""

_POOLINGS: tuple[PoolingName, ...] = ("last", "mean", "weighted-mean", "first", "max")


@dataclass(frozen=True)
class ExportFormat:
    """What a format holds."""

    packages: tuple[str, ...]
    """What it needs, by the names that are imported; the first runs it in the parity check."""
    summary: str
    any_map: bool = True
    """Whether some layers may be open and others not."""
    poolings: tuple[PoolingName, ...] = _POOLINGS
    any_encoder: bool = False
    """Whether it keeps vectors of texts alone, whatever makes them."""
    any_layer: bool = False
    """Whether vectors may be read from other states than the last, or from several."""
    finishes: bool = True
    """Whether it cuts long texts, and centers vectors."""
    tolerance: float = 1e-4
    """Largest relative distance of a float32 vector that rounding explains."""


EXPORT_FORMATS: dict[FormatName, ExportFormat] = {
    "sentence-transformers": ExportFormat(("sentence_transformers",), "a folder for SentenceTransformer(DIR)"),
    "transformers": ExportFormat(
        ("transformers",), "a decoder for AutoModel.from_pretrained(DIR), with code to pool it", finishes=False
    ),
    "onnx": ExportFormat(
        ("onnxruntime", "onnx", "onnxscript"),
        "one graph for ONNX Runtime, which bellm runs without torch",
        poolings=get_args(PoolingName),
        any_layer=True,
        tolerance=1e-3,
    ),
    "static": ExportFormat(
        ("model2vec", "sentence_transformers"),
        "a table of token vectors for model2vec and sentence-transformers: another model, without layers",
        any_encoder=True,
    ),
}


def check_exportable(config: EncoderConfig, num_layers: int, name: FormatName) -> None:
    """Refuse settings that a format cannot hold.

    Raises:
        BellmError: Such a setting, with the nearest one that the format holds, and the formats that hold it.
    """
    if problem := _problem(config, num_layers, EXPORT_FORMATS[name]):
        others = [other for other, form in EXPORT_FORMATS.items() if not _problem(config, num_layers, form)]
        elsewhere = f" It goes into {', '.join(others)}." if others else ""
        raise BellmError(f"{name} cannot hold {problem}.{elsewhere}")


def _problem(config: EncoderConfig, num_layers: int, form: ExportFormat) -> str | None:
    """The first setting that a format cannot hold, and the nearest that it can."""
    if form.any_encoder:
        return None
    if config.readout != "hidden":
        return f"readout={config.readout!r}: take readout='hidden'"
    if not form.any_layer and config.layers not in ((-1,), (num_layers,)):
        return f"layer={config.layer!r}: take layer=-1, or drop the layers above first (bellm prune --drop-layers)"
    if config.token_prepending:
        return f"token_prepending={config.token_prepending}: take 0"
    if config.bidirectional and config.variant == "parallel":
        return "variant='parallel': take variant='sequential'"
    if config.centering != "none" and not form.finishes:
        return f"centering={config.centering!r}: take centering='none'"
    if config.pooling not in form.poolings:
        return f"pooling={config.pooling!r}: take {', '.join(form.poolings)}"
    if not form.any_map and len(config.bidirectional) not in (0, num_layers):
        opened = format_layers(config.bidirectional)
        return f"bidirectional={opened!r} of {num_layers} layers: take bidirectional='none' or 'all'"
    return None
