"""Run an exported folder as its own library does: a program that the parity check starts in a process of its own.

bellm cannot be imported in it; for a graph in bellm's own runtime torch and transformers cannot. It may be run by the
Python of another environment, and imports nothing but what the format is for. A work folder has job.json: the texts by
input type, and the number of tokens that the texts under `cut` are cut to. It gets vectors.npz and costs.json.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Embed = Callable[[Sequence[str], str, int | None], Any]
"""Texts, their input type, and the most tokens of one, to an array of vectors."""


def open_sentence_transformers(folder: str, manifest: Mapping[str, Any]) -> tuple[Embed, str]:
    """A folder of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, trust_remote_code=manifest["remote_code"], device="cpu")
    methods = {"text": model.encode, "query": model.encode_query, "document": model.encode_document}
    whole = model.max_seq_length

    def embed(texts: Sequence[str], input_type: str, max_tokens: int | None) -> Any:
        model.max_seq_length = max_tokens or whole
        return methods[input_type](list(texts), show_progress_bar=False, batch_size=4)

    return embed, "sentence-transformers"


def open_transformers(folder: str, manifest: Mapping[str, Any]) -> tuple[Embed, str]:
    """A folder of transformers, with prompt and pooling as export.json says."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, trust_remote_code=manifest["remote_code"])
    return _pooled(model, AutoTokenizer.from_pretrained(folder), manifest), "transformers"


def _pooled(model: Any, tokenizer: Any, manifest: Mapping[str, Any]) -> Embed:
    import torch

    @torch.inference_mode()
    def embed(texts: Sequence[str], input_type: str, _: int | None) -> Any:
        inputs = tokenizer(_filled(texts, input_type, manifest), padding=True, return_tensors="pt")
        states_BLD = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        states_BLD = states_BLD.float()
        mask_BL = inputs["attention_mask"].float()
        first_B, last_B = mask_BL.argmax(1), (mask_BL * torch.arange(mask_BL.shape[1])).argmax(1)
        rows_B = torch.arange(len(texts))
        if manifest["pooling"] in ("first", "last"):
            vectors_BD = states_BLD[rows_B, first_B if manifest["pooling"] == "first" else last_B]
        elif manifest["pooling"] == "max":
            vectors_BD = states_BLD.masked_fill(mask_BL[..., None] == 0, -torch.inf).amax(1)
        else:
            weight_BL = mask_BL * (mask_BL.cumsum(1) if manifest["pooling"] == "weighted-mean" else 1)
            vectors_BD = (states_BLD * weight_BL[..., None]).sum(1) / weight_BL.sum(1, keepdim=True)
        return _finished(vectors_BD.numpy(), manifest)

    return embed


def _filled(texts: Sequence[str], input_type: str, manifest: Mapping[str, Any]) -> list[str]:
    """Texts in their prompt."""
    template = manifest["template"] if input_type == "text" else manifest[f"{input_type}_template"]
    before, after = (template or manifest["template"]).split("{text}")
    before = before if manifest["hint"] == "none" else f"{manifest['hint']} {before}"
    return [f"{before}{text}{after}" for text in texts]


def _finished(vectors_ND: Any, manifest: Mapping[str, Any]) -> Any:
    """Vectors cut and normalized as export.json says, where the library leaves that to its user."""
    import numpy as np

    vectors_ND = vectors_ND[:, : manifest["truncate_dim"]]
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True) if manifest["normalize"] else vectors_ND


def open_graph(folder: str, manifest: Mapping[str, Any]) -> tuple[Embed, str]:
    """A graph in bellm's own runtime, where torch and transformers cannot be imported."""
    from dataclasses import replace

    from bellm import GraphEncoder

    encoder = GraphEncoder.from_pretrained(folder)
    whole = encoder.config

    def embed(texts: Sequence[str], input_type: Any, max_tokens: int | None) -> Any:
        encoder.config = replace(whole, max_tokens=max_tokens or whole.max_tokens)
        return encoder.encode_with_counts(list(texts), input_type)[0]

    return embed, {"onnx": "onnxruntime", "openvino": "openvino"}[manifest["format"]]


def open_gguf(folder: str, manifest: Mapping[str, Any]) -> tuple[Embed, str]:
    """A GGUF file in llama.cpp, or, where that is not installed, in transformers' reader of such files."""
    import numpy as np

    if find_spec("llama_cpp") is None:
        return _open_gguf_by_transformers(folder, manifest)
    import llama_cpp

    num_tokens = -(-min(manifest["max_tokens"], 2048) // 256) * 256  # Of other numbers it cannot take a mean.
    model = llama_cpp.Llama(
        str(Path(folder, "model.gguf")),
        embedding=True,
        n_ctx=num_tokens,
        n_batch=num_tokens,
        n_ubatch=num_tokens,
        type_k=0,  # Keys and values in float32, else they are in float16.
        type_v=0,
        verbose=False,
    )

    def embed(texts: Sequence[str], input_type: str, _: int | None) -> Any:
        found = model.embed(_filled(texts, input_type, manifest), normalize=False, truncate=False)
        return _finished(np.asarray(found, dtype=np.float32), manifest)

    return embed, "llama_cpp_python"


def _open_gguf_by_transformers(folder: str, manifest: Mapping[str, Any]) -> tuple[Embed, str]:
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    fields = GGUFReader(Path(folder, "model.gguf")).fields
    kind = fields["general.architecture"].contents()
    pooling = {1: "mean", 2: "first", 3: "last"}[fields[f"{kind}.pooling_type"].contents()]
    config = AutoConfig.from_pretrained(folder, gguf_file="model.gguf")
    if (width := fields.get(f"{kind}.attention.key_length")) is not None:  # Of Qwen3 it takes 128 for granted.
        config.head_dim = int(width.contents())
    model = AutoModel.from_pretrained(folder, gguf_file="model.gguf", dtype=manifest["dtype"], config=config)
    model.config.is_causal = bool(fields[f"{kind}.attention.causal"].contents())
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return _pooled(model, tokenizer, {**manifest, "pooling": pooling}), "transformers"


def open_vllm(folder: str, manifest: Mapping[str, Any]) -> tuple[Embed, str]:
    """A folder in vLLM, in this process; where it needs bellm's plugin that is registered as vLLM does it."""
    import os

    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if manifest["plugin"]:
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # Of the process in which vLLM looks at classes.
        from bellm.integrations.vllm_plugin import register

        register()
    import numpy as np
    import torch
    from vllm import LLM, PoolingParams

    dtype, length = manifest["dtype"], min(manifest["max_tokens"], 2048)
    # Without a GPU this is the share of the machine's memory that has to be free.
    options = {} if torch.cuda.is_available() else {"gpu_memory_utilization": 0.3}
    model = LLM(folder, runner="pooling", dtype=dtype, max_model_len=length, enforce_eager=True, **options)

    def embed(texts: Sequence[str], input_type: str, _: int | None) -> Any:
        filled = _filled(texts, input_type, manifest)
        outputs = model.embed(filled, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
        found = np.asarray([each.outputs.embedding for each in outputs], dtype=np.float32)
        return _finished(found, manifest)

    return embed, packages_distributions()["vllm"][0]  # There are several of one name.


def open_tei(folder: str, manifest: Mapping[str, Any]) -> tuple[Embed, str]:
    """A folder in ONNX Runtime, as the source of text-embeddings-inference's ONNX backend reads it.

    Its inputs are token ids and their mask, and where the graph has an output `sentence_embedding` that is the vector.
    """
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    def read(name: str) -> Any:
        return json.loads(Path(folder, name).read_text(encoding="utf-8"))

    prompts, pad = read("config_sentence_transformers.json")["prompts"], read("config.json")["pad_token_id"]
    limit = read("sentence_bert_config.json")["max_seq_length"]
    tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    tokenizer.no_padding()
    session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")), providers=["CPUExecutionProvider"])

    def embed(texts: Sequence[str], input_type: str, max_tokens: int | None) -> Any:
        tokenizer.enable_truncation(max_tokens or limit)
        rows = [each.ids for each in tokenizer.encode_batch([prompts[input_type] + text for text in texts])]
        vectors = []
        for start in range(0, len(rows), 8):
            batch = rows[start : start + 8]
            length = max(map(len, batch))
            ids_BL = np.array([ids + [pad] * (length - len(ids)) for ids in batch], dtype=np.int64)
            mask_BL = np.array([[1] * len(ids) + [0] * (length - len(ids)) for ids in batch], dtype=np.int64)
            inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
            vectors += list(session.run(["sentence_embedding"], inputs)[0])
        return np.stack(vectors)

    return embed, "onnxruntime"


def open_static(folder: str, manifest: Mapping[str, Any]) -> tuple[Embed, str]:
    """A table in model2vec, and in sentence-transformers, which have to agree."""
    import numpy as np
    from model2vec import StaticModel
    from sentence_transformers import SentenceTransformer

    table, other = StaticModel.from_pretrained(folder), SentenceTransformer(folder, device="cpu")
    texts = ["Snow fell.", "", "It was paid twice: 12,50 €!", "  東京 🚲"]
    if not np.allclose(table.encode(texts), other.encode(texts, show_progress_bar=False), atol=1e-5):
        raise ValueError("model2vec and sentence-transformers give different vectors")
    return lambda texts, *_: table.encode(list(texts)), "model2vec"


RUNTIMES: dict[str, Callable[[str, Mapping[str, Any]], tuple[Embed, str]]] = {
    "sentence-transformers": open_sentence_transformers,
    "transformers": open_transformers,
    "onnx": open_graph,
    "openvino": open_graph,
    "gguf": open_gguf,
    "vllm": open_vllm,
    "tei": open_tei,
    "static": open_static,
}
"""Each opens a folder; gives what embeds, and the name of the distribution that does it."""


def run_job(folder: str, work: str) -> None:
    """Embed the texts of a work folder."""
    job = json.loads(Path(work, "job.json").read_text(encoding="utf-8"))
    manifest = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))
    embed, package = RUNTIMES[manifest["format"]](folder, manifest)
    import numpy as np

    vectors: dict[str, Any] = {}
    seconds = 0.0
    embed(job["texts"]["text"][:1], "text", None)  # Whatever is done at first is not timed.
    for name, texts in job["texts"].items():
        started = time.process_time()
        limit = job["max_tokens"] if name == "cut" else None
        input_type = name if name in ("text", "query", "document") else "text"
        vectors[name] = np.asarray(embed(texts, input_type, limit), dtype=np.float32)
        seconds += (time.process_time() - started) * (name == input_type)
    np.savez(Path(work, "vectors.npz"), **vectors)
    costs = {"seconds": seconds, "runtime": f"{package} {version(package)}"}
    Path(work, "costs.json").write_text(json.dumps(costs), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[3] in ("onnx", "openvino", "vllm"):
        sys.path.insert(0, str(Path(__file__).parents[2]))
        if sys.argv[3] != "vllm":
            sys.modules.update({"torch": None, "transformers": None})  # type: ignore[dict-item]
    else:
        sys.modules["bellm"] = None  # type: ignore[assignment]
    run_job(*sys.argv[1:3])
