"""Retrieval data sets in the format of BEIR (Thakur et al. 2021, arXiv 2104.08663).

A folder holds `corpus.jsonl` (_id, title, text), `queries.jsonl` (_id, text) and `qrels/test.tsv`: judgements, one a
line, with a header `query-id corpus-id score`, or in TREC's form of four columns without one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bellm.data import sources
from bellm.data.sources import DataSource, TextLine
from bellm.errors import SourceError
from bellm.io.rows import RowFile

RETRIEVAL_SOURCES = {
    "SciFact": DataSource(
        "SciFact",
        "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/scifact.zip",
        "mteb/scifact",
        "d56462d0e63a25450459c4f213e49ffdb866f7f9",
    )
}
"""By the name of the collection; the copy on the Hub as mteb 2.26 pins it."""

_HEADER = ["query-id", "corpus-id", "score"]
_FIELDS = ("_id", "title", "text")

Relevant = Mapping[str, Mapping[str, int]]
"""For each query the documents that were judged; 0 is not relevant, more is better."""


@dataclass(frozen=True)
class RetrievalData:
    """Documents, the queries that were judged on them, and the judgements."""

    name: str
    document_ids: tuple[str, ...]
    documents: tuple[str, ...]
    """Title and text with a space between them, as BEIR's dense models read them."""
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    relevant: Relevant
    """It may name documents that are not in the collection; nothing can find these."""


def read_retrieval(name: str, folder: Path | None = None) -> RetrievalData:
    """Read a collection by name, `SciFact` (Wadden et al. 2020, arXiv 2004.14974), from a folder or from the Hub.

    The folder holds `scifact/` in BEIR's format, or corpus and queries apart in `scifact/derived/` and `scifact/beir/`.

    Raises:
        BellmError: There is no collection of that name, it is absent, or a line cannot be read.
    """
    source = sources.find_source(name, RETRIEVAL_SOURCES, "collection")
    path = sources.data_folder(folder, source)
    if path is None:
        return _from_hub(source)
    corpus = f"{name.lower()}/derived/corpus.jsonl"
    if (path / corpus).is_file():
        return _from_folder(path, corpus, f"{name.lower()}/beir", source)
    return _from_folder(path, f"{name.lower()}/corpus.jsonl", name.lower(), source)


def read_beir_folder(folder: Path) -> RetrievalData:
    """Read any folder in BEIR's format; its test judgements.

    Raises:
        SourceError: A file is missing, or a line cannot be read.
    """
    source = DataSource(folder.resolve().name, "https://github.com/beir-cellar/beir")
    return _from_folder(folder, "corpus.jsonl", "", source)


def _from_folder(folder: Path, corpus: str, beir: str, source: DataSource) -> RetrievalData:
    file = sources.require_file(folder, str(Path(beir, "qrels", "test.tsv")), source)
    documents = _texts(_records(sources.require_file(folder, corpus, source)))
    queries = _texts(_records(sources.require_file(folder, str(Path(beir, "queries.jsonl")), source)))
    return _collection(source, documents, queries, _judgements(sources.read_lines(file)))


def _from_hub(source: DataSource) -> RetrievalData:
    documents = sources.fetch_from_hub(source, config="corpus", split="corpus")
    queries = sources.fetch_from_hub(source, config="queries", split="queries")
    judgements = sources.fetch_from_hub(source, config="default", split="test")
    rows = ((row["query-id"], row["corpus-id"], int(row["score"])) for row in judgements)
    return _collection(
        source, _texts((source.hub, row) for row in documents), _texts((source.hub, row) for row in queries), rows
    )


def _collection(
    source: DataSource, documents: dict[str, str], queries: dict[str, str], judgements: Iterable[tuple[str, str, int]]
) -> RetrievalData:
    relevant: dict[str, dict[str, int]] = {}
    for query, document, grade in judgements:
        relevant.setdefault(query, {})[document] = grade
    if not relevant:
        raise SourceError(f"{source.name} holds no judgements.")
    if lost := [query for query in relevant if query not in queries]:
        raise SourceError(f"{source.name}: query {lost[0]} is judged, and is not among the {len(queries)} queries.")
    judged = [query for query in queries if query in relevant]
    return RetrievalData(
        source.name,
        tuple(documents),
        tuple(documents.values()),
        tuple(judged),
        tuple(queries[query] for query in judged),
        relevant,
    )


def _texts(records: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Texts by id."""
    found: dict[str, str] = {}
    for location, record in records:
        id, title, text = (record.get(field) for field in _FIELDS)
        if id is None or not isinstance(text, str):
            raise SourceError(f"{location}: {str(record)[:60]} has no _id or no text.")
        if str(id) in found:
            raise SourceError(f"{location}: the id {id} is there twice.")
        found[str(id)] = f"{title or ''} {text}".strip()
    return found


def _records(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in RowFile(str(file)).rows(lambda names: [name for name in names if name in _FIELDS], strict=True):
        if not isinstance(row.cells, dict):
            raise SourceError(f"{file}, {row.location}: {json.dumps(row.cells)[:40]!r} is no object with _id and text.")
        yield f"{file}, {row.location}", row.cells


def _judgements(found: Iterable[TextLine]) -> Iterator[tuple[str, str, int]]:
    """Query, document and grade of each line."""
    has_header = False
    for line in found:
        if line.text.split() == _HEADER:
            has_header = True
            continue
        cells = line.text.split("\t") if has_header else line.text.split()
        try:
            query, document, grade = cells if has_header else (cells[0], *cells[2:])
            yield query, document, int(grade)
        except (IndexError, ValueError) as error:
            form = f"a header {' '.join(_HEADER)} and such lines, or lines of TREC's query, 0, document and grade"
            raise SourceError(f"{line.location}: {line.text!r} is no judgement ({form}).") from error
