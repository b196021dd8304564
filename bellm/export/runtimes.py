"""Run an exported folder as its own library does: a program that the parity check starts in a process of its own.

bellm cannot be imported in it; for a graph in bellm's own runtime torch and transformers cannot. A work folder has
job.json: the format, the texts by input type, and the number of tokens that the texts under `cut` are cut to. It gets
vectors.npz and costs.json.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Embed = Callable[[Sequence[str], str, int | None], Any]
"""Texts, their input type, and the most tokens of one, to an array of vectors."""


def open_sentence_transformers(folder: str, manifest: Mapping[str, Any]) -> Embed:
    """A folder of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, trust_remote_code=manifest["remote_code"], device="cpu")
    methods = {"text": model.encode, "query": model.encode_query, "document": model.encode_document}
    whole = model.max_seq_length

    def embed(texts: Sequence[str], input_type: str, max_tokens: int | None) -> Any:
        model.max_seq_length = max_tokens or whole
        return methods[input_type](list(texts), show_progress_bar=False, batch_size=4)

    return embed


def open_transformers(folder: str, manifest: Mapping[str, Any]) -> Embed:
    """A folder of transformers, with prompt and pooling as export.json says."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, trust_remote_code=manifest["remote_code"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    templates = {name: manifest[f"{name}_template"] or manifest["template"] for name in ("query", "document")}
    templates["text"] = manifest["template"]
    hint = "" if manifest["hint"] == "none" else f"{manifest['hint']} "

    @torch.inference_mode()
    def embed(texts: Sequence[str], input_type: str, _: int | None) -> Any:
        before, after = templates[input_type].split("{text}")
        inputs = tokenizer([f"{hint}{before}{text}{after}" for text in texts], padding=True, return_tensors="pt")
        states_BLD = model(**inputs).last_hidden_state.float()
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
        vectors_BD = vectors_BD[:, : manifest["truncate_dim"]]
        return torch.nn.functional.normalize(vectors_BD) if manifest["normalize"] else vectors_BD

    return embed


def open_onnx(folder: str, manifest: Mapping[str, Any]) -> Embed:
    """A graph in bellm's own runtime, where torch and transformers cannot be imported."""
    from dataclasses import replace

    from bellm import OnnxEncoder

    whole = OnnxEncoder.from_pretrained(folder)
    cut = OnnxEncoder.from_pretrained(folder)

    def embed(texts: Sequence[str], input_type: Any, max_tokens: int | None) -> Any:
        encoder = cut if max_tokens else whole
        encoder.config = replace(whole.config, max_tokens=max_tokens or whole.config.max_tokens)
        return encoder.encode_with_counts(list(texts), input_type)[0]

    return embed


def open_static(folder: str, manifest: Mapping[str, Any]) -> Embed:
    """A table in model2vec, and in sentence-transformers, which have to agree."""
    import numpy as np
    from model2vec import StaticModel
    from sentence_transformers import SentenceTransformer

    table, other = StaticModel.from_pretrained(folder), SentenceTransformer(folder, device="cpu")

    def embed(texts: Sequence[str], *_: Any) -> Any:
        vectors_ND = table.encode(list(texts))
        if not np.allclose(vectors_ND, other.encode(list(texts), show_progress_bar=False), atol=1e-5):
            raise ValueError("model2vec and sentence-transformers give different vectors")
        return vectors_ND

    return embed


RUNTIMES: dict[str, Callable[[str, Mapping[str, Any]], Embed]] = {
    "sentence-transformers": open_sentence_transformers,
    "transformers": open_transformers,
    "onnx": open_onnx,
    "static": open_static,
}


def run_job(folder: str, work: str) -> None:
    """Embed the texts of a work folder."""
    job = json.loads(Path(work, "job.json").read_text(encoding="utf-8"))
    manifest = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))
    embed = RUNTIMES[manifest["format"]](folder, manifest)
    import numpy as np

    vectors: dict[str, Any] = {}
    seconds = 0.0
    for name, texts in job["texts"].items():
        start = time.process_time()
        limit = job["max_tokens"] if name == "cut" else None
        vectors[name] = np.asarray(embed(texts, "text" if name == "cut" else name, limit), dtype=np.float32)
        seconds += time.process_time() - start
    np.savez(Path(work, "vectors.npz"), **vectors)
    costs = {"seconds": seconds, "version": version(job["runtime"])}
    Path(work, "costs.json").write_text(json.dumps(costs), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[3] == "onnx":
        sys.path.insert(0, str(Path(__file__).parents[2]))
        sys.modules.update({"torch": None, "transformers": None})  # type: ignore[dict-item]
    else:
        sys.modules["bellm"] = None  # type: ignore[assignment]
    run_job(*sys.argv[1:3])
