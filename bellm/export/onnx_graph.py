"""Write an encoder as one ONNX graph: token ids to finished vectors, any batch and length, for `GraphEncoder`.

Shapes: B texts, L tokens, W width of a vector.
"""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bellm.backbone.architecture import has_dynamic_frequencies
from bellm.backbone.states import states_after
from bellm.encoder import Encoder
from bellm.engine.graph_encoder import GRAPH_FILES
from bellm.engine.readout import make_readout
from bellm.engine.tokenization import fallback_token_id, special_tokens
from bellm.errors import BellmError, SourceError

_OPSET = 20
_BLOCK = 32  # Numbers of a matrix that share a scale.
_LARGEST_FILE = 100_000_000
"""Bytes of weights from which they lie in a file of their own, tensor by tensor: in one of protobuf they are in memory
several times, and two gigabytes are the most that it holds."""


class _EncoderGraph(nn.Module):
    """What becomes the graph: the opened model, its readout, and all that is done to vectors."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.model, self._readout = encoder.model, make_readout(encoder.config)
        self._config, statistics = encoder.config, encoder.statistics
        self._centering = encoder.config.centering
        if statistics and self._centering != "none":
            self.register_buffer("mean_D", torch.from_numpy(statistics.mean_D))
            if statistics.whitening_DD is not None:
                self.register_buffer("whitening_DD", torch.from_numpy(statistics.whitening_DD))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, text_mask: Tensor | None = None) -> Tensor:
        tapped = states_after(self.model, input_ids, attention_mask, [int(tap) for tap in self._readout.taps])
        # Without spans the readout pools what the mask has.
        vectors_BW = self._readout(tapped, (attention_mask if text_mask is None else text_mask).bool(), ())
        if self._centering != "none":
            vectors_BW = vectors_BW - self.mean_D  # type: ignore[operator]
        if self._centering == "whitening":
            vectors_BW = vectors_BW @ self.whitening_DD  # type: ignore[operator]
        vectors_BW = vectors_BW[:, : self._config.truncate_dim]
        return nn.functional.normalize(vectors_BW) if self._config.normalize else vectors_BW


def write_onnx(encoder: Encoder, folder: Path, bits: int | None = None) -> dict[str, Any]:
    """Write graph and tokenizer; returns what the runtime needs of the tokenizer besides."""
    write_graph(encoder, folder / GRAPH_FILES["onnx"], "vectors", bits)
    tokenizer = copy.deepcopy(encoder.tokenizer).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = sorted(special_tokens(encoder.tokenizer))
    return {"bits": bits, "special_tokens": specials, "fallback_token_id": fallback_token_id(encoder.tokenizer)}


def write_openvino(encoder: Encoder, folder: Path, bits: int | None = None) -> dict[str, Any]:
    """Write the same for OpenVINO, which reads the graph of ONNX."""
    manifest = write_onnx(encoder, folder, bits)
    convert_to_openvino(folder)
    return manifest


def convert_to_openvino(folder: Path) -> None:
    """Put OpenVINO's form of the graph in the place of ONNX's."""
    import openvino

    graph = folder / GRAPH_FILES["onnx"]
    model = openvino.Core().read_model(graph)  # Not by convert_model, which tells its maker of each call.
    path = folder / GRAPH_FILES["openvino"]
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise SourceError(f"{path} cannot be written: {' '.join(str(error).split())[:200]}") from error
    del model
    _remove(graph)


def write_graph(encoder: Encoder, path: Path, output: str, bits: int | None = None) -> None:
    """Write the graph, whose inputs are `input_ids`, `attention_mask` and, for some readouts, `text_mask`.

    Raises:
        BellmError: The model cannot be traced.
    """
    if has_dynamic_frequencies(encoder.model):
        raise BellmError(
            f"{encoder.name} chooses its rotary frequencies by the longest text of a batch: no graph does."
        )
    module = _EncoderGraph(encoder).eval()
    names = ["input_ids", "attention_mask", *["text_mask"] * make_readout(encoder.config).needs_spans]
    ids_BL = torch.arange(14).reshape(2, 7) + 3
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 4:] = 0
    any_length = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)  # They name operators of packages that are not there.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                (ids_BL, *(mask_BL.clone() for _ in names[1:])),  # One tensor twice would become one input.
                dynamo=True,
                input_names=names,
                output_names=[output],
                dynamic_shapes=dict.fromkeys(names, any_length),
                verbose=False,
                opset_version=_OPSET,
            )
        except torch.onnx.OnnxExporterError as error:
            said = " ".join(str(error).split())[:300]
            raise BellmError(f"{type(encoder.model).__name__} cannot be traced to a graph: {said}") from error
    assert program
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    program.save(path, external_data=size > _LARGEST_FILE)
    if bits:
        quantize_graph(path, bits)


def _remove(path: Path) -> None:
    """Remove a graph, and the file of its weights."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def quantize_graph(path: Path, bits: int) -> None:
    """Put the matrices of products into blocks of integers with a scale each; activations stay in float32.

    Integers for activations, as of dynamic quantization, break models whose states have a few very large numbers.
    """
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
    model = onnx.load(path)
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(model, bits=bits, block_size=_BLOCK, is_symmetric=False)
    quantizer.process()
    _remove(path)
    quantizer.model.save_model_to_file(str(path), quantizer.model.model.ByteSize() > _LARGEST_FILE)
