"""Write a finding of the layer search to a folder: one JSON file and one HTML page."""

import json
from pathlib import Path
from typing import Any

from bellm.errors import SourceError
from bellm.io import atomic
from bellm.layer_search.finder import Finding
from bellm.layer_search.layer_page import write_layer_page

RESULTS, PAGE = "layers.json", "layers.html"


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


def write_finding(finding: Finding, folder: Path) -> dict[str, Any]:
    """Write a finding as JSON and as a page; returns what the JSON file holds.

    Raises:
        SourceError: The disk refuses.
    """
    record = finding.to_json()
    atomic.write_bytes(folder / RESULTS, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    write_layer_page(finding, record, folder / PAGE)
    return record
