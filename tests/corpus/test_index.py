import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm import Encoder
from bellm.corpus import corpus_config, index, manifest, shards
from bellm.corpus.corpus_config import CorpusConfig
from bellm.corpus.index import Index, build_index
from bellm.corpus.job import embed_corpus, lock_corpus
from bellm.corpus.row_ranges import SHARD_FOLDER, Precision, split_rows
from bellm.engine.embedding import EncodeResult
from bellm.errors import BellmError, BellmWarning, CorpusWarning, SourceError
from bellm.io.rows import TextRow
from bellm.types import Vectors
from tests.processes import run

TEXTS = [
    f"{number} {kind} stand in {place}."
    for number in range(40)
    for kind, place in (("herons", "water"), ("trains", "snow"))
]


@pytest.fixture
def corpus(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path) -> Path:
    """Eighty texts in eight shards, and a second file that a test may write."""
    texts_to(tmp_path / "in" / "a.txt", TEXTS)
    embed(tiny_encoder, tiny_folder, tmp_path)
    return tmp_path / "out"


def texts_to(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def embed(encoder: Encoder, source: Path, place: Path, **options: Any) -> None:
    embed_corpus(encoder, [str(place / "in")], place / "out", source=str(source), shard_rows=10, **options)


def planted(out: Path, encoder: Encoder, vectors: Vectors) -> None:
    """A corpus of these vectors, as if the encoder had given them."""
    config = CorpusConfig.of(encoder)
    (out / SHARD_FOLDER).mkdir(parents=True)
    digest = corpus_config.check_corpus_config(out, config, encoder)
    rows = (TextRow(number, f"r{number}", str(number)) for number in range(1, len(vectors) + 1))
    written = [
        shards.write_shard(
            out / SHARD_FOLDER,
            row_range,
            EncodeResult(vectors[row_range.first - 1 : row_range.stop - 1], 0, 0),
            precision="float32",
            keep_text=False,
            config_digest=digest,
        )
        for row_range in split_rows("planted", rows, 1000)
    ]
    known = {"source": "planted", **encoder.describe()} | {"embedding_dim": vectors.shape[1]}
    manifest.write_manifest(out, known, vars(config), digest, written)


def vectors_in(out: Path) -> Vectors:
    paths = manifest.shard_paths(out, manifest.read_manifest(out))
    return np.concatenate([shards.shard_vectors(shards.read_shard(path)) for path in paths])


def brute_force(vectors: Vectors, query: Vectors) -> Vectors:
    found: Vectors = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    return found


@pytest.mark.parametrize("form", ["float32", "float16", "int8"])
def test_exact_search_is_brute_force(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path, form: Precision) -> None:
    texts_to(tmp_path / "in" / "a.txt", TEXTS)
    embed(tiny_encoder, tiny_folder, tmp_path, precision=form, keep_text=True)
    record = build_index(tmp_path / "out")
    assert (record.rows, record.is_approximate) == (80, False)
    query = 1e-9 * tiny_encoder.encode_query(["seven trains in the snow"])[0]
    expected = brute_force(vectors_in(tmp_path / "out"), query)
    hits = Index.open(tmp_path / "out").search(query, 7)
    assert [hit.row - 1 for hit in hits] == np.argsort(-expected)[:7].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:7], atol=1e-6)
    assert [hit.text for hit in hits] == [TEXTS[hit.row - 1] for hit in hits]
    assert hits[0].id == f"{hits[0].file}:{hits[0].row}"
    assert hits[0].file == str(tmp_path / "in" / "a.txt")


def test_without_texts_hits_have_none(corpus: Path, tiny_encoder: Encoder) -> None:
    build_index(corpus)
    hits = Index.open(corpus).search(tiny_encoder.encode(["x"])[0], 100)
    assert sorted(hit.row for hit in hits) == list(range(1, 81))
    assert {hit.text for hit in hits} == {None}


def test_approximate_search_finds_what_exact_search_finds(
    tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 48), dtype=np.float32)
    vectors = centres[rng.integers(0, 50, 20_000)] + 0.5 * rng.standard_normal((20_000, 48), dtype=np.float32)
    planted(tmp_path / "out", tiny_encoder, vectors)
    assert build_index(tmp_path / "out", approximate=True).is_approximate
    queries = vectors[:20] + 0.3 * rng.standard_normal((20, 48), dtype=np.float32)
    searched = Index.open(tmp_path / "out")

    def shared(queries: Vectors, exact: bool) -> int:
        nearest = [set((-brute_force(vectors, query)).argsort()[:10] + 1) for query in queries]
        found = [{hit.row for hit in searched.search(query, exact=exact)} for query in queries]
        return sum(len(rows & those) for rows, those in zip(found, nearest, strict=True))

    assert shared(queries, exact=False) >= 0.95 * 200
    # A direction far from every centre has its nearest vectors in many cells, of which one is looked into.
    astray = rng.standard_normal((20, 48), dtype=np.float32)
    monkeypatch.setattr(index, "_PROBES", 1)
    assert shared(astray, exact=True) == 200
    assert shared(astray, exact=False) < 180


def test_a_search_by_signs_finds_what_exact_search_finds(
    tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 90), dtype=np.float32)
    planted(tmp_path / "out", tiny_encoder, vectors)
    record = build_index(tmp_path / "out", binary=True)
    assert (record.rows, record.is_approximate, record.is_binary, record.is_exact) == (2000, False, True, False)
    searched = Index.open(tmp_path / "out")
    queries = vectors[:20] + 0.7 * rng.standard_normal((20, 90), dtype=np.float32)
    turned = index._rotation(90)
    np.testing.assert_allclose(turned @ turned.T, np.eye(90), atol=1e-5)
    monkeypatch.setattr(index, "_RESCORED", 16)
    shared = 0
    for query in queries:
        scores = brute_force(vectors, query)
        signs = ((vectors @ turned > 0) == (query @ turned > 0)).sum(axis=1)
        candidates = np.argsort(-signs, kind="stable")
        hits = searched.search(query, 5)
        least = signs[candidates[16 * 5 - 1]]
        assert all(signs[hit.row - 1] >= least for hit in hits)
        assert hits[-1].score >= np.sort(scores[signs > least])[-5] - 1e-6
        np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.row - 1] for hit in hits], atol=1e-6)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        exact = searched.search(query, 5, exact=True)
        assert [hit.row - 1 for hit in exact] == np.argsort(-scores)[:5].tolist()
        shared += len({hit.row for hit in hits} & {hit.row for hit in exact})
    assert 60 <= shared < 100
    assert build_index(tmp_path / "out").is_exact
    assert "code" not in Index.open(tmp_path / "out")._table.schema.names
    with pytest.raises(BellmError, match="approximate=True does not go with binary=True"):
        build_index(tmp_path / "out", approximate=True, binary=True)


def test_a_corpus_by_signs_grows(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path) -> None:
    texts_to(tmp_path / "in" / "a.txt", TEXTS)
    embed(tiny_encoder, tiny_folder, tmp_path, precision="int8", keep_text=True)
    build_index(tmp_path / "out", binary=True)
    texts_to(tmp_path / "in" / "b.txt", ["A heron sleeps at noon."])
    embed(tiny_encoder, tiny_folder, tmp_path, precision="int8", keep_text=True)
    assert build_index(tmp_path / "out", binary=True).rows == 81
    [hit] = Index.open(tmp_path / "out").search(tiny_encoder.encode("A heron sleeps at noon."), 1)
    assert hit.text == "A heron sleeps at noon."


def test_approximate_from_a_number_of_rows_on(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "EXACT_ROWS", 79)
    assert build_index(corpus).is_approximate
    assert _index_names(corpus)
    assert not build_index(corpus, approximate=False).is_approximate
    assert not _index_names(corpus)


def _index_names(corpus: Path) -> list[str]:
    return [found.name for found in Index.open(corpus)._table.list_indices()]


@pytest.mark.parametrize("approximate", [True, False])
def test_a_grown_corpus_adds_what_is_new(
    corpus: Path, tiny_encoder: Encoder, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, approximate: bool
) -> None:
    build_index(corpus, approximate=approximate)
    texts_to(corpus.parent / "in" / "b.txt", ["An invoice was paid twice."])
    embed(tiny_encoder, tiny_folder, corpus.parent)
    query = tiny_encoder.encode_query(["An invoice was paid twice."])[0]
    with pytest.warns(CorpusWarning, match=r"has changed since it was indexed.*Run: bellm index"):
        before = Index.open(corpus).search(query, 100)
    assert len(before) == 80
    read = []
    monkeypatch.setattr(shards, "read_shard", lambda path, real=shards.read_shard: read.append(path.name) or real(path))
    assert build_index(corpus, approximate=approximate).rows == 81
    assert len(read) == 1
    if approximate:
        assert Index.open(corpus)._table.index_stats("vector_idx").num_unindexed_rows == 0
    best = Index.open(corpus).search(query)[0]
    assert best.file.endswith("b.txt")
    assert best.score == pytest.approx(1, abs=1e-5)
    assert len(Index.open(corpus).search(query, 100)) == 81


def test_rows_that_were_embedded_anew_take_the_place_of_the_old(
    corpus: Path, tiny_encoder: Encoder, tiny_folder: Path
) -> None:
    build_index(corpus)
    texts_to(corpus.parent / "in" / "a.txt", [*TEXTS[:25], "Something else.", *TEXTS[26:]])
    name = manifest.read_manifest(corpus).shards[2]["name"]
    (corpus / SHARD_FOLDER / name).unlink()
    embed(tiny_encoder, tiny_folder, corpus.parent)
    assert build_index(corpus).rows == 80
    hits = Index.open(corpus).search(tiny_encoder.encode_query(["Something else."])[0], 100)
    assert hits[0].row == 26
    assert sorted(hit.row for hit in hits) == list(range(1, 81))


def test_a_killed_indexer_is_repaired_by_the_same_command(
    corpus: Path, tiny_encoder: Encoder, tiny_folder: Path
) -> None:
    build_index(corpus)
    texts_to(corpus.parent / "in" / "b.txt", TEXTS[::-1])
    embed(tiny_encoder, tiny_folder, corpus.parent)
    # Dies in the middle of the third commit.
    program = (
        "import os, signal, sys\n"
        "from bellm.corpus import index, shards\n"
        "index._SHARDS_AT_ONCE, read, calls = 2, shards.read_shard, []\n"
        "def deadly(path):\n"
        "    calls.append(path)\n"
        "    return read(path) if len(calls) < 6 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "shards.read_shard = deadly\n"
        "index.build_index(sys.argv[1])\n"
    )
    killed = run([sys.executable, "-c", program, corpus])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (corpus / index.FOLDER / "vectors.lance" / "data" / ".tmpGq3kVw").touch()  # As a kill in a longer file leaves it.
    query = tiny_encoder.encode_query([TEXTS[5]])[0]
    with pytest.warns(CorpusWarning, match="searched as it was"):
        assert len(Index.open(corpus).search(query, 200)) == 80
    assert build_index(corpus).rows == 160
    expected = np.sort(brute_force(vectors_in(corpus), query))[::-1]
    found = [hit.score for hit in Index.open(corpus).search(query, 160)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not list(corpus.rglob(".tmp*"))


def test_a_second_run_leaves_the_index_as_it_is(corpus: Path) -> None:
    first = build_index(corpus)
    assert build_index(corpus) == first


def test_a_corpus_without_rows(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path) -> None:
    texts_to(tmp_path / "in" / "a.txt", [])
    with pytest.warns(BellmWarning, match="There are no rows in"):
        embed(tiny_encoder, tiny_folder, tmp_path)
    for approximate in (False, True):
        assert build_index(tmp_path / "out", approximate=approximate).rows == 0
        assert Index.open(tmp_path / "out").search(tiny_encoder.encode(["x"])[0]) == []


def test_what_cannot_be_searched(corpus: Path, tmp_path: Path, tiny_encoder: Encoder) -> None:
    with pytest.raises(SourceError, match=r"out has no index yet: bellm index .*out$"):
        Index.open(corpus)
    with pytest.raises(SourceError, match=r"no manifest\.json"):
        build_index(tmp_path / "in")
    build_index(corpus)
    with pytest.raises(BellmError, match="3 numbers, and the corpus has vectors of 32"):
        Index.open(corpus).search(np.ones(3, np.float32))
    with pytest.raises(BellmError, match=r"vector of the query is not finite\. Load the model with dtype float32"):
        Index.open(corpus).search(np.full(32, np.nan, np.float32))
    (corpus / index.FOLDER / index.RECORD_FILE).write_text("{}")
    with pytest.raises(SourceError, match=r"index\.json cannot be read.*Run: bellm index"):
        Index.open(corpus)
    build_index(corpus)
    shutil.rmtree(corpus / index.FOLDER / "vectors.lance" / "_versions")
    with pytest.raises(SourceError, match=r"index fails: .*Run: bellm index"):
        Index.open(corpus)


def test_a_damaged_shard_is_refused_and_the_index_stays(corpus: Path, tiny_encoder: Encoder, tiny_folder: Path) -> None:
    build_index(corpus)
    texts_to(corpus.parent / "in" / "b.txt", TEXTS)
    embed(tiny_encoder, tiny_folder, corpus.parent)
    path = corpus / SHARD_FOLDER / manifest.read_manifest(corpus).shards[-1]["name"]
    data = bytearray(path.read_bytes())
    data[200:300] = bytes(byte ^ 1 for byte in data[200:300])  # More than the header of a page, whatever ids are.
    path.write_bytes(data)
    with pytest.raises(SourceError, match="is damaged"):
        build_index(corpus)
    with pytest.warns(CorpusWarning):
        assert Index.open(corpus).record.rows == 80


def test_one_at_a_time(corpus: Path) -> None:
    with lock_corpus(corpus), pytest.raises(SourceError, match="Another bellm is at work"):
        build_index(corpus)
