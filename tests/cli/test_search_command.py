import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bellm import Encoder
from bellm.cli import app
from bellm.corpus import build_index, search_corpus
from bellm.corpus.index import Index
from bellm.errors import BellmError
from bellm.tensors.similarity import cosine_similarity

TEXTS = ["A heron stands in the shallow water.", "Snow fell all night.", "The invoice was paid twice."]


def bellm(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def corpus(tiny_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    choices = ("--prompt=instruct", "--pooling=mean", "--input-type=document", "--keep-text")
    assert bellm("embed", tiny_folder, tmp_path / "a.txt", "-o", tmp_path / "out", *choices).exit_code == 0
    return tmp_path / "out"


def test_search_of_a_corpus_uses_its_encoder(corpus: Path, tiny_encoder: Encoder, tiny_folder: Path) -> None:
    assert bellm("index", corpus).stdout == f"{corpus}: 3 rows can be searched, exact\n"
    result = bellm("search", "white street", "--in", corpus, "--top=2", "--json")
    found = json.loads(result.stdout)
    other = tiny_encoder.replace(prompt="instruct", pooling="mean")
    scores = cosine_similarity(other.encode_query(["white street"]), other.encode_document(TEXTS))[0]
    assert [hit["row"] - 1 for hit in found["hits"]] == np.argsort(-scores)[:2].tolist()
    np.testing.assert_allclose([hit["score"] for hit in found["hits"]], np.sort(scores)[::-1][:2], rtol=1e-5)
    assert [hit["text"] for hit in found["hits"]] == [TEXTS[hit["row"] - 1] for hit in found["hits"]]
    assert found["exact"] is True
    assert found["encoder"].items() >= {"source": str(tiny_folder), "prompt": "instruct", "pooling": "mean"}.items()


def test_search_of_an_approximate_index_says_so(corpus: Path) -> None:
    words = bellm("index", corpus, "--approximate").stdout
    assert words == f"{corpus}: 3 rows can be searched, approximate; bellm search --exact compares every row\n"
    assert json.loads(bellm("index", corpus, "--approximate", "--json").stdout)["exact"] is False
    result = bellm("search", "white street", "--in", corpus)
    assert result.stdout.endswith("Approximate: a part of the rows was compared; --exact compares all.\n")
    assert all(word in result.stdout for word in ("heron", "Snow", "invoice"))
    assert "Approximate" not in bellm("search", "white street", "--in", corpus, "--exact").stdout
    assert json.loads(bellm("search", "x", "--in", corpus, "--json").stdout)["exact"] is False


def test_a_corpus_without_texts_shows_none_and_says_how_to_keep_them(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    assert bellm("embed", tiny_folder, tmp_path / "a.txt", "-o", tmp_path / "out").exit_code == 0
    bellm("index", tmp_path / "out")
    words = bellm("search", "white street", "--in", tmp_path / "out").stdout
    assert words.split("\n")[1].split() == ["rank", "score", "id"]
    assert words.endswith("This corpus has no texts to show: bellm embed --keep-text keeps them.\n")


@pytest.mark.parametrize("exact", [True, False])
def test_exact_search_is_handed_on(corpus: Path, monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    bellm("index", corpus, "--approximate")
    asked: list[bool] = []
    monkeypatch.setattr(Index, "search", lambda *_, exact, where: asked.append(exact) or [])
    assert bellm("search", "x", "--in", corpus, *["--exact"] * exact).exit_code == 0
    assert asked == [exact]


def test_the_model_may_have_moved(corpus: Path, tiny_folder: Path, tmp_path: Path) -> None:
    bellm("index", corpus)
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_folder)
    found = json.loads(bellm("search", moved, "x", "--in", corpus, "--device=cpu", "--json").stdout)
    assert found["encoder"]["source"] == str(moved)
    assert len(found["hits"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=raw"], "prompt (--prompt) was chosen when"),
        (["--max-tokens=50", "--device=cpu"], "max_tokens (--max-tokens) was chosen when"),
        (["--dtype=float32"], "dtype (--dtype) was chosen when"),
        (["--device=nowhere"], "nowhere"),
        ([], "has no index yet: bellm index "),
    ],
)
def test_search_that_is_refused(corpus: Path, arguments: list[str], message: str) -> None:
    if arguments:
        bellm("index", corpus)
    result = bellm("search", "x", "--in", corpus, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("bellm: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_function_takes_what_the_command_takes(corpus: Path) -> None:
    build_index(corpus)
    for wrong in ({"dtype": "float32"}, {"max_tokens": 50}):
        with pytest.raises(BellmError, match=rf"^{next(iter(wrong))} \(--.*\) was chosen when .* was embedded"):
            search_corpus("x", corpus, **wrong)
    assert len(search_corpus("x", corpus, device="cpu").hits) == 3


def test_a_model_that_is_not_there_is_named(corpus: Path) -> None:
    bellm("index", corpus)
    assert "none/there" in bellm("search", "none/there", "x", "--in", corpus).stderr


@pytest.mark.parametrize("query", ["", " \n", "\u200b\u200d", "\ufeff \u2060"])
def test_an_empty_query_is_refused(corpus: Path, query: str) -> None:
    build_index(corpus)
    for place in (corpus, corpus.parent / "a.txt"):
        result = bellm("search", query, "--in", place)
        assert (result.exit_code, result.stderr) == (1, "bellm: The query is empty: say what to look for.\n")
    with pytest.raises(BellmError, match="The query is empty"):
        search_corpus(query, corpus)


def test_a_pattern_is_no_single_file(corpus: Path) -> None:
    result = bellm("search", "snow", "--in", corpus.parent / "*.txt")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "patterns are not taken here: give one file" in result.stderr


def test_what_is_no_corpus(tmp_path: Path) -> None:
    for arguments in (("index", tmp_path), ("search", "x", "--in", tmp_path)):
        result = bellm(*arguments)
        assert result.exit_code == 1
        assert "it is no corpus, or not complete" in result.stderr
    assert list(tmp_path.iterdir()) == []
