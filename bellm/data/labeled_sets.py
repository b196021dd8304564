"""Labelled pairs and claims that are no task of SentEval: Quora questions, entailment in SICK, claims of SciFact.

Shapes: N rows.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bellm.data import sources
from bellm.data.classification import LabeledTexts, SplitName
from bellm.data.sources import DataSource
from bellm.errors import SourceError

LABELED_SOURCES = {
    source.name: source
    for source in (
        DataSource("QQP", "https://quoradata.quora.com/First-Quora-Dataset-Release-Question-Pairs"),
        DataSource("SICK-E", "http://alt.qcri.org/semeval2014/task1"),
        DataSource("SciFact-claims", "https://github.com/allenai/scifact, in BEIR's format"),
    )
}
"""By the name of the set; none of them is read from the Hub."""

LABEL_NAMES = {
    "QQP": ("different", "duplicate"),
    "SICK-E": ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"),
    "SciFact-claims": ("CONTRADICT", "SUPPORT"),
}

_Labeled = tuple[tuple[str, ...], str]


def read_labeled(name: str, folder: Path | None = None) -> LabeledTexts:
    """Read a set from a folder, with its parts.

    `QQP`: `qqp/dev.tsv` (train) and `qqp/test.tsv` (label, two questions, id). `SICK-E`: `sick/SICK_train.txt` and
    `sick/SICK_test_annotated.txt`. `SciFact-claims`: claims of `scifact/beir/queries.jsonl` that have evidence, in the
    parts of `scifact/beir/qrels`; a claim whose evidence disagrees is left out.

    Raises:
        BellmError: There is no set of that name, it is absent, or a line cannot be read.
    """
    source = sources.find_source(name, LABELED_SOURCES, "labelled set")
    path = sources.data_folder(folder, source)
    assert path is not None, "none of these is on the Hub"
    read = {"QQP": _questions, "SICK-E": _entailment, "SciFact-claims": _claims}[name]
    rows: list[_Labeled] = []
    split: dict[SplitName, range] = {}
    for part in ("train", "test"):
        found = list(read(path, part, source))
        split[part] = range(len(rows), len(rows) + len(found))
        rows += found
    if not rows:
        raise SourceError(f"{name} holds no rows. Get it from {source.address}.")
    names = LABEL_NAMES[name]
    columns = tuple(zip(*(texts for texts, _ in rows), strict=True))
    return LabeledTexts(name, columns, np.array([names.index(label) for _, label in rows]), split, names)


def _questions(folder: Path, part: SplitName, source: DataSource) -> Iterator[_Labeled]:
    file = sources.require_file(folder, f"qqp/{'dev' if part == 'train' else 'test'}.tsv", source)
    for line in sources.read_lines(file, "latin-1"):
        # Copies that are around lost the last byte of some quotation marks: one line in a hundred.
        cells = line.text.encode("latin-1").decode(errors="replace").split("\t")
        if len(cells) != 4 or cells[0] not in ("0", "1"):
            raise SourceError(
                f"{line.location}: {cells[0][:40]!r} is not 0 or 1, before two questions and an id, between tabs."
            )
        yield (cells[1], cells[2]), LABEL_NAMES["QQP"][int(cells[0])]


def _entailment(folder: Path, part: SplitName, source: DataSource) -> Iterator[_Labeled]:
    name = "SICK_train.txt" if part == "train" else "SICK_test_annotated.txt"
    header, *lines = list(sources.read_lines(sources.require_file(folder, f"sick/{name}", source)))
    columns = header.text.split("\t")
    for line in lines:
        row = dict(zip(columns, line.text.split("\t"), strict=False))
        label = row.get("entailment_judgment", "").strip()
        if label not in LABEL_NAMES["SICK-E"]:
            raise SourceError(f"{line.location}: {label!r} is not one of {', '.join(LABEL_NAMES['SICK-E'])}.")
        yield (row["sentence_A"], row["sentence_B"]), label


def _claims(folder: Path, part: SplitName, source: DataSource) -> Iterator[_Labeled]:
    judged = sources.read_lines(sources.require_file(folder, f"scifact/beir/qrels/{part}.tsv", source))
    wanted = {line.text.split()[0] for line in judged if line.text.split()}
    for line in sources.read_lines(sources.require_file(folder, "scifact/beir/queries.jsonl", source)):
        try:
            claim: dict[str, Any] = json.loads(line.text)
            evidence = claim.get("metadata", {}).values()
            labels = {each["label"] for found in evidence for each in found}
            text, key = str(claim["text"]), str(claim["_id"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{line.location}: {line.text[:60]!r} is no claim of SciFact.") from error
        if key in wanted and len(labels) == 1 and labels <= {*LABEL_NAMES["SciFact-claims"]}:
            yield (text,), labels.pop()
