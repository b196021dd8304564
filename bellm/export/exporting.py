"""`export`: an encoder in another library's format, proved there to give the same vectors."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bellm.backbone.source_names import EXPORT_FILE
from bellm.config import setting_names
from bellm.encoder import Encoder
from bellm.errors import BellmError, check_choice, check_encoder
from bellm.export.export_formats import EXPORT_FORMATS, FormatName, check_exportable
from bellm.export.export_reference import write_reference
from bellm.export.gguf_file import GGUF_FILE, write_gguf
from bellm.export.onnx_graph import write_onnx, write_openvino
from bellm.export.parity import PARITY_FILE, Parity, check_runtime, run_export
from bellm.export.static_table import embed_by_table, write_static
from bellm.export.tei_folder import write_tei
from bellm.export.transformer_folder import write_sentence_transformers, write_transformers
from bellm.export.vllm_folder import write_vllm
from bellm.extras import require_extra
from bellm.io.atomic import atomic_directory, write_bytes, write_json
from bellm.tensors.similarity import tolerances
from bellm.version import __version__

_WRITERS: dict[FormatName, Callable[..., dict[str, Any]]] = {
    "sentence-transformers": write_sentence_transformers,
    "transformers": write_transformers,
    "onnx": write_onnx,
    "openvino": write_openvino,
    "gguf": write_gguf,
    "vllm": write_vllm,
    "tei": write_tei,
    "static": write_static,
}
"""Each writes an encoder to a folder, in some with weights of so many bits, and returns what the manifest says besides
its settings."""

_WITH_BITS = [name for name, form in EXPORT_FORMATS.items() if form.bits]

_BIT_TOLERANCES = {8: 0.1, 4: 0.6}
"""Largest relative distances of vectors whose weights were rounded to so many bits; what is broken is off by 1."""


def export(
    encoder: Encoder,
    format: FormatName,
    path: str | Path,
    *,
    bits: Literal[8, 4] | None = None,
    tolerance: float | None = None,
    python: str | None = None,
) -> Parity:
    """Write an encoder in another library's format, and run it there, in a process of its own without bellm.

    Args:
        encoder: Its weights are written in its dtype.
        format: See `EXPORT_FORMATS`.
        path: A new folder; it is there only if the vectors are the encoder's.
        bits: Weights of a graph or a GGUF file in so many bits; what that costs is in the result.
        tolerance: Largest relative distance of a vector; None for what rounding explains in the format and dtype.
        python: Interpreter of an environment that has the format's library, and runs the proof; None for this one.

    Raises:
        BellmError: The format cannot hold a setting, its package is missing, the disk refuses, or vectors differ.
    """
    check_encoder(encoder, Encoder)
    check_choice("format", format, FormatName)
    check_exportable(encoder.config, encoder.num_layers, encoder.dtype_name, format)
    require_extra("export", f"The format {format}", EXPORT_FORMATS[format].packages)
    check_runtime(format, python)
    if bits is not None:
        if format not in _WITH_BITS:
            raise BellmError(
                f"bits={bits} is for {', '.join(_WITH_BITS)}. For others quantize the encoder first (bellm quantize)."
            )
        if bits not in (8, 4):
            raise BellmError(f"bits={bits} is not one of 8, 4.")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise BellmError(f"tolerance={tolerance} is no distance: give a number from 0 up.")
    with atomic_directory(Path(path)) as draft:
        write_export(encoder, format, draft, bits=bits, tolerance=tolerance)
        parity = run_export(draft, python)
        if not parity.holds:
            raise BellmError(
                f"{format} gives other vectors in {parity.runtime}: they differ by {parity.max_difference:.2g}, and "
                f"{parity.tolerance:g} is allowed (least cosine {parity.min_cosine:.4f}), most for "
                f"{parity.worst_text!r:.80}. Nothing was written."
            )
        write_json(draft / PARITY_FILE, parity.to_json())
        for file in draft.rglob("*"):  # safetensors writes files that only their owner can read.
            file.chmod(0o755 if file.is_dir() else 0o644)
    return parity


def write_export(
    encoder: Encoder,
    format: FormatName,
    folder: Path,
    *,
    bits: Literal[8, 4] | None = None,
    tolerance: float | None = None,
) -> None:
    """Write all of an export but its parity to an empty folder; see `export`."""
    form = EXPORT_FORMATS[format]
    if tolerance is None and bits:
        tolerance = _BIT_TOLERANCES[bits]
    elif tolerance is None:
        tolerance = max(form.tolerance, tolerances(encoder.dtype_name).packing * (encoder.dtype_name != "float32"))
    manifest: dict[str, Any] = {"format": format, "bellm": __version__, "tolerance": tolerance}
    manifest |= {name: value for name, value in encoder.describe().items() if name != "device"}
    manifest |= _WRITERS[format](encoder, folder, *([bits] if bits else []))
    write_json(folder / EXPORT_FILE, manifest)
    embed = partial(embed_by_table, encoder, folder) if format == "static" else None
    write_reference(encoder, folder, form, embed, special_texts=manifest.get("special_texts", True))
    write_bytes(folder / "README.md", _card(manifest).encode())


def _card(manifest: dict[str, Any]) -> str:
    trust = ", trust_remote_code=True" if manifest.get("remote_code") else ""
    plugin = " Some layers are open: install bellm beside vLLM." if manifest.get("plugin") else ""
    settings = "\n".join(f"| {name.replace('_', ' ')} | {manifest[name]} |" for name in setting_names())
    return f"""# An encoder for {manifest["format"]}

| | |
|---|---|
| base model | `{Path(manifest["name"]).name}` |
{settings}
| dtype | {manifest["dtype"]} |

{_USE[manifest["format"]].format(trust=trust, plugin=plugin)}

`parity.json` says how far the vectors are from those of bellm {manifest["bellm"]}, which wrote this folder.
`bellm doctor` measures it again.
"""


_GRAPH = """```python
from bellm import GraphEncoder  # Without torch: pip install numpy tokenizers RUNTIME, and bellm with --no-deps.

encoder = GraphEncoder.from_pretrained("path")
vectors = encoder.encode(["A sentence."])
```"""

_USE: dict[FormatName, str] = {
    "sentence-transformers": """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/or/id"{trust})
vectors = model.encode(["A sentence."])  # encode_query and encode_document have their own prompts
```""",
    "transformers": """```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("path/or/id"{trust})
tokenizer = AutoTokenizer.from_pretrained("path/or/id")
```

Hint, prompt, pooling, cutting of texts and vectors, and normalization are yours: `export.json` says what they are.""",
    "static": """```python
from model2vec import StaticModel  # Or: from sentence_transformers import SentenceTransformer

model = StaticModel.from_pretrained("path/or/id")
vectors = model.encode(["A sentence."])
```

The prompt is in the table: texts are given as they are, queries and documents alike.""",
    "onnx": _GRAPH.replace("RUNTIME", "onnxruntime"),
    "openvino": _GRAPH.replace("RUNTIME", "openvino"),
    "gguf": f"""```console
$ llama-embedding -m {GGUF_FILE} -p "A sentence." --cache-type-k f32 --cache-type-v f32
```

Pooling, and whether attention is causal, are in the file. Hint, prompt, cutting of texts and vectors, and
normalization are yours: `export.json` says what they are.""",
    "vllm": """```console
$ vllm serve path --runner pooling
```

Hint, prompt, cutting of texts and vectors are yours: `export.json` says what they are.{plugin}""",
    "tei": """```console
$ text-embeddings-router --model-id path --dtype float32 --default-prompt-name text --auto-truncate
```

All that is done to vectors is in the graph: ask with `"normalize": false`. The prompts `query` and `document` are asked
for with `"prompt_name"`.""",
}
