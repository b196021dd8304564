"""Data sets of your own: a table of rated pairs or of classes, or a folder in BEIR's format.

Columns are recognized by their names, whatever their case, spaces and underscores, or named part by part:

| part     | names                                                                                    |
|----------|------------------------------------------------------------------------------------------|
| anchor   | sentence1, sentence_a, text1, text_a, question1, premise, anchor, query, sent0           |
| positive | sentence2, sentence_b, text2, text_b, question2, hypothesis, positive, answer, sent1     |
| score    | score, similarity, similarity_score, sim, rating, relatedness_score, gold_score,         |
|          | is_duplicate                                                                             |
| text     | text, sentence                                                                           |
| label    | label, labels, gold_label, gold, class, category                                         |

Anchor, positive and score are rated pairs, as in STS; text and label are classified, as in SentEval's tasks. A label of
pairs is read as their score where it holds ratings, and refused where it holds classes.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np

from bellm.data.classification import LabeledTexts
from bellm.data.retrieval import RetrievalData, read_beir_folder
from bellm.data.sts import STSPairs, clean_text
from bellm.errors import SourceError
from bellm.io.formats import EMPTY_WORDS, find_column, parse_number, plain_name, quote_names, text_problem
from bellm.io.rows import RowFile, parse_columns, warn_unread

PARTS = {
    "anchor": "sentence1 sentencea text1 texta question1 premise anchor query sent0",
    "positive": "sentence2 sentenceb text2 textb question2 hypothesis positive answer sent1",
    "score": "score similarity similarityscore sim rating relatednessscore goldscore isduplicate",
    "text": "text sentence",
    "label": "label labels goldlabel gold class category",
}
"""The parts of a row, and how their columns may be called, as `plain_name` gives names."""

_KINDS = (("anchor", "positive", "score"), ("anchor", "positive", "label"), ("text", "label"))
_MOST_CLASSES = 3  # Paraphrases have two classes, NLI has three; ratings by people have more steps.

_NEEDED = (
    "Give a task the columns sentence1, sentence2 and score, or text and label; or say which they are with "
    "--columns anchor=COLUMN,positive=COLUMN,score=COLUMN."
)

Columns = Mapping[str, Sequence[str]]
"""The column of each part, as `bellm.io.rows.parse_columns` reads them."""


def read_own_data(
    path: str, columns: Columns | str | None = None, *, clean: bool = False
) -> STSPairs | LabeledTexts | RetrievalData:
    """Read every row of a table, or a folder in BEIR's format; `clean` the texts of pairs as the papers do.

    `columns` may be text, as in `anchor=query,positive=passage,score=rating`.

    Raises:
        SourceError: It cannot be read, its columns are not those of a task, or a row lacks what the others have.
    """
    if Path(path).is_dir():
        return read_beir_folder(Path(path))
    columns = parse_columns(columns, tuple(PARTS)) if isinstance(columns, str) else columns
    parts: dict[str, str] = {}

    def select(names: Sequence[str]) -> list[str]:
        if missing := [name for name in parts.values() if names.count(name) != 1]:
            raise SourceError(f"no column {missing[0]!r}, unlike rows before. Columns: {quote_names(names)}.")
        parts.update(parts or _match(names, columns))
        return list(parts.values())

    rows: list[tuple[str, dict[str, str | float]]] = []
    source = RowFile(path)
    for row in source.rows(select, strict=True, skip_blank=True):
        location = f"{path}, {row.location}"
        if not isinstance(row.cells, dict):
            raise SourceError(f"{location}: {str(row.cells)[:40]!r} has no columns. {_NEEDED}")
        rows.append(
            (location, {part: _cell(location, part, row.cells[name], row.untyped) for part, name in parts.items()})
        )
    if not rows:
        raise SourceError(f"{path} holds no rows. {_NEEDED}")
    warn_unread([source])
    if "text" in parts:
        names, labels_N = np.unique([str(row["label"]) for _, row in rows], return_inverse=True)
        _refuse_alike(path, names.tolist())
        texts = tuple(str(row["text"]) for _, row in rows)
        return LabeledTexts(path, (texts,), labels_N.astype(np.int64), label_names=tuple(names.tolist()))
    if "label" in parts:
        _refuse_classes(path, parts["label"], {row["label"] for _, row in rows})
    rating = "score" if "score" in parts else "label"
    change = clean_text if clean else str
    left, right = (tuple(change(str(row[part])) for _, row in rows) for part in ("anchor", "positive"))
    gold = [_rating(location, row[rating]) for location, row in rows]
    return STSPairs(path, left, right, np.array(gold), (path,) * len(gold))


def read_labeled_file(path: str) -> LabeledTexts:
    """Read a table of classes of texts, or of pairs of texts: the columns text and label, and text_b for pairs.

    Names of columns are those of texts, pairs and labels above. Classes are sorted by their names.

    Raises:
        SourceError: It cannot be read, lacks a column, or a row lacks what the others have; or there is one class.
    """
    parts: dict[str, str] = {}

    def select(names: Sequence[str]) -> list[str]:
        if parts and (missing := [name for name in parts.values() if names.count(name) != 1]):
            raise SourceError(f"no column {missing[0]!r}, unlike rows before. Columns: {quote_names(names)}.")
        if not parts:
            parts.update(_labeled_parts(names))
        return list(parts.values())

    columns: dict[str, list[str]] = {"anchor": [], "positive": [], "label": []}
    source = RowFile(path)
    for row in source.rows(select, strict=True, skip_blank=True):
        if not isinstance(row.cells, dict):
            raise SourceError(f"{path}, {row.location}: it has no columns. {_LABELED}")
        for part, name in parts.items():
            columns[part].append(str(_cell(f"{path}, {row.location}", part, row.cells[name], row.untyped)))
    names, labels_N = np.unique(columns["label"], return_inverse=True)
    if len(names) < 2:
        raise SourceError(
            f"{path} holds {len(columns['label'])} rows of {len(names)} classes: give two or more classes."
        )
    _refuse_alike(path, names.tolist())
    warn_unread([source])
    texts = tuple(tuple(columns[part]) for part in ("anchor", "positive") if part in parts)
    return LabeledTexts(path, texts, labels_N.astype(np.int64), label_names=tuple(map(str, names)))


_LABELED = "Give the columns text and label, and text_b where pairs are classified."


def _labeled_parts(names: Sequence[str]) -> dict[str, str]:
    """The columns of texts and labels."""
    found = {part: _recognize(names, part) for part in ("anchor", "positive", "label")}
    found["anchor"] += _recognize(names, "text")
    for part, those in found.items():
        if len(those) > 1:
            raise SourceError(f"more than one column could be the {part}: {quote_names(those)}. {_LABELED}")
    if not (found["anchor"] and found["label"]):
        raise SourceError(f"no labelled texts in the columns {quote_names(names) or 'of an empty file'}. {_LABELED}")
    return {part: those[0] for part, those in found.items() if those}


def _match(names: Sequence[str], columns: Columns | None) -> dict[str, str]:
    """The column of each part."""
    found = {part: _recognize(names, part) for part in PARTS}
    if columns is not None:
        found = {part: [find_column(names, name, part) for name in told] for part, told in columns.items()}
    for part, those in found.items():
        if len(those) > 1:
            raise SourceError(f"more than one column could be the {part}: {quote_names(those)}. {_NEEDED}")
    for kind in _KINDS:
        if all(found.get(part) for part in kind):
            return {part: found[part][0] for part in kind}
    raise SourceError(f"no task in the columns {quote_names(names) or 'of an empty file'}. {_NEEDED}")


def _recognize(names: Sequence[str], part: str) -> list[str]:
    known = PARTS[part].split()
    return [name for name in names if plain_name(name) in known]


def _cell(location: str, part: str, value: object, untyped: bool) -> str | float:
    if part in ("anchor", "positive", "text"):
        if problem := text_problem(value):
            raise SourceError(f"{location}: {problem}")
        if untyped and value in EMPTY_WORDS:
            raise SourceError(f"{location}: {value!r} is an empty cell to programs. In JSON Lines a string is a text.")
        return str(value)
    if not isinstance(value, str | int | float) or value == "":
        raise SourceError(f"{location}: {value!r} is no {part}. A task is scored by every row or by none.")
    return value


def may_be_classes(numbers: AbstractSet[float]) -> bool:
    """Whether labels are so few whole numbers that they may be classes, be it with -1 for none.

    Which of them means that two texts are alike differs between data sets.
    """
    return len(numbers - {-1}) <= _MOST_CLASSES and all(float(number).is_integer() for number in numbers)


def _refuse_classes(path: str, name: str, values: set[str | float]) -> None:
    """Refuse labels of pairs that are words, or may be classes."""
    numbers = [number for value in values if (number := parse_number(value)) is not None]
    if len(numbers) == len(values) and not may_be_classes({*numbers}):
        return
    some = ", ".join(sorted(map(str, values))[:4])
    raise SourceError(
        f"{path}: the column {name!r} holds classes ({some}), not how alike the two texts are. Call it score if a "
        "higher number means more alike."
    )


def _refuse_alike(path: str, classes: Sequence[str]) -> None:
    """Refuse classes that are likely one, written in two ways."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(name.strip().casefold().removesuffix(".0"), name)
        if other != name:
            raise SourceError(
                f"{path}: {other!r} and {name!r} would be two classes. Write a class in one way, without spaces around "
                "it."
            )


def _rating(location: str, value: str | float) -> float:
    if (number := parse_number(value)) is None:
        raise SourceError(f"{location}: {value!r} is no rating. Give a number, as in 0.5, higher for more alike.")
    return number
