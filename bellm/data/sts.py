"""Semantic textual similarity, pairs of sentences with gold ratings: STS 2012 to 2016, STS-Benchmark, SICK and C-STS.

Texts are those of the original files, unchanged. SentEval's own download is Moses-tokenised and partly lower-cased, so
that papers which use it score slightly other texts.

C-STS (Deshpande et al. 2023, arXiv 2305.15093) rates how alike two sentences are under a condition. It is given on
request only, so that a user reads a copy of their own. The labels of its test part are hidden: the validation part is
read. Each sentence is followed by the condition, as the paper's bi-encoder has them (`get_preprocessing_function` in
utils/sts/dataset_preprocessing.py of its code), with a space in place of a masked language model's separator.

Shapes: N pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bellm.data import sources
from bellm.data.sources import DataSource, TextLine
from bellm.errors import SourceError
from bellm.io.formats import parse_number
from bellm.io.rows import RowFile

_SEMEVAL = "http://ixa2.si.ehu.eus/stswiki"
_BENCHMARK = ("mteb/stsbenchmark-sts", "b0fddb56ed78048fa8b90373c8a3cfc37b684831")
_SICK = "http://alt.qcri.org/semeval2014/task1"
_CSTS = "C-STS"

_SOURCES = (
    DataSource("STS12", _SEMEVAL, "mteb/sts12-sts", "a0d554a64d88156834ff5ae9920b964011b16384"),
    DataSource("STS13", _SEMEVAL, "mteb/sts13-sts", "7e90230a92c190f1bf69ae9002b8cea547a64cca"),
    DataSource("STS14", _SEMEVAL, "mteb/sts14-sts", "6031580fec1f6af667f0bd2da0a551cf4f0b2375"),
    DataSource("STS15", _SEMEVAL, "mteb/sts15-sts", "ae752c7c21bf194d8b67fd573edf7ae58183cbe3"),
    DataSource("STS16", _SEMEVAL, "mteb/sts16-sts", "4d8694f8f0e0100860b497b999b3dbed754a0513"),
    DataSource("STSBenchmark", _SEMEVAL, *_BENCHMARK),
    DataSource("STSBenchmark-dev", _SEMEVAL, *_BENCHMARK),
    DataSource("STSBenchmark-train", _SEMEVAL, *_BENCHMARK),
    DataSource("SICK-R", _SICK),
    DataSource("SICK-R-full", _SICK, "mteb/sickr-sts", "20a6d6f312dd54037fe07a32d58e5e168867909d"),
    DataSource(_CSTS, "https://github.com/princeton-nlp/c-sts"),
)
STS_SOURCES = {source.name: source for source in _SOURCES}
"""By the name of the set; copies on the Hub as mteb 2.26 pins them. Its copy of SICK does not tell the 4927 test pairs
from the others."""

STS_PARTS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
"""Sub-sets that SentEval scores (Conneau & Kiela 2018, arXiv 1803.05449): SMT of 2013 is left out."""

_SICK_FILES = ("SICK_test_annotated.txt", "SICK_train.txt", "SICK_trial.txt")
_SICK_COLUMNS = ["pair_ID", "sentence_A", "sentence_B", "relatedness_score"]
_CSTS_COLUMNS = ("sentence1", "sentence2", "condition", "label")


@dataclass(frozen=True)
class STSPairs:
    """A set of rated pairs."""

    name: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    gold_N: NDArray[np.float64]
    """Mean rating of people: 0 to 5, those of SICK and C-STS 1 to 5."""
    parts: tuple[str, ...]
    """Sub-set of each pair, such as MSRpar, in the STS sets of a folder; elsewhere the name of the set."""


class _Row(NamedTuple):
    left: str
    right: str
    gold: float
    part: str


def read_sts(name: str, folder: Path | None = None, *, clean: bool = False) -> STSPairs:
    """Read a set from a folder, or from the Hub where neither `folder` nor BELLM_DATA names one.

    Args:
        name: `STS12` to `STS16` (SentEval's `all`: sub-sets one after the other), `STSBenchmark` (test),
            `STSBenchmark-dev`, `STSBenchmark-train`, `SICK-R` (SentEval's 4927 test pairs), `SICK-R-full` (MTEB's
            9927: test, train and trial) or `C-STS` (validation).
        folder: Holds `sts/STS12-en-test/`, `stsbenchmark/sts-test.csv`, `sick/SICK_train.txt`,
            `csts/csts_validation.csv` and their like.
        clean: Give the texts as the papers do, see `clean_text`; those of C-STS stay.

    Raises:
        BellmError: There is no set of that name, it is absent, or a line cannot be read.
    """
    source = sources.find_source(name, STS_SOURCES, "set of pairs")
    path = sources.data_folder(folder, source)
    rows = list(_from_hub(source) if path is None else _from_folder(path, source))
    if not rows:
        raise SourceError(f"{name} holds no rated pairs. Get it from {source.address}.")
    change = clean_text if clean and name != _CSTS else str
    return STSPairs(
        name,
        tuple(change(row.left) for row in rows),
        tuple(change(row.right) for row in rows),
        np.array([row.gold for row in rows]),
        tuple(row.part for row in rows),
    )


def clean_text(text: str) -> str:
    """The text as papers on prompted language models give it to the model.

    White space becomes single spaces, a full stop is put behind a text that does not end in one of `.?"'`, and a
    question mark at the end becomes a full stop. Source: the batcher in eval_sts.py of github.com/4AI/BeLLM, which has
    it from PromptEOL's (github.com/kongds/scaling_sentemb), where double quotes become single ones besides.

    >>> clean_text("Two  dogs run"), clean_text("Where do they run?"), clean_text('He said "run"')
    ('Two dogs run.', 'Where do they run.', 'He said "run"')
    """
    text = " ".join(text.split())
    if text.endswith("?"):
        return text[:-1] + "."
    return text if not text or text[-1] in ".\"'" else text + "."


def _from_folder(folder: Path, source: DataSource) -> Iterator[_Row]:
    name = source.name
    if name in STS_PARTS:
        for part in STS_PARTS[name]:
            yield from _semeval(folder, f"sts/{name}-en-test", part, source)
    elif name.startswith("STSBenchmark"):
        split = name.removeprefix("STSBenchmark-") if "-" in name else "test"
        for line in sources.read_lines(sources.require_file(folder, f"stsbenchmark/sts-{split}.csv", source)):
            yield _row(line, (5, 6, 4), name)
    elif name == _CSTS:
        yield from _conditional(sources.require_file(folder, "csts/csts_validation.csv", source))
    else:
        for file in _SICK_FILES[:1] if name == "SICK-R" else _SICK_FILES:
            path = sources.require_file(folder, f"sick/{file}", source)
            header, *rows = list(sources.read_lines(path)) or [sources.TextLine(f"{path}, line 1", "")]
            if header.text.split("\t")[:4] != _SICK_COLUMNS:
                raise SourceError(f"{header.location}: expected the columns {', '.join(_SICK_COLUMNS)}.")
            yield from (_row(line, (1, 2, 3), name) for line in rows)


def _semeval(folder: Path, path: str, part: str, source: DataSource) -> Iterator[_Row]:
    """The pairs of a sub-set that have a rating: a blank line in its file of ratings means that nobody gave one."""
    texts = list(sources.read_lines(sources.require_file(folder, f"{path}/STS.input.{part}.txt", source)))
    golds = list(sources.read_lines(sources.require_file(folder, f"{path}/STS.gs.{part}.txt", source)))
    if len(texts) != len(golds):
        raise SourceError(f"{folder / path}: {len(texts)} pairs in STS.input.{part}.txt, {len(golds)} ratings.")
    for pair, gold in zip(texts, golds, strict=True):
        if gold.text.strip():
            left, right = _cells(pair, (0, 1))
            yield _Row(left, right, _rating(gold.location, gold.text), part)


def _conditional(file: Path) -> Iterator[_Row]:
    """The pairs of C-STS, each sentence with the condition behind it."""

    def select(header: Sequence[str]) -> Sequence[str]:
        if missing := [column for column in _CSTS_COLUMNS if column not in header]:
            raise SourceError(f"no column {missing[0]}. A C-STS file has {', '.join(_CSTS_COLUMNS)}.")
        return _CSTS_COLUMNS

    for row in RowFile(str(file)).rows(select, strict=True):
        *sentences, condition, label = (row.cells[column] for column in _CSTS_COLUMNS)
        left, right = (f"{sentence.strip()} {condition.strip()}" for sentence in sentences)
        yield _Row(left, right, _rating(f"{file}, {row.location}", label, lowest=1), _CSTS)


def _from_hub(source: DataSource) -> Iterator[_Row]:
    split = {"STSBenchmark-dev": "validation", "STSBenchmark-train": "train"}.get(source.name, "test")
    for number, row in enumerate(sources.fetch_from_hub(source, split=split), 1):
        gold = _rating(f"{source.hub}, row {number}", row["score"])
        yield _Row(row["sentence1"], row["sentence2"], gold, source.name)


def _row(line: TextLine, columns: tuple[int, int, int], part: str) -> _Row:
    left, right, gold = _cells(line, columns)
    return _Row(left, right, _rating(line.location, gold), part)


def _cells(line: TextLine, columns: tuple[int, ...]) -> list[str]:
    """Cells between tabs. Quotes are part of the text: many have no partner."""
    cells = line.text.split("\t")
    if len(cells) <= max(columns):
        raise SourceError(f"{line.location}: {len(cells)} cells between tabs, at least {max(columns) + 1} are needed.")
    return [cells[column] for column in columns]


def _rating(location: str, cell: str | float | None, lowest: int = 0) -> float:
    rating = parse_number(cell)
    if rating is None or not lowest <= rating <= 5:
        raise SourceError(f"{location}: {cell!r} is no rating from {lowest} to 5.")
    return rating
