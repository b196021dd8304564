"""What an export has to give: texts, and the encoder's vectors of them, in a file beside the export.

Shapes: N texts, D width.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bellm.data import STSPairs, read_sts
from bellm.data.sources import VARIABLE
from bellm.encoder import Encoder
from bellm.engine.tokenization import special_tokens
from bellm.errors import SourceError
from bellm.export.export_formats import ExportFormat
from bellm.prompts import SLOT
from bellm.tensors.similarity import paired_cosine_similarity
from bellm.types import Vectors

REFERENCE_FILE = "parity.vectors"
"""A file of safetensors, without that suffix: vLLM takes every such file of a folder for weights."""

_NUM_PAIRS, _MAX_CHARACTERS = 100, 100
"""Of texts that no format has to cut."""

_LONG = (
    "The ferry left at dawn with eleven people and a cart of apples on board, and nobody had counted the dogs. By noon "
    "the wind had turned, so the captain kept to the lee of the islands, where the water was green and flat as glass."
)

TEXTS: Mapping[str, tuple[str, ...]] = {
    "text": (
        "Snow",
        "A heron stands in the shallow water.",
        "A grey bird waits at the edge of the pond.",
        "The invoice was paid twice by mistake.",
        "Someone transferred the money two times.",
        "Why does bread rise when it is left in a warm kitchen?",
        "  two  spaces,\ta tab\nand a line break  ",
        "Ça coûte 12,50 € à Łódź, 東京 — voilà 🚲!",
        '"She said: {no}," he wrote; 3 < 4 && x[0] != y',
        _LONG,
        f"{_LONG} {_LONG} In the evening they counted again.",
        "",
    ),
    "query": ("how do herons catch fish", "bread in a warm kitchen", "an invoice that was paid twice"),
    "document": (
        "Herons stand still for minutes and strike when a fish comes near.",
        "Yeast turns sugar into gas, and a warm kitchen makes it quicker.",
        "The bank sent one half of the money back after the error was found.",
        _LONG,
    ),
}
"""What every export embeds in its runtime, by input type: texts short and long, with odd characters, and empty."""


def write_reference(
    encoder: Encoder,
    folder: Path,
    form: ExportFormat,
    embed: Callable[[Sequence[str]], Vectors] | None = None,
    *,
    special_texts: bool = True,
) -> None:
    """Write what the runtime is to make of the parity texts: what the encoder does, or `embed` of a table.

    With the encoder some texts are also cut, to a number of tokens that is written, too. With `special_texts` a text
    holds a special token. Also written are the encoder's CPU seconds for these texts, and its score on rated pairs
    where they are at hand.
    """
    texts: dict[Any, list[str]] = {name: list(each) for name, each in TEXTS.items()}
    template = encoder.config.template_for("text")
    if not encoder.tokenizer(template.replace(SLOT, "")).input_ids:
        texts["text"].remove("")  # bellm takes a token of its own for it, and other libraries take none.
    has_special = any(token in template for token in special_tokens(encoder.tokenizer))
    if special_texts and not has_special:
        written = encoder.tokenizer.eos_token or encoder.tokenizer.pad_token
        texts["text"].append(f"It is written {written} here.")
    if not form.finishes:
        texts = {
            name: [text for text in each if not encoder.tokenize([text], name).num_truncated]
            for name, each in texts.items()
        }
    encode = partial(_encode, encoder)
    vectors = {name: encode(each[:1], name) for name, each in texts.items()}  # Whatever is done at first is not timed.
    started = time.process_time()
    vectors = {name: encode(each, name) for name, each in texts.items()}
    seconds = time.process_time() - started
    limit = 0
    if embed:
        vectors = {name: embed(each) for name, each in texts.items()}
    elif form.finishes:
        lengths = [len(encoder.tokenize([text]).ids[0]) for text in ("", _LONG)]
        limit = min(sum(lengths) // 2, encoder.config.max_tokens)
        texts["cut"] = [_LONG.rstrip(".")]  # Its last character shares no token with a prompt behind it.
        vectors["cut"] = _encode(encoder.with_settings(max_tokens=limit), texts["cut"], "text")
    pairs = pairs_at_hand()
    score = pairs and score_pairs(pairs, encode([*pairs.left, *pairs.right], "text"))
    job = {"texts": texts, "max_tokens": limit, "seconds": seconds, "sts": score}
    save_file(vectors, folder / REFERENCE_FILE, metadata={name: json.dumps(each) for name, each in job.items()})


def _encode(encoder: Encoder, texts: Sequence[str], input_type: Any) -> Vectors:
    return encoder.encode_with_stats(texts, input_type=input_type).vectors


def pairs_at_hand() -> STSPairs | None:
    """Some rated pairs of STS-Benchmark's dev part, of the folder that BELLM_DATA names; None where it has none."""
    folder = Path(os.environ.get(VARIABLE) or os.devnull)
    if not (folder / "stsbenchmark" / "sts-dev.csv").is_file():
        return None
    pairs = read_sts("STSBenchmark-dev", folder)
    short = [max(map(len, both)) <= _MAX_CHARACTERS for both in zip(pairs.left, pairs.right, strict=True)]
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(short))[:_NUM_PAIRS]
    parts = ([side[index] for index in chosen] for side in (pairs.left, pairs.right, pairs.parts))
    left, right, names = map(tuple, parts)
    return STSPairs(pairs.name, left, right, pairs.gold_N[chosen], names)


def score_pairs(pairs: STSPairs, vectors_ND: Vectors) -> float:
    """Spearman x100 of ratings with the cosines of vectors, all left texts before all right ones."""
    from scipy.stats import spearmanr

    cosines_N = paired_cosine_similarity(*np.split(vectors_ND, 2))
    return round(100 * float(spearmanr(cosines_N, pairs.gold_N).statistic), 2)


def read_reference(folder: Path) -> tuple[dict[str, Vectors], dict[str, Any]]:
    """Vectors of the encoder by input type, and the texts that they are of."""
    path = folder / REFERENCE_FILE
    try:
        with safe_open(path, "numpy") as file:
            job = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in job["texts"]}, job
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise SourceError(f"{path} cannot be read: it holds no vectors with their texts. Export again.") from error
