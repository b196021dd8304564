"""Sets of words: rated pairs, and pairs that stand in a relation, from which analogies are made.

Read from a folder that holds any of these, as published: `eval-word-vectors/EN-*.txt` (Faruqui and Dyer 2014:
SimLex-999, WS-353, MEN, RW, SimVerb and more), `BATS_3.0/` (Gladkova et al. 2016),
`google_analogies/questions-words.txt` (Mikolov et al. 2013, arXiv 1301.3781) and `wordnet/data.*` (Fellbaum 1998, as
Princeton and Debian have them); each also under `word/`.

Shapes: N pairs, Q questions.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bellm.data.sources import DataSource, data_folder, read_lines
from bellm.data.sts import STSPairs
from bellm.errors import SourceError
from bellm.io.formats import parse_number

_SOURCE = DataSource(
    "A set of words",
    "https://github.com/mfaruqui/eval-word-vectors, https://vecto.space, https://aclweb.org/aclwiki and "
    "https://wordnet.princeton.edu",
)
_FOLDERS = ("eval-word-vectors", "BATS_3.0", "google_analogies", "wordnet")
_NAMES = {"SIMLEX-999": "SimLex-999", "MEN-TR-3k": "MEN", "RW-STANFORD": "RW", "SimVerb-3500": "SimVerb-3500"}

_POINTERS = {"!": "antonyms", "@": "hypernyms", "%p": "parts", "+": "derivations"}
"""Of WordNet's files, as its manual page wndb(5WN) describes them."""

WORDNET_PAIRS = 1000
"""The most of one relation: a random sample, the same each time."""


@dataclass(frozen=True)
class WordRelation:
    """Pairs of words in one relation: `heron` and `herons`, `good` and `better`."""

    name: str
    category: str
    pairs: tuple[tuple[str, tuple[str, ...]], ...]
    """A word, and all answers that are right; the first of them stands in other questions."""
    questions_Q2: NDArray[np.intp]
    """Two pairs each: as the first is to its answer, so is the second to what? None of WordNet."""

    def known(self, words: Collection[str]) -> "WordRelation":
        """The pairs of which the word and an answer are among some words, and their questions."""
        pairs: list[tuple[str, tuple[str, ...]]] = []
        position: dict[int, int] = {}
        for number, (word, answers) in enumerate(self.pairs):
            kept = tuple(answer for answer in answers if answer in words)
            if word in words and kept:
                position[number] = len(pairs)
                pairs.append((word, kept))
        rows = [(position[i], position[j]) for i, j in self.questions_Q2.tolist() if i in position and j in position]
        return WordRelation(self.name, self.category, tuple(pairs), np.array(rows, dtype=np.intp).reshape(-1, 2))

    @property
    def words(self) -> list[str]:
        """All words, each once."""
        return list(dict.fromkeys(word for first, answers in self.pairs for word in (first, *answers)))


def read_rated_words(folder: Path | None, *, lowercase: bool = False) -> list[STSPairs]:
    """Read every set of rated pairs of words that is there."""
    sets = []
    for file in sorted(_word_folder(folder).glob("eval-word-vectors/EN-*.txt")):
        left, right, gold = list[str](), list[str](), list[float]()
        for line in read_lines(file):
            cells = (line.text.lower() if lowercase else line.text).split()
            rating = parse_number(cells[2]) if len(cells) == 3 else None
            if rating is not None:
                left.append(cells[0])
                right.append(cells[1])
                gold.append(rating)
            elif cells:
                raise SourceError(f"{line.location}: {line.text!r:.60} is not two words and a rating.")
        name = file.stem.removeprefix("EN-")
        name = _NAMES.get(name, name)
        sets.append(STSPairs(name, tuple(left), tuple(right), np.array(gold, np.float64), (name,) * len(gold)))
    return sets


def read_relations(folder: Path | None, *, lowercase: bool = False) -> list[WordRelation]:
    """Read the relations of BATS, every two pairs a question, Google's set with its own questions, and WordNet."""
    top = _word_folder(folder)
    relations = [_read_bats(file, lowercase) for file in sorted(top.glob("BATS_3.0/*/*.txt"))]
    google = top / "google_analogies" / "questions-words.txt"
    relations += _read_google(google, lowercase) if google.is_file() else ()
    return [*relations, *_read_wordnet(sorted(top.glob("wordnet/data.*")))]


def _word_folder(folder: Path | None) -> Path:
    top = data_folder(folder, _SOURCE)
    assert top is not None  # There is no copy on the Hub.
    for place in (top, top / "word"):
        if any((place / name).is_dir() for name in _FOLDERS):
            return place
    raise SourceError(
        f"{top} holds no words: none of the folders {', '.join(_FOLDERS[:-1])} and {_FOLDERS[-1]}, also not under "
        f"word/. Get them from {_SOURCE.address}."
    )


def _read_bats(file: Path, lowercase: bool) -> WordRelation:
    pairs = []
    for line in read_lines(file):
        word, tab, answers = (line.text.lower() if lowercase else line.text).replace("_", " ").partition("\t")
        if line.text.strip() and not tab:
            raise SourceError(f"{line.location}: {line.text!r:.60} is not a word, a tab and its answers.")
        if found := tuple(filter(None, (answer.strip() for answer in answers.split("/")))):
            pairs.append((word.strip(), found))
    numbers = range(len(pairs))
    questions = [(i, j) for i in numbers for j in numbers if i != j]
    category = f"BATS {file.parent.name.partition('_')[2].replace('_', ' ').lower()}"
    return WordRelation(file.stem, category, tuple(pairs), np.array(questions, dtype=np.intp).reshape(-1, 2))


def _read_google(file: Path, lowercase: bool) -> Iterator[WordRelation]:
    sections: dict[str, list[list[str]]] = {}
    name = ""
    for line in read_lines(file):
        if line.text.startswith(":"):
            name = line.text[1:].strip()
        elif len(cells := (line.text.lower() if lowercase else line.text).split()) == 4 and name:
            sections.setdefault(name, []).append(cells)
        elif cells:
            raise SourceError(f"{line.location}: {line.text!r:.60} is not a question of four words.")
    for name, questions in sections.items():
        numbers: dict[tuple[str, str], int] = {}
        rows = [
            [numbers.setdefault((word, answer), len(numbers)) for word, answer in (cells[:2], cells[2:])]
            for cells in questions
        ]
        kind = "morphology" if name.startswith("gram") else "semantics"
        pairs = tuple((word, (answer,)) for word, answer in numbers)
        yield WordRelation(name, f"Google {kind}", pairs, np.array(rows, dtype=np.intp))


def _read_wordnet(files: list[Path]) -> Iterator[WordRelation]:
    """Pairs of single words in each relation: two of one synset, or those that pointers lead to."""
    words: dict[tuple[str, str], list[str]] = {}
    pointers: list[tuple[str, tuple[str, str], tuple[str, str], int, int]] = []
    for file in files:
        for line in read_lines(file):
            if line.text.startswith(" "):  # The license.
                continue
            try:
                key, here, leading = _read_synset(line.text)
            except (ValueError, IndexError):
                raise SourceError(f"{line.location}: {line.text!r:.60} is no synset of WordNet.") from None
            words[key] = here
            pointers += ((symbol, key, target, i, j) for symbol, target, i, j in leading if symbol in _POINTERS)
    found: dict[str, list[tuple[str, str]]] = {
        "synonyms": [pair for one in words.values() for pair in combinations(one, 2)]
    }
    for symbol, source, target, i, j in pointers:
        if target in words:
            found.setdefault(_POINTERS[symbol], []).append((words[source][i], words[target][j]))
    for name, pairs in found.items():
        kept = {frozenset(pair): pair for pair in pairs if pair[0] != pair[1] and all(map(_is_plain, pair))}.values()
        draw = np.random.default_rng(0)
        chosen = draw.permutation(len(kept))[:WORDNET_PAIRS]
        listed = list(kept)
        if len(chosen):
            sampled = tuple((listed[at][0], (listed[at][1],)) for at in chosen.tolist())
            yield WordRelation(name, f"WordNet {name}", sampled, np.zeros((0, 2), dtype=np.intp))


def _read_synset(line: str) -> tuple[tuple[str, str], list[str], list[tuple[str, tuple[str, str], int, int]]]:
    """A synset's key, its words, and its pointers: symbol, key, and which word of one leads to which of the other."""
    offset, _, kind, count, *cells = line.partition("|")[0].split()
    num_words = int(count, 16)
    here = [word.partition("(")[0] for word in cells[: 2 * num_words : 2]]
    start = 2 * num_words + 1
    quads = [cells[at : at + 4] for at in range(start, start + 4 * int(cells[start - 1]), 4)]
    # 0000 is a pointer of the whole synset: its first word stands for it. Heads and satellites share a file.
    leading = [
        (symbol, (target, part), max(int(between[:2], 16) - 1, 0), max(int(between[2:], 16) - 1, 0))
        for symbol, target, part, between in quads
    ]
    return (offset, kind.replace("s", "a")), here, leading


def _is_plain(word: str) -> bool:
    return word.isalpha() and word.islower()
