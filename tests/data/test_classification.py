"""Transfer tasks from files of the kind that SentEval writes."""

from pathlib import Path

import numpy as np
import pytest

from bellm.data.classification import CLASSIFICATION_SOURCES, LabeledTexts, read_classification
from bellm.errors import BellmError, SourceError

MR = {"MR/rt-polarity.pos": b"a quiet , warm film .\nextraordinarily \n", "MR/rt-polarity.neg": b"I  slept\ndull\n"}
SST = {
    "SST/binary/sentiment-train": "it moves \t1\na na\u00efve bore \t0\ndull \t0\n".encode(),
    "SST/binary/sentiment-dev": b"well played \t1\n",
    "SST/binary/sentiment-test": b"flat \t0\nso very alive \t1",
}
TREC = {
    "TREC/train_5500.label": b"LOC:city Which city lies on the R\xedo Negro ?\r\nABBR:exp What does GPS mean ?\n",
    "TREC/TREC_10.label": b"NUM:dist How far : how near ?\n",
}
MRPC = {
    "MRPC/msr_paraphrase_train.txt": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t11\t12\tHe said " no " .\tNo , he said .\n0\t13\t14\tRain fell .\tRain falls \u2014 at last .\n'.encode(),
    "MRPC/msr_paraphrase_test.txt": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    "1\t15\t16\tA bus came .\tA coach came .\n".encode(),
}


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        file = folder / "transfer" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def rows(sentences: LabeledTexts) -> list[tuple[object, ...]]:
    return list(zip(*sentences.columns, sentences.labels_N.tolist(), strict=True))


def test_sentences_stand_in_the_order_that_the_published_folds_are_drawn_from(tmp_path: Path) -> None:
    found = read_classification("MR", written(tmp_path, MR))
    assert rows(found) == [("dull", 0), ("extraordinarily", 1), ("I slept", 0), ("a quiet , warm film .", 1)]
    assert not found.split


def test_a_line_without_words_is_a_full_stop_and_the_shortest_row(tmp_path: Path) -> None:
    found = read_classification(
        "CR", written(tmp_path, {"CR/custrev.pos": b"good .\n\n", "CR/custrev.neg": b"bad\n \nworse\n"})
    )
    assert rows(found) == [(".", 0), (".", 1), ("bad", 0), ("worse", 0), ("good .", 1)]


def test_published_parts_follow_each_other_and_are_sorted_apart(tmp_path: Path) -> None:
    found = read_classification("SST2", written(tmp_path, SST))
    train = [("dull", 0), ("it moves", 1), ("a na\u00efve bore", 0)]
    assert rows(found) == [*train, ("well played", 1), ("flat", 0), ("so very alive", 1)]
    assert found.split == {"train": range(3), "dev": range(3, 4), "test": range(4, 6)}


def test_questions_have_their_coarse_class_and_may_hold_colons(tmp_path: Path) -> None:
    found = read_classification("TREC", written(tmp_path, TREC))
    assert rows(found)[0] == ("What does GPS mean ?", 0)
    assert rows(found)[1] == ("Which city lies on the R\u00edo Negro ?", 4)
    assert rows(found)[2] == ("How far : how near ?", 5)
    assert found.split == {"train": range(2), "test": range(2, 3)}


def test_pairs_come_without_their_header_and_keep_lonely_quotes(tmp_path: Path) -> None:
    found = read_classification("MRPC", written(tmp_path, MRPC))
    assert rows(found)[0] == ("Rain fell .", "Rain falls \u2014 at last .", 0)
    assert rows(found)[1] == ('He said " no " .', "No , he said .", 1)
    assert found.split == {"train": range(2), "test": range(2, 3)}


@pytest.mark.parametrize(
    ("name", "files", "path", "line"),
    [
        ("SST2", SST, "SST/binary/sentiment-dev", b"well played 1"),
        ("SST2", SST, "SST/binary/sentiment-dev", b"well played\t3"),
        ("SST2", SST, "SST/binary/sentiment-dev", b"na\xefve\t1"),
        ("TREC", TREC, "TREC/TREC_10.label", b"WHERE:city Is it here ?"),
        ("TREC", TREC, "TREC/TREC_10.label", b"LOC:city"),
        ("MRPC", MRPC, "MRPC/msr_paraphrase_test.txt", b"1\t15\t16\tA bus came ."),
        ("MRPC", MRPC, "MRPC/msr_paraphrase_test.txt", b"yes\t15\t16\tA bus came .\tA coach came ."),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, files: dict[str, bytes], path: str, line: bytes
) -> None:
    written(tmp_path, files | {path: files[path].removesuffix(b"\n") + b"\n" + line})
    number = files[path].count(b"\n") + 1
    with pytest.raises(SourceError, match=rf"{Path(path).name}, line {number}: ") as raised:
        read_classification(name, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", CLASSIFICATION_SOURCES)
def test_an_absent_task_is_one_line_with_the_way_to_get_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BELLM_DATA", raising=False)
    for folder in (tmp_path, None):
        with pytest.raises(SourceError, match=rf"{name} .*facebookresearch/SentEval") as raised:
            read_classification(name, folder)
        assert "\n" not in str(raised.value)


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BellmError, match=r"'SST-2'.*MR, CR, SUBJ, MPQA, SST2, TREC, MRPC"):
        read_classification("SST-2")


@pytest.mark.parametrize(
    ("name", "classes", "split"),
    [
        ("MR", [5331, 5331], []),
        ("CR", [1368, 2407], []),
        ("SUBJ", [5000, 5000], []),
        ("MPQA", [7294, 3312], []),
        ("SST2", [31120, 38922], [67349, 872, 1821]),
        ("TREC", [95, 1300, 1344, 1288, 916, 1009], [5452, 500]),
        ("MRPC", [1901, 3900], [4076, 1725]),
    ],
)
def test_the_published_files_have_their_published_sizes(
    data: Path, name: str, classes: list[int], split: list[int]
) -> None:
    found = read_classification(name, data)
    assert np.bincount(found.labels_N).tolist() == classes
    assert [len(rows) for rows in found.split.values()] == split
    assert not any("\ufeff" in text or "\u00c3" in text for column in found.columns for text in column)
