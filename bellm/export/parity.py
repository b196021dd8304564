"""Parity of an export: its vectors in its own runtime, in a process without bellm, against the encoder's.

Shapes: N texts, D width.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bellm.backbone.source_names import EXPORT_FILE
from bellm.doctor import Check, Diagnosis, Status
from bellm.errors import BellmError, MissingExtraError, SourceError
from bellm.export import runtimes
from bellm.export.export_formats import EXPORT_FORMATS, FormatName
from bellm.export.export_reference import pairs_at_hand, read_reference, score_pairs
from bellm.export.transformer_folder import check_remote_code
from bellm.io.atomic import write_json
from bellm.saved_encoder import read_object
from bellm.tensors.similarity import cosine_similarity, paired_cosine_similarity, relative_distance
from bellm.types import Vectors

PARITY_FILE = "parity.json"

_IN_ORDER = 0.95
"""Share of neighbors in the encoder's order below which the doctor warns."""


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
    speed_ratio: float
    """The encoder's CPU seconds for the same texts, over these."""
    sts: float | None
    """Spearman x100 on some pairs of STS-Benchmark's dev part; None where they were not at hand."""
    encoder_sts: float | None
    """The same of the encoder."""

    @property
    def holds(self) -> bool:
        """Whether the vectors are the encoder's."""
        return self.max_difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """All fields, as parity.json has them."""
        return asdict(self)

    def __str__(self) -> str:
        scores = "" if self.sts is None else f"; STS {self.sts}, the encoder {self.encoder_sts}"
        return (
            f"the same vectors in {self.runtime}: largest distance {self.max_difference:.2g}, allowed "
            f"{self.tolerance:g}; least cosine {self.min_cosine:.6f}, "
            f"{100 * self.rank_agreement:.1f} % of neighbors in order{scores}."
        )


def check_runtime(name: FormatName, python: str | None) -> None:
    """Raise a MissingExtraError where the proof of a format needs another environment, and none is named."""
    package = EXPORT_FORMATS[name].proved_in
    if package and python is None and find_spec(package) is None:
        raise MissingExtraError(
            f"The format {name} is proved in {package}, which is not installed here: name the Python of an environment "
            "that has it (python=..., --python)."
        )


def run_export(folder: Path, python: str | None = None) -> Parity:
    """Embed the parity texts of an exported folder in its runtime, in a process without bellm, and compare.

    Args:
        folder: Of an export.
        python: Interpreter of the environment that has the runtime; None for the one that runs.

    Raises:
        BellmError: The folder lacks a file, brings code that bellm has not written, or the runtime cannot run it.
    """
    manifest = read_export(folder)
    if manifest.get("remote_code"):
        check_remote_code(folder)
    expected, job = read_reference(folder)
    pairs = pairs_at_hand() if job["sts"] is not None else None
    with tempfile.TemporaryDirectory() as work:
        texts = {**job["texts"], **({"sts": [*pairs.left, *pairs.right]} if pairs else {})}
        write_json(Path(work, "job.json"), {**job, "texts": texts})
        command = [
            python or sys.executable,
            "-I",
            "-W",
            "ignore",
            runtimes.__file__,
            str(folder.resolve()),
            work,
            manifest["format"],
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": work, "TQDM_DISABLE": "1"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        except OSError as error:
            raise BellmError(f"{command[0]} is no interpreter of Python: {error.strerror}.") from error
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise BellmError(f"{manifest['format']} cannot be run in a process of its own: {said}")
        costs = json.loads(Path(work, "costs.json").read_text(encoding="utf-8"))
        with np.load(Path(work, "vectors.npz")) as found:
            actual = {name: found[name] for name in found.files}
    score = score_pairs(pairs, actual["sts"]) if pairs else None
    return measure_parity(manifest, job, {**costs, "sts": score}, actual, expected)


def diagnose_export(folder: Path, python: str | None = None) -> Diagnosis:
    """Run an exported folder in its runtime again, and compare its vectors with those of the day of the export.

    Args:
        folder: Of an export.
        python: Interpreter of the environment that has the runtime; None for the one that runs.

    Raises:
        BellmError: The folder is no export, or its runtime is not installed.
    """
    check_runtime(read_export(folder)["format"], python)
    name, advice = "vectors are the encoder's", "A file is not the one that was written. Export again."
    try:
        parity = run_export(folder, python)
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
        runtime=costs["runtime"],
        max_difference=relative_distance(actual_ND, expected_ND),
        min_cosine=float(cosines_N.min()),
        mean_cosine=float(cosines_N.mean()),
        worst_text=texts[int(np.argmax(np.linalg.norm(actual_ND - expected_ND, axis=1) / lengths_N))],
        rank_agreement=_rank_agreement(actual_ND, expected_ND),
        tolerance=manifest["tolerance"],
        num_texts=len(expected_ND),
        cpu_seconds=round(costs["seconds"], 3),
        speed_ratio=round(job["seconds"] / max(costs["seconds"], 1e-6), 2),
        sts=costs["sts"],
        encoder_sts=job["sts"],
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
