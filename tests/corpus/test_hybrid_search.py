"""Search by vectors and words together."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bellm import Encoder
from bellm.cli import app
from bellm.corpus import index, search_corpus
from bellm.corpus.index import Index, build_index
from bellm.errors import BellmError

from .test_index import embed, texts_to

NOTES = [
    "The heron stands in the shallow river and waits for fish.",
    "Bread rises twice: once in the bowl, once in the tin.",
    "A river in flood carries trees to the sea.",
    "Trains to the coast leave every hour from platform two.",
    "Лошадь стоит в поле.",
    "Fish soup: onions, saffron, two kinds of fish.",
]


@pytest.fixture
def place(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path) -> Path:
    texts_to(tmp_path / "in" / "a.txt", NOTES)
    embed(tiny_encoder, tiny_folder, tmp_path, keep_text=True)
    return tmp_path


def fused(found: Index, encoder: Encoder, query: str) -> list[tuple[int, float]]:
    """The formula, over both whole rankings."""
    vectors = [hit.row for hit in found.search(encoder.encode_query([query])[0], 100)]
    words = [hit.row for hit in found.search_words(query, 100)]
    scores = {
        row: sum(1 / (61 + ranking.index(row)) for ranking in (vectors, words) if row in ranking) for row in vectors
    }
    return sorted(scores.items(), key=lambda pair: -pair[1])


def test_scores_are_the_fused_ranks(place: Path, tiny_encoder: Encoder) -> None:
    assert build_index(place / "out").has_words
    found = Index.open(place / "out", tiny_encoder)
    for query in ("heron river", "fish", "trains", "bread", "лошадь"):
        hits = found.search_both(tiny_encoder.encode_query([query])[0], query)
        wanted = fused(found, tiny_encoder, query)
        assert {hit.row: hit.score for hit in hits} == pytest.approx(dict(wanted))
        assert [hit.score for hit in hits] == sorted((score for _, score in wanted), reverse=True)
        assert all(hit.text == NOTES[hit.row - 1] for hit in hits)
    assert [hit.row for hit in found.search_words("rivers")] == [3, 1]  # Stems; the shorter text first.
    assert [hit.row for hit in found.search_words("лошадь")] == [5]
    [bread] = (hit for hit in found.search_both(tiny_encoder.encode(["bread"])[0], "bread") if hit.row == 2)
    assert bread.word_rank == 1
    assert bread.vector_rank is not None


@pytest.mark.parametrize(
    "query",
    ["?!", "the", "zebra", '"heron', "heron AND (river", "field:heron^2 -river~", "river " * 10_000, "😀", "\0"],
)
def test_any_query_is_answered(place: Path, tiny_encoder: Encoder, query: str) -> None:
    build_index(place / "out")
    found = Index.open(place / "out")
    hits = found.search_both(tiny_encoder.encode_query([query[:50]])[0], query, 3)
    assert len(hits) == 3
    assert all(np.isfinite(hit.score) for hit in hits)


@pytest.mark.filterwarnings("ignore:There are no rows")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_small_corpora(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path, number: int) -> None:
    texts_to(tmp_path / "in" / "a.txt", NOTES[:number])
    embed(tiny_encoder, tiny_folder, tmp_path, keep_text=True)
    record = build_index(tmp_path / "out")
    assert record.has_words == (number > 0)
    if number:
        assert len(Index.open(tmp_path / "out").search_both(tiny_encoder.encode(["fish"])[0], "fish")) == number


def test_a_grown_corpus_adds_its_words_and_a_second_run_nothing(
    place: Path, tiny_encoder: Encoder, tiny_folder: Path
) -> None:
    first = build_index(place / "out")
    assert build_index(place / "out") == first
    texts_to(place / "in" / "b.txt", ["An owl hunts mice at night."])
    embed(tiny_encoder, tiny_folder, place, keep_text=True)
    build_index(place / "out")
    [hit] = Index.open(place / "out").search_words("owls")
    assert (hit.file, hit.row) == (str(place / "in" / "b.txt"), 1)


def test_conditions(place: Path, tiny_encoder: Encoder) -> None:
    build_index(place / "out")
    found, query = Index.open(place / "out"), tiny_encoder.encode(["fish"])[0]
    assert {hit.row for hit in found.search_both(query, "fish", where="row > 4")} == {5, 6}
    assert {hit.row for hit in found.search(query, where="text LIKE '%river%'")} == {1, 3}
    assert found.search(query, where="row > 100") == []
    for where in ("no_such_column = 1", "row >", "DROP TABLE vectors"):
        with pytest.raises(BellmError, match="is no condition on id, file, row or text in SQL"):
            found.search(query, where=where)


def test_without_texts_there_are_no_words(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path) -> None:
    texts_to(tmp_path / "in" / "a.txt", NOTES)
    embed(tiny_encoder, tiny_folder, tmp_path)
    assert not build_index(tmp_path / "out").has_words
    with pytest.raises(BellmError, match="bellm embed --keep-text"):
        search_corpus("fish", tmp_path / "out", hybrid=True)


def test_an_approximate_index_and_one_by_signs_go_with_words(
    place: Path, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = tiny_encoder.encode(["fish"])[0]
    build_index(place / "out", binary=True)
    assert Index.open(place / "out").search_both(query, "bread", 1)[0].word_rank == 1
    monkeypatch.setattr(index, "EXACT_ROWS", 3)
    assert build_index(place / "out").has_words
    assert build_index(place / "out", approximate=False).has_words  # Only the index of vectors goes.
    assert Index.open(place / "out").search_words("bread")


def test_the_command(place: Path) -> None:
    build_index(place / "out")
    command = ["search", "herons", "--in", str(place / "out"), "--hybrid", "--top", "2", "--where", "row < 4"]
    hits = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["hits"]
    assert hits[0]["row"] == 1
    assert hits[0]["word_rank"] == 1
    assert "word_rank" not in hits[1]
    assert NOTES[0][:20] in " ".join(CliRunner().invoke(app, command).stdout.split())
    for option in (["--hybrid"], ["--where", "row < 4"], ["--best"]):
        refused = CliRunner().invoke(app, ["search", "herons", "--in", str(place / "in" / "a.txt"), *option])
        assert refused.exit_code == 2
        assert f"{option[0]} is for a corpus with an index" in " ".join(refused.stderr.split())
