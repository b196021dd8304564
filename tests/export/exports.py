"""Exports of tiny encoders, run by their runtimes in this process: a process of their own takes seconds for each."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bellm import Encoder
from bellm.export import Parity
from bellm.export.export_reference import read_reference
from bellm.export.exporting import write_export
from bellm.export.parity import measure_parity, read_export
from bellm.export.runtimes import run_job


def exported(encoder: Encoder, name: Any, folder: Path) -> dict[str, Any]:
    """Manifest and parity of an export, as `export` writes them."""
    folder.mkdir()
    write_export(encoder, name, folder)
    return {**read_export(folder), **compared(folder).to_json()}


def compared(folder: Path) -> Parity:
    """What `run_export` finds."""
    manifest, (expected, job) = read_export(folder), read_reference(folder)
    work = folder.with_name(f"{folder.name}-work")
    work.mkdir()
    (work / "job.json").write_text(json.dumps(job))
    run_job(str(folder), str(work))
    with np.load(work / "vectors.npz") as found:
        actual = {key: found[key] for key in found.files}
    costs = json.loads((work / "costs.json").read_text())
    return measure_parity(manifest, job, {**costs, "sts": None}, actual, expected)
