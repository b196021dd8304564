"""A row of training data, and how table columns and cells become one.

These column names are recognized, in capitals or with spaces too; any other is given with `columns`:

| part     | names                                                                         | a cell holds         |
|----------|-------------------------------------------------------------------------------|----------------------|
| anchor   | anchor, query, sent0, sentence1, sentence_a, text1, question, question1,      | a text               |
|          | premise                                                                       |                      |
| positive | positive, positives, pos, sent1, sentence2, sentence_b, text2, answer,        | a text, or a list    |
|          | question2, hypothesis                                                         |                      |
| negative | negative, negatives, neg, hard_neg, hard_negatives, or negative_1,            | nothing, one, a list |
|          | negative_2, ... together                                                      |                      |
| score    | score, label, labels, similarity, similarity_score, sim, relatedness_score,   | a number, or an NLI  |
|          | relevance, rating, is_duplicate, gold, gold_label, gold_score                 | class                |
| texts    | texts (in a file of JSON Lines also a bare list)                              | texts that say the   |
|          |                                                                               | same                 |

A row is an anchor and its positives, with negatives or with the pair's score; or it is `texts`. Where the score is
entailment, neutral or contradiction, or a label beside premise and hypothesis that is the number of such a class
(0, 1, 2; -1 for none), rows of one premise are joined to triplets of it, what follows and what contradicts; see
`join_nli`. Other labels of few whole numbers may be classes or ratings, and are refused unless `columns` says that they
are scores. In CSV a list of texts is a cell with JSON, see `parse_csv_cell`; elsewhere a string is a text. Columns that
are not read are named, and one that may be a score, negatives or another text of the row is refused.
"""

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from bellm.data.own_files import PARTS
from bellm.errors import SourceError
from bellm.io.formats import EMPTY_WORDS, find_column, is_blank, parse_number, plain_name, quote_names, text_problem

Part = Literal["anchor", "positive", "negative", "score", "texts"]
ExampleColumns = Mapping[Part, str | Sequence[str]]
"""The column, or columns, of each part. Once it is given, no other column is read."""

Parts = dict[Part, tuple[str, ...]]

_NAMES: dict[Part, tuple[str, ...]] = {
    "anchor": (*PARTS["anchor"].split(), "question"),
    "positive": (*PARTS["positive"].split(), "positives", "pos"),
    "negative": ("negative", "negatives", "neg", "hardneg", "hardnegative", "hardnegatives"),
    "score": (*PARTS["score"].split(), "relevance", "label", "labels", "goldlabel", "gold"),
    "texts": ("texts",),
}
"""As `plain_name` gives them."""

_NUMBERED = re.compile(r"(hard)?neg(ative)?s?\d+")
_LIKELY: dict[Part, re.Pattern[str]] = {
    "negative": re.compile(
        r"neg|distract|wrong|incorrect|irrelevan|non ?relevan|unrelated|reject|contradict|opposit|antonym|decoy|"
        r"dissimilar|\b(hard|hn|bad|false|worse|losers?|foils?|candidates?)\b(?! (id|idx|index))"
    ),
    "score": re.compile(
        "score|label|rating|simil|relat(?:ed|ion)|relevan|duplicat|gold|target|distan|grade|judg|cosin|equivalen|quality|match|"
        r"entail|correct|class|logit|proba?b|confiden|weight|truth|agree|closeness|"
        r"\b(sim|rel|dist|gs|sts|stars?|y|value|mean|rank|is .*)\b(?! (id|idx|index))|\b(avg|average)$"
    ),
}
"""Words of columns that may be a part, in lower case, with spaces between; negatives first, as scores share some."""
_TEXTS = re.compile("sent|sentence|text|query|question|anchor|positive|passage|document|doc|answer|response")
"""What texts are called, with a number or a letter behind it where there are several."""
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ITEMS = rf"(?:(?:{_QUOTED}|null|None|nan|NaN)[\s,]*)*"
_SEVERAL = rf"\s*(?:{_QUOTED}\s*,\s*{_ITEMS})?"  # ("one") is a text in parentheses, ("one",) a tuple.
_LIST = re.compile(
    rf"\s*(?:(?:array\()?\[\s*{_ITEMS}\](?:, dtype=\w+)?\)?|\({_SEVERAL}\)|\{{{_SEVERAL}\}})\s*", re.DOTALL
)
"""Lists of strings as JSON has them, and lists, tuples, sets and arrays as Python writes them."""
_NLI: dict[str, "Part | None"] = {"entailment": "positive", "contradiction": "negative", "neutral": None, "-": None}
NLI_NUMBERS: dict[str, "Part | None"] = {"0": "positive", "1": None, "2": "negative", "-1": None}
"""What makes of a hypothesis the number of its class, as the data sets of the Hub number them."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row: an anchor, its positives, and either hard negatives or a similarity score."""

    anchor: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    score: float | None = None
    """Similarity of the anchor and its one positive; None where rows are not rated."""
    symmetric: bool = False
    """Each of anchor and positives may be the anchor: captions of one image, say."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Anchor, positives and negatives, in this order."""
        return (self.anchor, *self.positives, *self.negatives)

    def rotate(self, by: int) -> "Example":
        """A symmetric row with another of its texts as the anchor; any other row unchanged.

        >>> Example("a", ("b", "c"), symmetric=True).rotate(4)
        Example(anchor='b', positives=('c', 'a'), negatives=(), score=None, symmetric=True)
        """
        if not self.symmetric:
            return self
        texts = (self.anchor, *self.positives)
        start = by % len(texts)
        return replace(self, anchor=texts[start], positives=texts[start + 1 :] + texts[:start])


def text_key(text: str) -> int:
    """64-bit hash of a text without regard to case, whitespace and Unicode normal form.

    >>> text_key("Two  Dogs run.") == text_key("two dogs run. ")
    True
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), signed=True)


def match_columns(names: Sequence[str], columns: ExampleColumns | None = None) -> Parts:
    """Match a table's columns to the parts of an example, by their names unless `columns` says which to read.

    >>> match_columns(["sent0", "sent1", "hard_neg", "source"])
    {'anchor': ('sent0',), 'positive': ('sent1',), 'negative': ('hard_neg',)}
    """
    parts = _by_name(names) if columns is None else _as_told(names, columns)
    if "texts" in parts and len(parts) > 1:
        raise _unclear(f"texts and {' or '.join(name for name in parts if name != 'texts')} in one row", names)
    if "texts" not in parts and (missing := [part for part in ("anchor", "positive") if part not in parts]):
        raise _unclear(f"no column for {' or '.join(missing)}", names)
    if "score" in parts and "negative" in parts:
        raise _unclear("both negatives and a score, which no loss takes together", names)
    if columns is None:
        _refuse_likely(names, parts)
    return parts


def parse_example(cells: Mapping[str, object], parts: Parts) -> Example:
    """Make an example of a row's cells.

    >>> parse_example({"query": "sum", "pos": ["total"], "neg": None}, match_columns(["query", "pos", "neg"]))
    Example(anchor='sum', positives=('total',), negatives=(), score=None, symmetric=False)
    """
    if "texts" in parts:
        return mark_symmetric(_texts(cells, parts["texts"]))
    anchors, positives, negatives = (_texts(cells, parts.get(part, ())) for part in ("anchor", "positive", "negative"))
    if len(anchors) != 1:
        raise SourceError(f"{len(anchors) or 'no'} anchors. A row has one.")
    if not positives:
        raise SourceError("no positive. A row has one or more.")
    if both := {text_key(text) for text in negatives} & {text_key(text) for text in anchors + positives}:
        text = next(text for text in negatives if text_key(text) in both)
        raise SourceError(f"{text[:60]!r} is a negative, and the anchor or a positive as well.")
    score = _score(cells[parts["score"][0]]) if "score" in parts else None
    if score is not None and len(positives) > 1:
        raise SourceError("A score, and more than one positive. Give each pair a row of its own.")
    return Example(anchors[0], tuple(positives), tuple(negatives), score)


def parse_csv_cell(cell: str) -> object:
    """What a cell of CSV says: nothing, a list of texts written as JSON, or a text.

    Raises:
        SourceError: It is a list as Python writes one.

    >>> parse_csv_cell('["one", "two"]'), parse_csv_cell("NaN"), parse_csv_cell("one")
    (['one', 'two'], None, 'one')
    """
    if not _LIST.fullmatch(cell):
        return None if cell in EMPTY_WORDS else cell
    try:
        return json.loads(cell)
    except ValueError as error:
        raise SourceError(f'{cell[:60]!r} is a list, and not as JSON has it: write ["one", "two"].') from error


def mark_symmetric(texts: Sequence[str]) -> Example:
    """Make a symmetric example of texts that say the same; a text that occurs twice counts once."""
    different: dict[int, str] = {}
    for text in map(_text, texts):
        different.setdefault(text_key(text), text)
    if len(different) < 2:
        raise SourceError("Fewer than two different texts: there is nothing to compare.")
    anchor, *positives = different.values()
    return Example(anchor, tuple(positives), symmetric=True)


def parse_nli(cells: Mapping[str, object], parts: Parts, *, numbers: bool) -> Example | None:
    """A row whose score is an NLI class: premise with what follows or with what contradicts it; None for any other row.

    A neutral row has neither. `numbers` says whether 0, 1, 2 and -1 are classes too, where a column is the hypothesis.
    """
    if "score" not in parts:
        return None
    cell = nli_cell(cells[parts["score"][0]])
    numbers = numbers and numbers_are_classes(parts)
    classes = NLI_NUMBERS | _NLI if numbers else _NLI
    if cell not in classes:
        return None
    pair = parse_example(cells, {"anchor": parts["anchor"], "positive": parts["positive"]})
    part = classes[cell]
    return Example(
        pair.anchor, pair.positives if part == "positive" else (), pair.positives if part == "negative" else ()
    )


def is_label(column: str) -> bool:
    """Whether a column of this name may hold classes instead of scores."""
    return plain_name(column) in PARTS["label"].split()


def numbers_are_classes(parts: Parts) -> bool:
    """Whether the numbers of a row's score are classes of NLI: labels beside a hypothesis."""
    return "score" in parts and is_label(parts["score"][0]) and plain_name(parts["positive"][0]) == "hypothesis"


def nli_cell(value: object) -> str:
    """A class of NLI as it is compared: in lower case, and whole numbers without a fraction, which pandas adds."""
    return str(value).strip().lower().removesuffix(".0")


def join_nli(rows: Iterable[Example]) -> Iterator[Example]:
    """Triplets of each premise, a hypothesis that follows and one that contradicts, as supervised SimCSE takes them.

    Pairs of premise and what follows, where no premise has both. All rows are held in memory.

    >>> rows = [Example("A dog runs.", ("An animal moves.",)), Example("A dog runs.", (), ("A dog sleeps.",))]
    >>> list(join_nli(rows))[0].texts
    ('A dog runs.', 'An animal moves.', 'A dog sleeps.')
    """
    premises: dict[int, Example] = {}
    for row in rows:
        own = premises.setdefault(text_key(row.anchor), Example(row.anchor, ()))
        joined = replace(own, positives=own.positives + row.positives, negatives=own.negatives + row.negatives)
        premises[text_key(row.anchor)] = joined
    pairs_alone = not any(own.positives and own.negatives for own in premises.values())
    for own in premises.values():
        for positive, negative in itertools.zip_longest(own.positives, own.negatives):
            if positive is not None and pairs_alone:
                yield Example(own.anchor, (positive,))
            elif positive is not None and negative is not None and text_key(positive) != text_key(negative):
                yield Example(own.anchor, (positive,), (negative,))


def unread_columns(names: Iterable[str], parts: Parts) -> list[str]:
    """Columns that no part of an example is read from."""
    read = set(itertools.chain(*parts.values()))
    return [name for name in names if name not in read]


def _by_name(names: Sequence[str]) -> Parts:
    parts: Parts = {}
    for part, known in _NAMES.items():
        here = tuple(name for name in names if plain_name(name) in known)
        numbered = tuple(name for name in names if part == "negative" and _NUMBERED.fullmatch(plain_name(name)))
        if len(here) + bool(numbered) > 1:
            raise _unclear(f"more than one column could be the {part}: {quote_names(here + numbered)}", names)
        if here or numbered:
            parts[part] = here or numbered
    return parts


def _refuse_likely(names: Sequence[str], parts: Parts) -> None:
    """Refuse columns that may belong to the row, by their names, and would not be read."""
    unread = unread_columns(names, parts)
    for part, likely in _LIKELY.items():
        if part not in parts and (those := [name for name in unread if likely.search(_words(name))]):
            raise _unclear(f"{quote_names(those)} may be the {part}, and would not be read", names)
    read = {_stem(name) for part, those in parts.items() if part != "score" for name in those}
    if those := [name for name in unread if _stem(name) in read or _is_numbered_text(name)]:
        raise _unclear(f"{quote_names(those)} may be another text of the row, and would not be read", names)


def _words(name: str) -> str:
    """The words of a column's name, with a space between: `isDuplicate`, `is_duplicate` and `is duplicate` alike."""
    return " ".join(re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))).casefold()


def _stem(name: str) -> str:
    """What columns have in common that are numbered, or have a letter: sentence1, sentence_3 and SentenceB."""
    return re.sub(r"(?<=..)(\d+|[\W_]+[a-d]|(?<=[a-z])[A-D])$", "", name.strip()).rstrip("_- ").casefold()


def _is_numbered_text(name: str) -> bool:
    return _stem(name) != plain_name(name) and bool(_TEXTS.fullmatch(_stem(name)))


def _as_told(names: Sequence[str], columns: ExampleColumns) -> Parts:
    parts: Parts = {}
    for part, told in columns.items():
        if part not in get_args(Part):
            raise SourceError(f"{part!r} is no part of an example. Parts: {', '.join(get_args(Part))}.")
        parts[part] = tuple(find_column(names, name, part) for name in ([told] if isinstance(told, str) else told))
        if part in ("anchor", "score") and len(parts[part]) != 1:
            raise SourceError(f"{len(parts[part])} columns for the {part}, which has one.")
    return parts


def _unclear(what: str, names: Sequence[str]) -> SourceError:
    how = "Name those that count: --columns anchor=NAME,positive=NAME."
    return SourceError(f"{what}. Columns: {quote_names(names) or 'none'}. {how}")


def _texts(cells: Mapping[str, object], names: Sequence[str]) -> list[str]:
    """Texts of some cells; a cell that is empty or null holds none."""
    values = [cells[name] for name in names if cells[name] not in (None, "")]
    return [_text(text) for value in values for text in (value if isinstance(value, list) else [value])]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise SourceError(f"{repr(value)[:60]} is not a text.")
    if is_blank(value):
        raise SourceError("A text is empty.")
    if problem := text_problem(value):
        raise SourceError(problem)
    return value


def _score(value: object) -> float:
    if (score := parse_number(value)) is None:
        raise SourceError(f"The score {repr(value)[:60]} is not a finite number, as in 0.5.")
    return score
