"""Write a finding of the layer search to a folder: one JSON file and one HTML page."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bellm.errors import SourceError
from bellm.io import atomic
from bellm.layer_search.finder import Finding
from bellm.layer_search.layer_page import write_layer_page
from bellm.metadata import package_versions

RESULTS, PAGE, RUNS = "layers.json", "layers.html", "runs"


def check_finding_folder(folder: Path, source: str) -> None:
    """Make the folder of a finding; a finding for the same model may be replaced, that of another is kept.

    Raises:
        SourceError: It is a file, or holds the finding of another model.
    """
    if folder.exists() and not folder.is_dir():
        raise SourceError(f"{folder} is a file. Name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["model"] if path.exists() else source
    except (ValueError, KeyError, TypeError):
        known = "something that bellm cannot read"
    if known != source:
        raise SourceError(f"{path} is about {known}. Choose another folder.")


def write_finding(finding: Finding, folder: Path) -> None:
    """Write a finding as JSON and as a page.

    Raises:
        SourceError: The disk refuses.
    """
    record = finding_to_json(finding)
    atomic.write_bytes(folder / RESULTS, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    write_layer_page(finding, record, folder / PAGE)


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """All of a finding for JSON."""
    curve, profile, search, trained = finding.degradation, finding.profile, finding.search, finding.trained
    parts = {
        "degradation": {**asdict(curve), "rule": curve.rule} if curve else None,
        "profile": asdict(profile) if profile else None,
        "candidates": [asdict(candidate) for candidate in search.candidates] if search else None,
        "trained": asdict(trained) if trained else None,
    }
    return {
        "model": finding.facts["source"],
        "facts": finding.facts,
        "dev": finding.dev,
        "seed": finding.seed,
        "versions": package_versions(),
        "verdict": finding.summary,
        **{name: part for name, part in parts.items() if part},
        "seconds": round(finding.seconds, 1),
    }
