"""What each format of an export can hold of an encoder, and what to do about the rest. Read without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from bellm.config import EncoderConfig
from bellm.errors import BellmError
from bellm.layer_spec import format_layers
from bellm.prompts import SLOT
from bellm.types import DtypeName, InputType, PoolingName

FormatName = Literal["sentence-transformers", "transformers", "onnx", "openvino", "gguf", "vllm", "tei", "static"]
"""Names of the formats."""

_POOLINGS: tuple[PoolingName, ...] = ("last", "mean", "weighted-mean", "first", "max")


@dataclass(frozen=True)
class ExportFormat:
    """What a format holds."""

    packages: tuple[str, ...]
    """What it needs, by the names that are imported."""
    summary: str
    proved_in: str = ""
    """A package of no extra, in which it is proved."""
    any_map: bool = True
    """Whether some layers may be open and others not."""
    poolings: tuple[PoolingName, ...] = _POOLINGS
    any_encoder: bool = False
    """Whether it keeps vectors of texts alone, whatever makes them."""
    any_layer: bool = False
    """Whether vectors may be read from other states than the last, or from several."""
    any_prompt: bool = True
    """Whether a prompt may go on after the text."""
    finishes: bool = True
    """Whether it cuts long texts, and centers vectors."""
    bits: bool = False
    """Whether it can have weights in 8 or 4 bits."""
    dtypes: tuple[DtypeName, ...] = ("float32", "bfloat16", "float16")
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
        bits=True,
        dtypes=("float32",),
        tolerance=1e-3,
    ),
    "openvino": ExportFormat(
        ("openvino", "onnxruntime", "onnx", "onnxscript"),
        "one graph for OpenVINO, which bellm runs without torch",
        poolings=get_args(PoolingName),
        any_layer=True,
        bits=True,
        dtypes=("float32",),
        tolerance=1e-3,
    ),
    "gguf": ExportFormat(
        ("gguf",),
        "a file for llama.cpp: a causal model, or one with all layers open",
        any_map=False,
        poolings=("last", "mean", "first"),
        finishes=False,
        bits=True,
        tolerance=1e-3,
    ),
    "vllm": ExportFormat(
        (),
        "a folder for vLLM, with bellm's plugin for it where some layers are open and others not",
        proved_in="vllm",
        poolings=("last", "mean", "first"),
        finishes=False,
        tolerance=1e-3,
    ),
    "tei": ExportFormat(
        ("onnxruntime", "onnx", "onnxscript"),
        "a folder with a graph for text-embeddings-inference",
        any_layer=True,
        any_prompt=False,
        dtypes=("float32",),
        tolerance=1e-3,
    ),
    "static": ExportFormat(
        ("model2vec", "sentence_transformers"),
        "a table of token vectors for model2vec and sentence-transformers: another model, without layers",
        any_encoder=True,
    ),
}


def check_exportable(config: EncoderConfig, num_layers: int, dtype: str, name: FormatName) -> None:
    """Refuse settings that a format cannot hold.

    Raises:
        BellmError: Such a setting, with the nearest one that the format holds, and the formats that hold it.
    """
    if problem := _problem(config, num_layers, dtype, EXPORT_FORMATS[name]):
        others = [other for other, form in EXPORT_FORMATS.items() if not _problem(config, num_layers, dtype, form)]
        elsewhere = f" It goes into {', '.join(others)}." if others else ""
        raise BellmError(f"{name} cannot hold {problem}.{elsewhere}")


def _problem(config: EncoderConfig, num_layers: int, dtype: str, form: ExportFormat) -> str | None:
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
    if any(template.count(SLOT) > 1 for template in map(config.template_for, get_args(InputType))):
        return f"a prompt that holds the text twice: take one with one {SLOT}"
    ends = [template.partition(SLOT)[2] for template in map(config.template_for, get_args(InputType))]
    if not form.any_prompt and any(ends):
        return f"a prompt that goes on after the text ({max(ends)!r:.40}): take one that ends with {SLOT}"
    if dtype not in form.dtypes:
        return f"dtype={dtype!r}: load the encoder with dtype={form.dtypes[0]!r}"
    if not form.any_map and len(config.bidirectional) not in (0, num_layers):
        opened = format_layers(config.bidirectional)
        return f"bidirectional={opened!r} of {num_layers} layers: take bidirectional='none' or 'all'"
    return None
