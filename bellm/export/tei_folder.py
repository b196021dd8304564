"""Write an encoder as a folder for text-embeddings-inference: a graph whose output is the vector itself.

Its ONNX backend takes an output named `sentence_embedding` as it is, so that any open layers, readout and centering are
held. There are no weights beside the graph, which its other backends would run causally.
"""

from pathlib import Path
from typing import Any, get_args

from bellm.encoder import Encoder
from bellm.export.onnx_graph import write_graph
from bellm.export.transformer_folder import plain_tokenizer
from bellm.io.atomic import make_folder, write_json
from bellm.prompts import SLOT
from bellm.types import InputType


def write_tei(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """Write graph, tokenizer, prompts and limits."""
    write_graph(encoder, folder / "model.onnx", "sentence_embedding")
    tokenizer, config = plain_tokenizer(encoder), encoder.config
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": encoder.uncentered().embedding_dim, "num_hidden_layers": encoder.num_layers}
    limits = {"max_position_embeddings": config.max_tokens, "pad_token_id": tokenizer.pad_token_id or 0}
    write_json(folder / "config.json", {"model_type": "bellm", "architectures": ["BellmEncoder"], **sizes, **limits})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_tokens, "do_lower_case": False})
    prompts = {name: config.template_for(name).removesuffix(SLOT) for name in get_args(InputType)}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "text"})
    make_folder(folder / "1_Pooling")  # It has to be there, and is not read where the graph has pooled.
    modes = {f"pooling_mode_{name}": name == "mean_tokens" for name in ("cls_token", "mean_tokens", "max_tokens")}
    sizes = {"word_embedding_dimension": encoder.embedding_dim}
    write_json(folder / "1_Pooling" / "config.json", {**sizes, **modes, "pooling_mode_mean_sqrt_len_tokens": False})
    return {"special_texts": False}  # Those that are written in a text are read as such.
