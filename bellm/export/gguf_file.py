"""Write a causal or wholly open encoder as one GGUF file for llama.cpp, with its pooling and tokenizer."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bellm.backbone.architecture import get_text_config
from bellm.backbone.hooks import causal_copy
from bellm.encoder import Encoder
from bellm.engine.tokenization import special_tokens, tokens_around
from bellm.errors import BellmError
from bellm.export.transformer_folder import headless_model
from bellm.types import PoolingName

GGUF_FILE = "model.gguf"

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model types of transformers, and what llama.cpp calls their decoders."""

_POOLINGS: dict[PoolingName, str] = {"last": "LAST", "mean": "MEAN", "first": "CLS"}

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_PRE_TOKENIZERS = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_WORDS % "{1,3}", "bytes"): "llama-bpe",
    (_WORDS % "", "bytes"): "qwen2",
}
"""How a byte-level tokenizer splits a text before it merges, and llama.cpp's name for that."""


def write_gguf(encoder: Encoder, folder: Path, bits: int | None = None) -> dict[str, Any]:
    """Write the file; returns what the manifest says of it.

    Raises:
        BellmError: llama.cpp has no such architecture, frequencies or tokenizer.
    """
    import gguf

    model = headless_model(causal_copy(encoder.model))
    config: Any = get_text_config(model)
    kind = _ARCHITECTURES.get(config.model_type)
    if not kind:
        raise BellmError(f"gguf cannot hold a {config.model_type}: it takes {', '.join(_ARCHITECTURES)}.")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        raise BellmError(f"gguf cannot hold rotary frequencies of the type {rope.get('rope_type')!r}: take 'default'.")
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
        raise BellmError(f"gguf cannot hold {config.hidden_act} with biases={getattr(config, 'mlp_bias', False)}.")
    if any(layer == "sliding_attention" for layer in getattr(config, "layer_types", None) or ()):
        raise BellmError("gguf cannot hold the sliding windows of this model: take sentence-transformers or onnx.")
    writer = gguf.GGUFWriter(folder / GGUF_FILE, kind)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(Path(encoder.name).name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_causal_attention(not encoder.config.bidirectional)
    writer.add_pooling_type(gguf.PoolingType[_POOLINGS[encoder.config.pooling]])
    _add_tokenizer(writer, encoder.tokenizer, config.vocab_size)
    dtypes = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    form = {None: dtypes[encoder.dtype_name], 8: "Q8_0", 4: "Q4_0"}[bits]
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if form == 'F32' else 'MOSTLY'}_{form}"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    forms = {name: _form(tensor, gguf.GGMLQuantizationType[form]) for name, tensor in _tensors(model, names, kind)}
    for name, tensor in _tensors(model, names, kind):
        block, size = gguf.GGML_QUANT_SIZES[forms[name]]
        num_bytes = tensor.numel() // block * size
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), num_bytes, raw_dtype=forms[name])
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in _tensors(model, names, kind):  # One at a time, so that no second model is in memory.
            writer.write_tensor_data(gguf.quants.quantize(tensor.float().numpy(), forms[name]))
    return {"bits": bits, "special_texts": False}


def _form(tensor: Tensor, form: Any) -> Any:
    """How a tensor is written: vectors, and rows that are no whole blocks, in float32."""
    import gguf

    return form if tensor.ndim > 1 and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[form][0] == 0 else type(form).F32


def _tensors(model: torch.nn.Module, names: Any, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Weights by llama.cpp's names; its llama turns neighbors of a head, where transformers turns halves."""
    config: Any = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        tensor = weight.detach().cpu()
        count = heads.get(name.split(".")[-2])
        if kind == "llama" and count:
            tensor = tensor.reshape(count, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        yield names.get_name(f"model.{name}", try_suffixes=(".weight", ".bias")), tensor


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    import gguf

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    merging = described["model"]
    split = _PRE_TOKENIZERS.get(tuple(_rules(described["pre_tokenizer"])))
    if merging.get("type") != "BPE" or merging.get("byte_fallback") or not split:
        raise BellmError(
            f"gguf cannot hold the tokenizer of this model ({type(tokenizer).__name__}): it takes byte-level BPE that "
            f"splits as {', '.join(_PRE_TOKENIZERS.values())} do."
        )
    tokens = [f"[PAD{index}]" for index in range(num_embeddings)]
    types = [gguf.TokenType.UNUSED] * num_embeddings
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    special = special_tokens(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        tokens[index] = token
        kind = "CONTROL" if token in special else "USER_DEFINED" if token in added else "NORMAL"
        types[index] = gguf.TokenType[kind]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merging["merges"]])
    for name in ("bos", "eos", "pad", "unk"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    before, after = tokens_around(tokenizer)
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        around = tokenizer.convert_ids_to_tokens([*before, *after])
        raise BellmError(f"gguf cannot hold a tokenizer that puts {around} around a text: it takes BOS and EOS.")
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))


def _rules(step: dict[str, Any] | None) -> Iterator[str]:
    """How texts are split before tokens are merged, step by step."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for each in step["pretokenizers"]:
            yield from _rules(each)
    elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        yield "words" if step["use_regex"] else "bytes"
    elif step["type"] == "Digits" and step["individual_digits"]:
        yield "digits"
    elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        yield step["pattern"].get("Regex", "")
    else:
        yield step["type"]
