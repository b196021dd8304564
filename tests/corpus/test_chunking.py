"""Documents in chunks."""

import json
import pickle
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from bellm import Encoder
from bellm.cli import app
from bellm.corpus import embed_corpus, search_corpus, shards
from bellm.corpus.chunking import ChunkedFile, Chunking
from bellm.corpus.index import Index, build_index
from bellm.errors import BellmError, BellmWarning, CorpusWarning, SourceError
from bellm.io.documents import Document, read_document
from bellm.io.rows import TextRow
from tests.processes import run

NOTES = """# Birds

The heron stands in the shallow river. It waits for fish, and it does not move for an hour.

## In winter

Owls hunt mice at night. Snow does not stop them: they hear what moves below it.

# Bread

Dough rises twice. The second time it rises in the tin, under a cloth.
"""

PAGE = """<!doctype html>
<html><head><title>Notes &amp; more</title><style>p { color: red }</style></head>
<body><h1>Herons \N{GRINNING FACE}</h1>
<p>They   stand in
the <b>river</b> &mdash; &lt;often&gt; for an hour &#x41;gain.</p>
<script>if (a < b) { alert("no") }</script>
<ul><li>fish<li>frogs</ul><pre>  kept
   spaces</pre></body></html>
"""


def chunking(tokenizer: PreTrainedTokenizerFast, size: int, overlap: int = 0) -> Chunking:
    return Chunking(tokenizer.backend_tokenizer, size, overlap)


def count(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def rows_of(file: Path, chunks: Chunking) -> list[TextRow]:
    return list(ChunkedFile(str(file), chunking=chunks).texts())


TEXTS = st.text(
    st.sampled_from("ab .\n\r\t#e\N{COMBINING ACUTE ACCENT}\N{GRINNING FACE}\N{HEBREW LETTER ALEF}日本"), max_size=120
)


@settings(max_examples=80)
@given(text=TEXTS, size=st.integers(1, 30), overlap=st.integers(0, 10), markdown=st.booleans())
def test_offsets_give_back_the_text(
    tiny_tokenizer: PreTrainedTokenizerFast, text: str, size: int, overlap: int, markdown: bool
) -> None:
    spans = chunking(tiny_tokenizer, size, min(overlap, size - 1)).spans(Document(text, markdown))
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(left[0] < right[0] and left[1] < right[1] for left, right in pairwise(spans))
    covered = {place for start, end in spans for place in range(start, end)}
    assert all(text[place].isspace() for place in range(len(text)) if place not in covered)
    # A character may have several tokens.
    assert all(end - start == 1 or count(tiny_tokenizer, text[start:end]) <= size for start, end in spans)
    if not overlap:
        assert all(left[1] <= right[0] for left, right in pairwise(spans))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_markdown_is_split_at_its_headings(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, end: str) -> None:
    source = NOTES.replace("\n", end)
    file = tmp_path / "notes.md"
    file.write_bytes(source.encode("utf-8-sig"))
    size = max(count(tiny_tokenizer, part) for part in NOTES.split("\n\n#")) + 4
    rows = rows_of(file, chunking(tiny_tokenizer, size))
    assert [row.text.split()[1] for row in rows if row.text and row.text.startswith("#")] == ["Birds", "In", "Bread"]
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    for chunk, row in enumerate(rows):
        assert row.place is not None
        assert (row.id, row.place.chunk) == (str(file), chunk)
        assert source[row.place.start : row.place.end] == row.text
        assert source.splitlines()[row.place.line - 1].startswith(str(row.text).splitlines()[0][:20])


def test_overlap_is_whole_sentences(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    sentences = [f"Heron number {number} stands in the river." for number in range(12)]
    (tmp_path / "a.txt").write_text(" ".join(sentences))
    one = count(tiny_tokenizer, sentences[-1]) + 2
    rows = rows_of(tmp_path / "a.txt", chunking(tiny_tokenizer, 3 * one, one))
    assert len(rows) > 4
    texts = [str(row.text) for row in rows]
    for left, right in pairwise(texts):
        assert left.split(". ")[-1].rstrip(".") == right.split(". ")[0].rstrip(".")


def test_html_is_read_as_its_words(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGE, encoding="utf-8")
    document = read_document(str(file))
    assert document.text == (
        "# Notes & more\n\n# Herons \N{GRINNING FACE}\n\n"
        "They stand in the river \N{EM DASH} <often> for an hour Again.\n\n"
        "fish\n\nfrogs\n\n  kept\n   spaces\n\n"
    )
    for words, written in (
        ("<often>", "&lt;often&gt;"),
        ("stand in the river", "stand in\nthe <b>river"),
        ("Again.", "&#x41;gain."),
        ("Notes & more", "Notes &amp; more"),
        ("\N{GRINNING FACE}", "\N{GRINNING FACE}"),
    ):
        first = document.text.index(words)
        start, end = document.span(first, first + len(words))
        assert PAGE[start:end] == written
    [row] = rows_of(file, chunking(tiny_tokenizer, 1000))
    assert row.place is not None
    assert PAGE[row.place.start :].startswith("Notes &amp; more")
    assert PAGE[: row.place.end].endswith("spaces")


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"\xff\xfe\x00", "cannot be read"), (b"a\0b", "zero byte"), (b"\x1f\x8b\x08abc", "gzip data")],
)
def test_what_is_no_document_is_a_row_that_cannot_be_read(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, data: bytes, problem: str
) -> None:
    (tmp_path / "a.md").write_bytes(data)
    [row] = rows_of(tmp_path / "a.md", chunking(tiny_tokenizer, 10))
    assert row.text is None
    assert problem in row.reason or "UTF" in row.reason


def test_a_worker_splits_alike(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chunks, document = chunking(tiny_tokenizer, 12, 3), Document(NOTES, has_markdown=True)
    wanted = chunks.spans(document)
    assert pickle.loads(pickle.dumps(chunks)).spans(document) == wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of notes in every form."""
    place = tmp_path / "notes"
    (place / "more").mkdir(parents=True)
    (place / "birds.md").write_text(NOTES)
    (place / "page.html").write_text(PAGE, encoding="utf-8")
    (place / "more" / "plain.txt").write_text("Trains leave every hour. They go to the coast.\n" * 5)
    rows = [{"text": "A letter came. It was from the sea."}, {"text": "Snow fell. Nobody saw it."}]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def embed(encoder: Encoder, source: Path, folder: Path, **options: Any) -> Path:
    out = folder.parent / "out"
    how = {"chunk": 16, "overlap": 4, "keep_text": True, "shard_rows": 3} | options
    embed_corpus(encoder, [str(folder)], out, source=str(source), **how)
    return out


def test_a_corpus_of_chunks(tiny_encoder: Encoder, tiny_folder: Path, folder: Path) -> None:
    out = embed(tiny_encoder, tiny_folder, folder)
    rows = [row for path in sorted((out / "shards").iterdir()) for row in shards.read_shard(path).to_pylist()]
    assert {"id", "chunk", "start", "end", "line", "vector", "text"} <= rows[0].keys()
    assert {Path(row["id"].split(":")[0]).name for row in rows} == {"birds.md", "page.html", "plain.txt", "rows.jsonl"}
    plain = (folder / "birds.md").read_text()
    of_birds = sorted((row for row in rows if row["id"].endswith("birds.md")), key=lambda row: row["chunk"])
    assert [row["chunk"] for row in of_birds] == list(range(len(of_birds)))
    assert all(plain[row["start"] : row["end"]] == row["text"] for row in of_birds)
    letters = sorted((row for row in rows if "rows.jsonl:1" in row["id"]), key=lambda row: row["chunk"])
    assert all("A letter came. It was from the sea."[row["start"] : row["end"]] == row["text"] for row in letters)
    [vector] = tiny_encoder.encode([of_birds[1]["text"]])
    assert of_birds[1]["vector"] == pytest.approx(vector.tolist(), abs=1e-5)


def test_it_resumes_and_refuses_other_chunks(
    tiny_encoder: Encoder, tiny_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = embed(tiny_encoder, tiny_folder, folder)
    wanted = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    gone = sorted(wanted)[1]
    (out / "shards" / gone).unlink()
    embed(tiny_encoder, tiny_folder, folder)
    assert {path.name: path.read_bytes() for path in (out / "shards").iterdir()} == wanted
    with pytest.raises(SourceError, match="chunk is 16 there and 20 here"):
        embed(tiny_encoder, tiny_folder, folder, chunk=20)
    (folder / "birds.md").write_text(NOTES.replace("heron", "egret"))
    with pytest.raises(SourceError, match="has changed in rows"):
        embed(tiny_encoder, tiny_folder, folder)


def test_search_shows_the_passage_with_its_place(tiny_encoder: Encoder, tiny_folder: Path, folder: Path) -> None:
    out = embed(tiny_encoder, tiny_folder, folder)
    build_index(out)
    found = Index.open(out)
    hit = found.search_words("owls mice")[0]
    assert hit.line is not None
    assert "Owls hunt mice" in NOTES.splitlines()[hit.line - 1] or NOTES.splitlines()[hit.line - 1] == "## In winter"
    assert NOTES[hit.start : hit.end] == hit.text
    result = search_corpus("owls mice", out, hybrid=True, best=True, top=4)
    assert len({hit.id for hit in result.hits}) == len(result.hits) == 4
    every = search_corpus("owls mice", out, hybrid=True, top=100)
    assert len({hit.id for hit in every.hits}) < len(every.hits)
    shown = [
        json.loads(CliRunner().invoke(app, ["search", "owls mice", "--in", str(out), "--json", *options]).stdout)[
            "hits"
        ]
        for options in (["--top=100"], ["--top=100", "--best"])
    ]
    assert len(shown[0]) > len(shown[1]) == len({hit["id"] for hit in shown[0]})
    with pytest.raises(BellmError, match="no condition"):
        found.search_words("owls", where="chunks = 1")
    assert all(hit.chunk == 0 for hit in found.search(tiny_encoder.encode(["owls"])[0], where="chunk = 0"))


def test_ids_that_come_twice_are_those_of_documents(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "notes"
    place.mkdir()
    rows = [{"id": name, "text": "A letter came. It was from the sea. Snow fell."} for name in ("a", "b", "a")]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(CorpusWarning, match="1 of [0-9]+ rows have the id of an earlier row, such as 'a'"):
        embed(tiny_encoder, tiny_folder, place, id_column="id", chunk=6, overlap=0)


def test_an_empty_document_is_named(tiny_encoder: Encoder, tiny_folder: Path, folder: Path) -> None:
    (folder / "empty.md").write_bytes(b"")
    with pytest.warns(BellmWarning, match=r"There are no rows in '.*empty\.md'"):
        out = embed(tiny_encoder, tiny_folder, folder)
    assert (out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunk": 0}, "chunk=0 is too small"),
        ({"chunk": 8, "overlap": 8}, "overlap=8 does not fit chunks of 8 tokens"),
        ({"chunk": 10**9}, "is too large: beside the prompt the encoder takes"),
    ],
)
def test_sizes(tiny_encoder: Encoder, tiny_folder: Path, folder: Path, options: dict[str, int], said: str) -> None:
    with pytest.raises(BellmError, match=said):
        embed(tiny_encoder, tiny_folder, folder, **options)
    assert not (folder.parent / "out").exists()


@pytest.mark.slow
def test_three_commands_from_a_folder_of_notes_to_an_answer(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    commands = (
        ["embed", str(tiny_folder), str(folder), "-o", "vectors/", "--chunk", "16", "--overlap", "4"],
        ["index", "vectors/"],
        ["search", "owls and mice", "--in", "vectors/", "--hybrid", "--best", "--top", "2"],
    )
    done = [run([sys.executable, "-m", "bellm", *command], cwd=tmp_path) for command in commands]
    assert all(each.returncode == 0 for each in done), [each.stderr for each in done]
    answer = "".join(done[-1].stdout.split())
    assert "birds.md:5" in answer or "birds.md:7" in answer
    assert "Owlshuntmice" in answer


def test_the_command_says_what_is_missing(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    for options, said in (
        (["-o", str(tmp_path / "v"), "--overlap", "4"], "--overlap is of chunks"),
        (["-o", str(tmp_path / "v.npy"), "--chunk", "4"], "options of a corpus folder do not fit"),
    ):
        result = CliRunner().invoke(app, ["embed", str(tiny_folder), str(folder), *options])
        assert result.exit_code != 0
        assert said in str(result.exception) + result.output
