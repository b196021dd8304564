import json
from pathlib import Path
from typing import Any

import pytest

from bellm.data import retrieval
from bellm.data.retrieval import read_beir_folder, read_retrieval
from bellm.data.sources import DataSource
from bellm.errors import BellmError, SourceError

DOCUMENTS = [
    {"_id": "d1", "title": "Herons", "text": "They wait for fish.", "metadata": {}},
    {"_id": "d2", "title": "", "text": "Bread rises."},
    {"_id": 3, "text": "Trains are late. "},
]
QUERIES = [{"_id": "q1", "text": "birds"}, {"_id": "q2", "text": "never judged"}, {"_id": "q 3", "text": "railway"}]
JUDGED = "query-id\tcorpus-id\tscore\nq 3\t3\t2\nq 3\td2\t0\nq1\td1\t1\n"


def write(folder: Path, corpus: str = "corpus.jsonl", beir: str = "", judged: str = JUDGED) -> Path:
    for name, records in ((corpus, DOCUMENTS), (f"{beir}/queries.jsonl", QUERIES)):
        file = folder / name.strip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (folder / beir / "qrels").mkdir(exist_ok=True)
    (folder / beir / "qrels" / "test.tsv").write_text(judged, encoding="utf-8")
    return folder


def test_a_folder_of_beir_is_read(tmp_path: Path) -> None:
    found = read_beir_folder(write(tmp_path / "birds"))
    assert found.name == "birds"
    assert found.document_ids == ("d1", "d2", "3")
    assert found.documents == ("Herons They wait for fish.", "Bread rises.", "Trains are late.")
    assert (found.query_ids, found.queries) == (("q1", "q 3"), ("birds", "railway"))
    assert found.relevant == {"q1": {"d1": 1}, "q 3": {"3": 2, "d2": 0}}


def test_judgements_in_the_form_of_trec(tmp_path: Path) -> None:
    found = read_beir_folder(write(tmp_path, judged="q1\t 0 d1\t1\nq2 Q0 d2 0"))
    assert found.relevant == {"q1": {"d1": 1}, "q2": {"d2": 0}}


@pytest.mark.parametrize("beir", [("corpus.jsonl", ""), ("derived/corpus.jsonl", "beir")])
def test_scifact_lies_in_either_way(beir: tuple[str, str], tmp_path: Path) -> None:
    write(tmp_path / "scifact", *beir)
    found = read_retrieval("SciFact", tmp_path)
    assert (found.name, found.query_ids, len(found.documents)) == ("SciFact", ("q1", "q 3"), 3)


def test_the_published_scifact(data: Path) -> None:
    found = read_retrieval("SciFact", data)
    assert len(found.documents) == len(set(found.document_ids)) == 5183
    assert len(found.queries) == len(set(found.query_ids)) == len(found.relevant) == 300
    assert sum(len(judged) for judged in found.relevant.values()) == 339
    assert {document for judged in found.relevant.values() for document in judged} <= set(found.document_ids)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("q1\td1", "line 2: 'q1.td1' is no judgement"),
        ("q1\td1\tyes", "line 2: .* is no judgement"),
        ("q1\t0\td1\t1", "line 2: .* is no judgement"),
        ("", "line 2: '' is no judgement"),
    ],
)
def test_a_bad_judgement_is_named(line: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"test\.tsv, {problem}"):
        read_beir_folder(write(tmp_path, judged=f"query-id\tcorpus-id\tscore\n{line}\n"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 4: not JSON"),
        ('"text"', "line 4: '\"text\"' is no object with _id and text"),
        ('{"_id": "d4"}', "line 4: .* has no _id or no text"),
        ('{"_id": "d4", "text": null}', "line 4: .* has no _id or no text"),
        ('{"text": "a"}', "line 4: .* has no _id or no text"),
        ('{"_id": 3, "text": "a"}', "line 4: the id 3 is there twice"),
    ],
)
def test_a_bad_document_is_named(line: str, problem: str, tmp_path: Path) -> None:
    corpus = write(tmp_path) / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + line + "\n")
    with pytest.raises(SourceError, match=rf"corpus\.jsonl, {problem}"):
        read_beir_folder(tmp_path)


def test_what_cannot_be_a_collection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no judgements"):
        read_beir_folder(write(tmp_path, judged="query-id\tcorpus-id\tscore\n"))
    with pytest.raises(SourceError, match="query q9 is judged, and is not among the 3 queries"):
        read_beir_folder(write(tmp_path, judged="q9 0 d1 1\n"))
    with pytest.raises(SourceError, match=r"SciFact is not in .*scifact/qrels/test\.tsv.*mteb/scifact"):
        read_retrieval("SciFact", tmp_path)
    with pytest.raises(BellmError, match="There is no collection 'NFCorpus'"):
        read_retrieval("NFCorpus", tmp_path)


def test_a_copy_on_the_hub_is_read_by_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("BELLM_DATA", raising=False)
    folder = tmp_path / "repository"
    folder.mkdir()
    lines: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"_id": "d1", "title": "Herons", "text": "They wait."}],
        "queries": [{"_id": "q1", "text": "birds"}],
        "test": [{"query-id": "q1", "corpus-id": "d1", "score": 1.0}],
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {split}.jsonl\n"
        for config, split in (("corpus", "corpus"), ("queries", "queries"), ("default", "test"))
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setitem(
        retrieval.RETRIEVAL_SOURCES, "SciFact", DataSource("SciFact", "https://example.org", str(folder))
    )
    found = read_retrieval("SciFact")
    assert (found.documents, found.queries, found.relevant) == (("Herons They wait.",), ("birds",), {"q1": {"d1": 1}})
