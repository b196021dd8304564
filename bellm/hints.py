"""Names that other libraries use, and what is written here instead."""

from collections.abc import Iterable, Mapping

from bellm.errors import BellmError, UnknownAttributeError, did_you_mean

_POOL = "with EncoderPool(encoder, devices) as pool: pool.encode(texts)"
_LOADED = "Encoder.from_pretrained(model, tokenizer=...), with a model that transformers loaded so"
_TOKEN, _CACHE = "nothing: the environment variable HF_TOKEN has it", "nothing: the environment variable HF_HOME has it"
_COSINE = "encoder.similarity(left, right), which is the cosine"

SETTING_HINTS = {
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "model_max_length": "max_tokens",
    "dimensions": "truncate_dim",
    "dim": "truncate_dim",
    "normalize_embeddings": "normalize",
    "pooling_mode": "pooling",
    "open_layers": "bidirectional",
    "enable_bidirectional": "bidirectional",
    "instruction": "prompt",
    "prompts": "prompt",
    "default_prompt_name": "prompt",
}
"""Names of settings in other libraries."""

LOADING_HINTS = {
    "torch_dtype": "dtype=...",
    "attn_implementation": "attention=...",
    "model_kwargs": "dtype=..., device=..., attention=... or device_map=...",
    "tokenizer_kwargs": "max_tokens=..., or tokenizer=... of a loaded model",
    "load_in_4bit": _LOADED,
    "load_in_8bit": _LOADED,
    "quantization_config": _LOADED,
    "low_cpu_mem_usage": "nothing: weights are never there twice",
    "cache_folder": _CACHE,
    "cache_dir": _CACHE,
    "token": _TOKEN,
    "use_auth_token": _TOKEN,
    "local_files_only": "nothing: the environment variable HF_HUB_OFFLINE=1 says so",
    "similarity_fn_name": _COSINE,
    "dtype": "Encoder.from_pretrained(source, dtype=...), or encoder.to(dtype)",
    "device": "Encoder.from_pretrained(source, device=...), or encoder.to(device)",
}
"""Keywords with which other libraries load models."""

ENCODE_HINTS = {
    "prompt_type": "input_type='query' or 'document'",
    "is_query": "input_type='query'",
    "return_tensors": "convert_to_tensor=True",
    "pool": _POOL,
    "chunk_size": _POOL,
    "num_workers": _POOL,
}
"""Keywords with which other libraries embed."""

ATTRIBUTE_HINTS = {
    "encode_queries": "encoder.encode_query(texts)",
    "encode_corpus": "encoder.encode_document(texts)",
    "encode_multi_process": _POOL,
    "start_multi_process_pool": _POOL,
    "embed": "encoder.encode(texts)",
    "embed_query": "encoder.encode_query(text); bellm.integrations has the classes of other libraries",
    "embed_documents": "encoder.encode_document(texts); bellm.integrations has the classes of other libraries",
    "get_sentence_embedding_dimension": "encoder.embedding_dim",
    "get_embedding_dimension": "encoder.embedding_dim",
    "get_max_seq_length": "encoder.max_seq_length",
    "truncate_sentence_embeddings": "encoder.replace(truncate_dim=...)",
    "prompts": "encoder.config.prompt, which replace(prompt=...) changes",
    "default_prompt_name": "encoder.config.prompt, which replace(prompt=...) changes",
    "similarity_fn_name": _COSINE,
    "dtype": "encoder.dtype_name, which encoder.to(dtype) changes",
    "fit": "bellm.train.train(encoder, data, folder)",
    "train": "bellm.train.train(encoder, data, folder)",
    "eval": "nothing: an encoder never embeds as in training",
    "generate": "with encoder.causal() as model: model.generate(...)",
    "forward": "encoder.encode(texts); encoder.model is the model of transformers",
    "parameters": "encoder.model.parameters()",
    "state_dict": "encoder.model.state_dict()",
    "save": "encoder.save_pretrained(folder)",
    "save_to_hub": "encoder.push_to_hub(repo_id)",
}
"""Attributes of the encoders of other libraries."""


_TOKENS = " Write --max-batch-tokens: a batch is bounded by its tokens, and by default as large as suits the hardware."
_FIRST = " The model comes first: bellm COMMAND MODEL ..."

COMMAND_HINTS = {
    "--batch-size": _TOKENS,
    "--batch": _TOKENS,
    "--model": _FIRST,
    "-m": _FIRST,
    "--model-name": _FIRST,
    "--model-name-or-path": _FIRST,
    "--input": " Inputs come behind the model: bellm embed MODEL INPUT... -o OUTPUT.",
    "--query": " The query comes behind the model: bellm search MODEL QUERY --in FILE.",
    "--out": " Write -o or --output.",
    "--output-dir": " Write -o or --output.",
    "--output-file": " Write -o or --output.",
    "--max-length": " Write --max-tokens.",
    "--max-seq-length": " Write --max-tokens.",
    "--normalize-embeddings": " Write --normalize.",
    "--dim": " Write --truncate-dim.",
    "--dimensions": " Write --truncate-dim.",
    "--layers": " Write --bidirectional.",
    "--open-layers": " Write --bidirectional.",
    "--prompt-name": " Write --input-type query or document, or --prompt.",
    "--instruction": " Write --prompt 'instruct:TASK'.",
    "--torch-dtype": " Write --dtype.",
    "--fp16": " Write --dtype float16.",
    "--half": " Write --dtype float16.",
    "--bf16": " Write --dtype bfloat16.",
    "--attn-implementation": " Write --attention.",
    "--cpu": " Write --device cpu.",
    "--gpu": " Write --device cuda.",
    "--cuda": " Write --device cuda.",
    "--task": " Write --tasks.",
    "--top-k": " Write --top.",
    "-k": " Write --top.",
    "--lr": " Write --learning-rate.",
    "--num-epochs": " Write --epochs.",
    "--num-train-epochs": " Write --epochs.",
    "--dataset": " Write --data.",
    "--train-data": " Write --data.",
    "--overwrite": " Write --force.",
    "--no-progress": " Write --quiet.",
    "--show-progress-bar": " Nothing is needed: a terminal shows progress.",
    "--format": " The suffix of --output says it: .npy, .jsonl or .parquet.",
}
"""Options of other programs, and what to write instead, each behind a space."""


def unknown_names(names: Iterable[str], what: str, known: Iterable[str], hints: Mapping[str, str]) -> BellmError:
    """The error for names that are not known as `what`, one or several, with a hint or the nearest known name."""
    known = list(known)
    said = []
    for name in names:
        hint = f" Write {hints[name]}." if name in hints else did_you_mean(name, known)
        said.append(f"{name!r} is no {what}.{hint}")
    return BellmError(f"{' '.join(said)} {what.split()[0].capitalize()}s: {', '.join(known)}.")


def unknown_attribute(name: str, known: Iterable[str] = ()) -> UnknownAttributeError:
    """The error for an attribute that an encoder does not have, with a hint or the nearest known name."""
    hint = f" Write {ATTRIBUTE_HINTS[name]}." if name in ATTRIBUTE_HINTS else did_you_mean(name, known)
    return UnknownAttributeError(f"An Encoder has no {name!r}.{hint}")
