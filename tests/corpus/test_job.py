import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bellm import Encoder, MultiViewEncoder
from bellm.corpus import job, manifest, row_ranges, shards
from bellm.corpus.corpus_config import read_corpus_config
from bellm.corpus.job import CorpusProgress, CorpusReport, embed_corpus, lock_corpus
from bellm.engine.concurrency import prefetch
from bellm.engine.embedding import EncodeResult
from bellm.errors import BellmError, BellmWarning, CorpusWarning, SourceError, TruncationWarning
from bellm.saved_encoder import FINGERPRINT_TEXTS

TEXTS = [f"Heron number {number} waits for {number % 5} fish." for number in range(50)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is embedded from here on, but for those of the fingerprint."""
    texts: list[str] = []
    encode = Encoder.encode_with_stats

    def counting(self: Encoder, more: list[str], **options: Any) -> EncodeResult:
        texts.extend(text for text in more if text not in FINGERPRINT_TEXTS)
        return encode(self, more, **options)

    monkeypatch.setattr(Encoder, "encode_with_stats", counting)
    return texts


def lines(file: str, texts: list[str]) -> str:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return file


def run(encoder: Encoder, *inputs: str, **options: Any) -> CorpusReport:
    return embed_corpus(encoder, inputs, "out", **{"shard_rows": 8, **options})


def table() -> Any:
    """All rows of the folder, in the order of its manifest."""
    return pa.concat_tables(
        map(shards.read_shard, manifest.shard_paths(Path("out"), manifest.read_manifest(Path("out"))))
    )


def content() -> dict[str, bytes]:
    """Every file of the folder."""
    return {str(path): path.read_bytes() for path in sorted(Path("out").rglob("*")) if path.is_file()}


def test_every_row_has_its_vector(tiny_encoder: Encoder) -> None:
    report = run(tiny_encoder, lines("a.txt", TEXTS), lines("d/b.txt", TEXTS[::-1]), keep_text=True, source="tiny")
    rows = table()
    assert rows.column("text").to_pylist() == TEXTS + TEXTS[::-1]
    assert rows.column("row").to_pylist() == [*range(1, 51)] * 2
    assert rows.column("file").to_pylist() == ["a.txt"] * 50 + ["d/b.txt"] * 50
    assert rows.column("id").to_pylist()[49:51] == ["a.txt:50", "d/b.txt:1"]
    expected = tiny_encoder.encode(TEXTS)
    np.testing.assert_allclose(shards.shard_vectors(rows), [*expected, *expected[::-1]], rtol=1e-4, atol=1e-5)
    found = manifest.read_manifest(Path("out"))
    assert found == report.manifest
    assert (found.rows, found.unreadable, found.embedding_dim, found.complete, len(found.shards)) == (
        100,
        0,
        32,
        True,
        14,
    )
    assert found.tokens == report.new_tokens == sum(map(len, tiny_encoder.tokenize(TEXTS).ids)) * 2
    assert found.encoder["source"] == "tiny"
    assert report.new_rows == 100
    assert sorted(path.name for path in Path("out").iterdir() if not path.name.startswith(".")) == [
        *("fingerprint.safetensors", "manifest.json", "rejected.jsonl", "shards")
    ]


def test_choices_reach_the_encoder_and_the_configuration(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="instruct")
    Path("a.jsonl").write_text("".join(json.dumps({"n": n, "t": text}) + "\n" for n, text in enumerate(TEXTS)))
    run(encoder, "a.jsonl", input_type="query", column="t", id_column="n", max_batch_tokens=64)
    rows = table()
    assert rows.column("id").to_pylist() == list(map(str, range(50)))
    expected = encoder.encode_query(TEXTS)
    np.testing.assert_allclose(shards.shard_vectors(rows), expected, rtol=1e-4, atol=1e-5)
    config, fingerprint = read_corpus_config(Path("out"))
    assert (config.input_type, config.column, config.id_column) == ("query", "t", "n")
    assert fingerprint.shape == (8, 32)


def test_a_second_run_finds_everything_done(tiny_encoder: Encoder, counted: list[str]) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS))
    before = content()
    counted.clear()
    assert run(tiny_encoder, "a.txt").new_rows == 0
    assert counted == []
    assert content() == before


@pytest.mark.parametrize("shard_rows", [8, 1])
def test_lost_shards_are_made_anew_and_no_others(tiny_encoder: Encoder, counted: list[str], shard_rows: int) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS), keep_text=True)
    before, rows = content(), table()
    for path in sorted(Path("out/shards").iterdir())[1:7:2]:
        path.unlink()
    Path("out/manifest.json").unlink()
    counted.clear()
    run(tiny_encoder, "a.txt", keep_text=True, shard_rows=shard_rows)
    assert counted == TEXTS[8:16] + TEXTS[24:32] + TEXTS[40:48]
    if shard_rows == 8:
        assert content() == before
    assert table().drop_columns("vector").equals(rows.drop_columns("vector"))
    np.testing.assert_allclose(shards.shard_vectors(table()), shards.shard_vectors(rows), rtol=1e-4, atol=1e-5)


def test_grown_inputs_cost_what_is_new(tiny_encoder: Encoder, counted: list[str]) -> None:
    run(tiny_encoder, lines("d/b.txt", TEXTS[:20]))
    counted.clear()
    lines("d/b.txt", TEXTS[:30])
    lines("d/a.txt", TEXTS[30:])
    report = run(tiny_encoder, "d", keep_text=False)
    assert counted == TEXTS[30:] + TEXTS[20:30]
    assert (report.new_rows, report.manifest.rows) == (30, 50)
    assert table().column("id").to_pylist() == [
        *(f"d/a.txt:{n}" for n in range(1, 21)),
        *(f"d/b.txt:{n}" for n in range(1, 31)),
    ]


def test_files_that_are_no_longer_named_stay_and_are_told(tiny_encoder: Encoder) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS[:10]), lines("b.txt", TEXTS[:10]))
    with pytest.warns(CorpusWarning, match=r"out also holds a\.txt, embedded earlier and not named now"):
        report = run(tiny_encoder, "b.txt")
    assert report.manifest.rows == 20
    assert table().column("file").to_pylist() == ["b.txt"] * 10 + ["a.txt"] * 10


def test_changed_rows_stop_the_work_and_change_nothing(tiny_encoder: Encoder) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS))
    before = content()
    lines("a.txt", [*TEXTS[:20], "other", *TEXTS[21:]])
    with pytest.raises(SourceError, match=r"a\.txt has changed in rows 17 to 24, .*remove (\S+) from shards") as caught:
        run(tiny_encoder, "a.txt")
    assert content() == before
    Path("out/shards", str(caught.value).split("remove ")[1].split(" ")[0]).unlink()
    assert run(tiny_encoder, "a.txt").new_rows == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision is 'float32' there and 'int8' here"),
        ({"input_type": "query"}, "input_type is 'text' there and 'query' here"),
        ({"column": "t", "keep_text": True}, "keep_text is False there and True here; column is 'text'"),
        ({"column": "phrase"}, "column is 'text' there and 'phrase' here"),
    ],
)
def test_another_configuration_is_refused(tiny_encoder: Encoder, options: dict[str, Any], message: str) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS[:10]))
    before = content()
    with pytest.raises(SourceError, match=f"out was begun otherwise: {message}.*Give the same options"):
        run(tiny_encoder, "a.txt", **options)
    assert content() == before


def test_another_encoder_is_refused(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS[:10]))
    before = content()
    with pytest.raises(
        SourceError,
        match="out holds vectors of an encoder with other settings: pooling is 'last' there and 'mean' here",
    ):
        run(tiny_encoder.replace(pooling="mean"), "a.txt")
    fingerprint = tiny_encoder.fingerprint()
    monkeypatch.setattr(Encoder, "fingerprint", lambda self: fingerprint + 0.1)
    with pytest.raises(SourceError, match="out holds the vectors of another model"):
        run(tiny_encoder, "a.txt")
    assert content() == before
    monkeypatch.setattr(Encoder, "fingerprint", lambda self: fingerprint * (1 + 1e-5))
    assert run(tiny_encoder, "a.txt").new_rows == 0


def test_a_damaged_shard_is_made_anew(tiny_encoder: Encoder, counted: list[str]) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS))
    before = content()
    counted.clear()
    path = sorted(Path("out/shards").iterdir())[2]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.warns(CorpusWarning, match=rf"{path.name} is damaged: .*Its rows are embedded again") as caught:
        run(tiny_encoder, "a.txt")
    assert len(caught) == 1
    assert counted == TEXTS[16:24]
    assert content() == before


def test_a_manifest_never_names_a_shard_that_is_gone(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS))
    sorted(Path("out/shards").iterdir())[2].write_bytes(b"torn")
    encode = Encoder.encode_with_stats

    def stopped(self: Encoder, texts: list[str], **options: Any) -> EncodeResult:
        if TEXTS[16] in texts:
            raise KeyboardInterrupt
        return encode(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode_with_stats", stopped)
    with pytest.warns(CorpusWarning, match="Its rows are embedded again"), pytest.raises(KeyboardInterrupt):
        run(tiny_encoder, "a.txt")
    assert not Path("out/manifest.json").exists()


def test_damaged_shards_leave_nothing_behind(tiny_encoder: Encoder) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS))
    for path in sorted(Path("out/shards").iterdir())[2:4]:
        path.write_bytes(b"torn")
    with pytest.warns(CorpusWarning, match="Its rows are embedded again"):
        report = run(tiny_encoder, "a.txt", shard_rows=16)
    assert (report.new_rows, report.manifest.rows, len(report.manifest.shards)) == (16, 50, 6)
    assert run(tiny_encoder, "a.txt").new_rows == 0


def test_shards_from_elsewhere_are_refused(tiny_encoder: Encoder) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS))
    path = sorted(Path("out/shards").iterdir())[0]
    path.rename(path.with_name("b.parquet"))
    with pytest.raises(SourceError, match=r"b\.parquet does not belong to out.*Move it away"):
        run(tiny_encoder, "a.txt")
    Path("out/fingerprint.safetensors").unlink()
    with pytest.raises(SourceError, match="holds shards without their fingerprint"):
        run(tiny_encoder, "a.txt")


def test_a_folder_with_the_draft_of_a_killed_run_is_taken(tiny_encoder: Encoder) -> None:
    draft = Path("out/.fingerprint.safetensors-1.part")
    draft.parent.mkdir()
    draft.touch()
    assert run(tiny_encoder, lines("a.txt", TEXTS)).manifest.rows == 50
    assert not draft.exists()


def test_folders_of_others_are_left_alone(tiny_encoder: Encoder) -> None:
    lines("out/letter.txt", ["Dear"])
    with pytest.raises(SourceError, match="out holds other files and is no corpus"):
        run(tiny_encoder, lines("a.txt", TEXTS))
    assert content() == {"out/letter.txt": b"Dear\n"}
    shutil.rmtree("out")
    Path("out").touch()
    with pytest.raises(SourceError, match="out cannot be written: "):
        run(tiny_encoder, "a.txt")


def test_two_at_once_do_not_meet(tiny_encoder: Encoder) -> None:
    lines("a.txt", TEXTS)
    with lock_corpus(Path("out")), pytest.raises(SourceError, match="Another bellm is at work in out"):
        run(tiny_encoder, "a.txt")
    assert run(tiny_encoder, "a.txt").new_rows == 50


def test_drafts_of_the_dead_are_cleared_away(tiny_encoder: Encoder) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS))
    before = content()
    for name in ("out/.manifest.json-12.part", "out/shards/.x.parquet-12.part"):
        Path(name).write_text("half")
    run(tiny_encoder, "a.txt")
    assert content() == before


def test_unreadable_rows_are_counted_and_listed(tiny_encoder: Encoder) -> None:
    Path("a.jsonl").write_bytes(
        b'"one"\n7\n"na\xefve"\n' + b'"two"\n' * 10 + b'{"no": "column"}\nnot json\n"half \\ud83d"\n'
    )
    Path("b.csv").write_bytes(b'id,text\n1,x\n2,y,z\n3,"open\n')
    with (
        pytest.warns(BellmWarning, match=r"b\.csv: not read: column 'id'\."),
        pytest.warns(CorpusWarning, match=r"7 of 19 rows cannot be read; out/rejected\.jsonl lists them\."),
    ):
        report = run(tiny_encoder, "a.jsonl", "b.csv", shard_rows=4)
    assert (report.manifest.rows, report.manifest.unreadable) == (12, 7)
    rejected = [json.loads(line) for line in Path("out/rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row"]) for row in rejected] == [
        *(("a.jsonl", row) for row in (2, 3, 14, 15, 16)),
        *(("b.csv", row) for row in (2, 3)),
    ]
    assert rejected[0]["reason"] == "line 2: 7 is not a text. Give a string, be it an empty one."
    before = content()
    with pytest.warns(BellmWarning, match="column 'id'"), pytest.warns(CorpusWarning, match="7 of 19"):
        assert run(tiny_encoder, "a.jsonl", "b.csv", shard_rows=4).new_rows == 0
    assert content() == before


def test_where_nothing_can_be_read(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranges, "check_columns", lambda *_: None)
    Path("a.jsonl").write_text("7\n" * 20)
    with pytest.raises(SourceError, match="None of the 20 rows can be read; out/rejected"):
        run(tiny_encoder, "a.jsonl")


def test_empty_inputs_are_a_corpus_of_nothing(tiny_encoder: Encoder) -> None:
    with pytest.warns(BellmWarning, match=r"There are no rows in 'a\.txt'"):
        report = run(tiny_encoder, lines("a.txt", []))
    assert (report.manifest.rows, report.manifest.shards) == (0, [])


def test_cut_texts_are_counted(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(max_tokens=30)
    with pytest.warns(TruncationWarning, match="2 of 4 texts were cut to 30 tokens"):
        report = run(encoder, lines("a.txt", ["word " * 50, "a", "word " * 60, "b"]))
    assert report.manifest.truncated == 2


@pytest.mark.parametrize(("vectors", "bound"), [("float16", 2**-11), ("int8", 1 / 254)])
def test_smaller_forms_are_near(tiny_encoder: Encoder, vectors: Any, bound: float) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS), precision=vectors)
    expected = tiny_encoder.encode(TEXTS)
    error = np.abs(shards.shard_vectors(table()) - expected) / np.abs(expected).max(axis=1, keepdims=True)
    assert 0 < error.max() <= bound * 1.01


def test_broken_vectors_stop_the_work(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Encoder, texts: list[str], **_: Any) -> EncodeResult:
        rows = [[np.nan if text == TEXTS[11] else number + 1.0] * 32 for number, text in enumerate(texts)]
        return EncodeResult(np.array(rows, np.float32), 0, 0)

    fingerprint = tiny_encoder.fingerprint()
    monkeypatch.setattr(Encoder, "fingerprint", lambda self: fingerprint)
    monkeypatch.setattr(Encoder, "encode_with_stats", broken)
    with pytest.raises(BellmError, match=r"a\.txt, row 12: its vector is not finite"):
        run(tiny_encoder, lines("a.txt", TEXTS))
    assert len(list(Path("out/shards").iterdir())) == 1


def test_progress_reaches_the_end(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_PIECE_ROWS", 5)
    seen: list[CorpusProgress] = []
    report = run(tiny_encoder, lines("a.txt", TEXTS), lines("b.txt", TEXTS[:10]), progress=seen.append)
    assert [now.rows for now in seen] == sorted(now.rows for now in seen)
    assert [now.share for now in seen] == sorted(now.share for now in seen)
    assert seen[-1] == CorpusProgress(60, report.new_tokens, pytest.approx(1))
    Path("a.txt").write_text(Path("a.txt").read_text() + "One more.\n")
    seen.clear()
    run(tiny_encoder, "b.txt", "a.txt", progress=seen.append)
    assert seen == [CorpusProgress(1, seen[0].tokens, pytest.approx(1))]


def test_reading_is_one_ahead_and_its_errors_arrive() -> None:
    read = []

    def numbers() -> Iterator[int]:
        for number in range(4):
            read.append((number, threading.get_ident()))
            yield number
        raise SourceError("torn")

    items = prefetch(numbers())
    assert next(items) == 0
    while len(read) < 2:
        time.sleep(0.001)
    assert len(read) == 2
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(SourceError, match="torn"):
        next(items)
    assert threading.get_ident() not in {thread for _, thread in read}


def test_a_disk_that_fails_is_seen_in_the_next_span(
    tiny_encoder: Encoder, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SourceError("no space")

    monkeypatch.setattr(shards, "write_shard", full)
    monkeypatch.setattr(job, "_PIECE_ROWS", 1)
    with pytest.raises(SourceError, match="no space"):
        run(tiny_encoder, lines("a.txt", TEXTS))
    assert len(counted) < 16
    assert not Path("out/manifest.json").exists()


def test_duplicate_and_missing_ids_are_counted_and_said(tiny_encoder: Encoder) -> None:
    Path("a.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "", "text": "y"}\n{"id": "a", "text": "z"}\n')
    Path("b.csv").write_text("id,text\na,x\nb,y\n")
    lines("c.txt", TEXTS[:2])
    for _ in range(2):
        with pytest.warns(CorpusWarning) as told:
            report = run(tiny_encoder, "a.jsonl", "b.csv", "c.txt", id_column="id", shard_rows=2)
        assert [str(note.message) for note in told] == [
            "3 of 7 rows have no id in the column 'id': it is FILE:ROW.",
            "2 of 7 rows have the id of an earlier row, such as 'a'; a search cannot tell them apart.",
        ]
        assert table().column("id").to_pylist() == ["a", "a.jsonl:2", "a", "a", "b", "c.txt:1", "c.txt:2"]
        found = report.to_json()
        assert (found["rows"], found["unreadable"], found["numbered"], found["duplicate_ids"]) == (7, 0, 3, 2)


def test_columns_may_be_named_in_one(tiny_encoder: Encoder) -> None:
    Path("a.jsonl").write_text('{"key": "a", "body": "x"}\n')
    run(tiny_encoder, "a.jsonl", column="body", id_column="key")
    assert run(tiny_encoder, "a.jsonl", column="text=body,id=key").new_rows == 0
    assert table().column("id").to_pylist() == ["a"]


def test_a_column_of_ids_that_no_file_has_is_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(SourceError, match=r"No file has ids in a column 'key'\. Choose with --id-column"):
        run(tiny_encoder, lines("a.txt", TEXTS), id_column="key")
    assert not Path("out").exists()


def test_a_file_that_is_rejected_whole_is_an_error_and_the_others_are_embedded(tiny_encoder: Encoder) -> None:
    Path("b.jsonl").write_text('{"body": "x"}\n{"body": "y"}\n')
    for _ in range(2):
        with (
            pytest.warns(CorpusWarning, match="2 of 52 rows"),
            pytest.raises(
                SourceError, match=r"No row of b\.jsonl can be read; out/rejected\.jsonl lists them\. The other"
            ),
        ):
            run(tiny_encoder, lines("a.txt", TEXTS), "b.jsonl")
        assert manifest.read_manifest(Path("out")).rows == 50


def test_inputs_that_all_lie_in_the_output_are_refused(tiny_encoder: Encoder) -> None:
    run(tiny_encoder, lines("a.txt", TEXTS[:8]))
    with pytest.raises(SourceError, match=r"All inputs lie in out, where the output goes"):
        run(tiny_encoder, "out/rejected.jsonl")


def test_processes_on_devices_need_an_encoder_and_leave_no_folder_without(tiny_encoder: Encoder) -> None:
    views = MultiViewEncoder([tiny_encoder, tiny_encoder.replace(pooling="mean")])
    lines("texts.txt", TEXTS)
    with pytest.raises(BellmError, match="several devices need a bellm Encoder, and this is none"):
        embed_corpus(views, ["texts.txt"], "out", devices=["cpu", "cpu"])
    with pytest.raises(SourceError, match="device='toaster' is not known to torch"):
        embed_corpus(tiny_encoder, ["texts.txt"], "out", devices=["cpu", "toaster"])
    assert not Path("out").exists()
