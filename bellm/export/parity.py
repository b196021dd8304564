"""Parity of an export: its vectors in its own runtime, in a process without bellm, against the encoder's.

Shapes: N texts, D width.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bellm.backbone.source_names import EXPORT_FILE
from bellm.doctor import Check, Diagnosis, Status
from bellm.encoder import Encoder
from bellm.engine.tokenization import special_tokens
from bellm.errors import BellmError, SourceError
from bellm.export import runtimes
from bellm.export.export_formats import EXPORT_FORMATS, ExportFormat
from bellm.io.atomic import write_json
from bellm.prompts import SLOT
from bellm.saved_encoder import read_object
from bellm.tensors.similarity import cosine_similarity, paired_cosine_similarity, relative_distance
from bellm.types import Vectors

PARITY_FILE, REFERENCE_FILE = "parity.json", "reference.safetensors"

_IN_ORDER = 0.95
"""Share of neighbors in the encoder's order below which the doctor warns."""

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


@dataclass(frozen=True)
class Parity:
    """How near an export is to its encoder."""

    format: str
    runtime: str
    """Package and version that ran it."""
    max_difference: float
    """Largest relative distance of a vector to the encoder's."""
    min_cosine: float
    mean_cosine: float
    rank_agreement: float
    """Share of the pairs of neighbors, over all texts, that stand in the same order by cosine."""
    worst_text: str
    """That of the largest distance."""
    tolerance: float
    """Largest `max_difference` allowed."""
    num_texts: int
    cpu_seconds: float
    """Of the runtime, for these texts."""

    @property
    def holds(self) -> bool:
        """Whether the vectors are the encoder's."""
        return self.max_difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """All fields, as parity.json has them."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"the same vectors in {self.runtime}: largest distance {self.max_difference:.2g}, allowed "
            f"{self.tolerance:g}; least cosine {self.min_cosine:.6f}, "
            f"{100 * self.rank_agreement:.1f} % of neighbors in order."
        )


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
    holds a special token.
    """
    texts: dict[Any, list[str]] = {name: list(each) for name, each in TEXTS.items()}
    template = encoder.config.template_for("text")
    if not encoder.tokenizer(template.replace(SLOT, "")).input_ids:
        texts["text"].remove("")  # bellm takes a token of its own for it, and other libraries take none.
    has_special = any(token in template for token in special_tokens(encoder.tokenizer))
    if special_texts and not has_special:
        written = encoder.tokenizer.eos_token or encoder.tokenizer.pad_token
        texts["text"].append(f"It is written {written} here.")
    if embed:
        vectors = {name: embed(each) for name, each in texts.items()}
        save_file(vectors, folder / REFERENCE_FILE, metadata={"texts": json.dumps(texts), "max_tokens": "0"})
        return
    if not form.finishes:
        texts = {
            name: [text for text in each if not encoder.tokenize([text], name).num_truncated]
            for name, each in texts.items()
        }
    vectors = {name: encoder.encode_with_stats(each, input_type=name).vectors for name, each in texts.items()}
    lengths = [len(encoder.tokenize([text]).ids[0]) for text in ("", _LONG)]
    limit = min(sum(lengths) // 2, encoder.config.max_tokens)
    if form.finishes:
        texts["cut"] = [_LONG.rstrip(".")]  # Its last character shares no token with a prompt behind it.
        vectors["cut"] = encoder.with_settings(max_tokens=limit).encode_with_stats(texts["cut"]).vectors
    job = {"texts": json.dumps(texts), "max_tokens": str(limit)}
    save_file(vectors, folder / REFERENCE_FILE, metadata=job)


def run_export(folder: Path) -> Parity:
    """Embed the parity texts of an exported folder in its runtime, in a process without bellm, and compare.

    Raises:
        BellmError: The folder lacks a file, or the runtime cannot run it.
    """
    manifest = read_export(folder)
    form = EXPORT_FORMATS[manifest["format"]]
    expected, job = read_reference(folder)
    with tempfile.TemporaryDirectory() as work:
        write_json(Path(work, "job.json"), {**job, "runtime": form.packages[0]})
        command = [
            sys.executable,
            "-I",
            "-W",
            "ignore",
            runtimes.__file__,
            str(folder.resolve()),
            work,
            manifest["format"],
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": work, "TQDM_DISABLE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise BellmError(f"{manifest['format']} cannot be run in a process of {form.packages[0]}: {said}")
        costs = json.loads(Path(work, "costs.json").read_text(encoding="utf-8"))
        with np.load(Path(work, "vectors.npz")) as found:
            actual = {name: found[name] for name in found.files}
    return measure_parity(manifest, job, costs, actual, expected)


def diagnose_export(folder: Path) -> Diagnosis:
    """Run an exported folder in its runtime again, and compare its vectors with those of the day of the export."""
    name, advice = "vectors are the encoder's", "A file is not the one that was written. Export again."
    try:
        parity = run_export(folder)
    except SourceError:
        raise
    except BellmError as error:
        return Diagnosis(str(folder), (), (Check(name, "fail", str(error), advice),))
    status: Status = "pass" if parity.holds else "fail"
    finding = f"{parity.num_texts} texts in {parity.runtime}, in a process of its own"
    checks = [Check(name, status, finding, "" if parity.holds else advice, parity.max_difference, parity.tolerance)]
    agreement = f"{100 * parity.rank_agreement:.1f} % of them"
    in_order = parity.rank_agreement >= _IN_ORDER
    checks.append(
        Check(
            "neighbors stand in the encoder's order",
            "pass" if in_order else "warn",
            agreement,
            "" if in_order else "Export with wider numbers, or without --tolerance.",
        )
    )
    return Diagnosis(str(folder), (), tuple(checks))


def read_export(folder: Path) -> dict[str, Any]:
    """What export.json says."""
    manifest = read_object(folder / EXPORT_FILE, "Export again.")
    if str(manifest.get("format")) not in EXPORT_FORMATS or "tolerance" not in manifest:
        raise SourceError(f"{folder / EXPORT_FILE} cannot be read: it lacks a format or a tolerance. Export again.")
    return manifest


def read_reference(folder: Path) -> tuple[dict[str, Vectors], dict[str, Any]]:
    """Vectors of the encoder by input type, and the texts that they are of."""
    path = folder / REFERENCE_FILE
    try:
        with safe_open(path, "numpy") as file:
            job = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in job["texts"]}, job
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise SourceError(f"{path} cannot be read: it holds no vectors with their texts. Export again.") from error


def measure_parity(
    manifest: Mapping[str, Any],
    job: Mapping[str, Any],
    costs: Mapping[str, Any],
    actual: Mapping[str, Vectors],
    expected: Mapping[str, Vectors],
) -> Parity:
    """Compare vectors by input type, those of the runtime and those of the encoder."""
    actual_ND, expected_ND = (np.concatenate([part[name] for name in expected]) for part in (actual, expected))
    if actual_ND.shape != expected_ND.shape:
        raise BellmError(
            f"{manifest['format']} gives vectors of shape {actual_ND.shape}, and the encoder {expected_ND.shape}."
        )
    texts = [text for name in expected for text in job["texts"][name]]
    lengths_N = np.linalg.norm(expected_ND, axis=1).clip(min=np.finfo(np.float32).tiny)
    both_empty_N = ~(actual_ND.any(1) | expected_ND.any(1))  # Of a table, for a text without tokens.
    cosines_N = paired_cosine_similarity(actual_ND, expected_ND) + both_empty_N
    return Parity(
        format=manifest["format"],
        runtime=f"{EXPORT_FORMATS[manifest['format']].packages[0]} {costs['version']}",
        max_difference=relative_distance(actual_ND, expected_ND),
        min_cosine=float(cosines_N.min()),
        mean_cosine=float(cosines_N.mean()),
        worst_text=texts[int(np.argmax(np.linalg.norm(actual_ND - expected_ND, axis=1) / lengths_N))],
        rank_agreement=_rank_agreement(actual_ND, expected_ND),
        tolerance=manifest["tolerance"],
        num_texts=len(expected_ND),
        cpu_seconds=round(costs["seconds"], 3),
    )


def _rank_agreement(actual_ND: Vectors, expected_ND: Vectors) -> float:
    """Share of pairs of other texts that stand in the same order, by their cosines with each text."""
    agree = total = 0
    for row, (left, right) in enumerate(
        zip(cosine_similarity(actual_ND, actual_ND), cosine_similarity(expected_ND, expected_ND), strict=True)
    ):
        others = np.arange(len(left)) != row
        ours, theirs = (np.sign((each[others][:, None] - each[others]).round(5)) for each in (left, right))
        agree += int((ours * theirs >= 0).sum())  # What rounding explains is no order.
        total += ours.size
    return agree / max(total, 1)
