"""AMR graphs of texts: a sidecar file that has them, and their linearisation as the text of a view (MSE-AMR).

Abstract Meaning Representation writes what a sentence says as a graph, in PENMAN notation. No parser is part of bellm:
graphs come from a file that some parser wrote.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from os import PathLike, fspath
from typing import Any

from bellm.errors import BellmWarning, SourceError, warn
from bellm.extras import require_extra
from bellm.io.formats import FORMATS, find_column, is_blank, plain_name, same_columns, text_problem
from bellm.io.rows import RowFile
from bellm.io.streams import content_suffix

_SILENT = logging.NullHandler()
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAMED = re.compile(r"^# ::snt (.*)$", re.MULTILINE)
_ALIGNMENT = re.compile(r"~(?:[a-z]\.?)?\d+(?:,\d+)*$")
_COLUMNS = {"text": ("text", "snt", "sentence"), "graph": ("graph", "amr", "penman")}

# Of the texts of `saved_encoder.FINGERPRINT_TEXTS`: a change of the linearisation shows as another fingerprint.
_FINGERPRINT_PENMAN = """
# ::snt A heron stands in the shallow water.
(s / stand-01 :ARG1 (h / heron) :location (w / water :ARG1-of (s2 / shallow-04)))

# ::snt The invoice was paid twice by mistake.
(p / pay-01 :ARG1 (i / invoice) :frequency 2 :manner (m / mistake-02 :ARG1 p))

# ::snt Why does bread rise when it is left in a warm kitchen?
(c / cause-01 :ARG0 (a / amr-unknown) :ARG1 (r / rise-01 :ARG1 (b / bread) :time (l / leave-13 :ARG1 b
    :ARG2 (k / kitchen :ARG1-of (w / warm-06)))))

# ::snt Snow
(s / snow)
"""


@dataclass(frozen=True)
class Graphs:
    """Linearised graphs by their texts, which are compared without regard to whitespace.

    >>> graphs = Graphs({"A dog barks.": linearize("(b / bark-01 :ARG0 (d / dog))")}, "dogs.amr")
    >>> graphs("A dog  barks."), graphs("A cat sleeps.")
    ('(bark-01 :ARG0 (dog))', 'A cat sleeps.')
    """

    by_text: Mapping[str, str]
    source: str
    """The file that they come from, for messages."""

    def __call__(self, text: str) -> str:
        """The graph of a text; the text itself where there is none."""
        return self.by_text.get(_key(text), text)

    def __contains__(self, text: str) -> bool:
        return _key(text) in self.by_text

    def num_missing(self, texts: Iterable[str]) -> int:
        """How many texts have no graph."""
        return sum(text not in self for text in texts)

    @cached_property
    def digest(self) -> str:
        """Of all texts and graphs, in whatever order they came."""
        return hashlib.sha256(json.dumps(sorted(self.by_text.items())).encode()).hexdigest()[:32]


def read_graphs(path: str | PathLike[str]) -> Graphs:
    """Read the graphs of texts: a PENMAN file whose graphs have `# ::snt`, or a table with the columns text and graph.

    Tables are those that bellm reads elsewhere (.jsonl, .csv, .parquet, ...); all other files are PENMAN, graphs with
    an empty line between. The file may be compressed.

    Raises:
        SourceError: It cannot be read, holds no graph of a text, a broken one (with its line), or two of one text.
        MissingExtraError: The library penman is not installed.

    Warns:
        BellmWarning: Graphs have no `::snt`, and are left out.
    """
    require_extra("amr", "Reading AMR graphs")
    name, suffix = fspath(path), content_suffix(fspath(path))
    entries = _table_entries(name) if suffix in FORMATS and suffix != ".txt" else _penman_entries(name)
    found: dict[str, tuple[str, str]] = {}
    for location, text, graph in entries:
        key = _key(text)
        first, known = found.setdefault(key, (location, graph))
        if known != graph:
            raise SourceError(
                f"{name}, {location}: {text[:60]!r} has another graph than in {first}. A text has one: remove the "
                "other."
            )
    if not found:
        raise SourceError(
            f"{name} holds no graphs of texts. Give graphs in PENMAN notation below lines '# ::snt TEXT'."
        )
    return Graphs({key: graph for key, (_, graph) in found.items()}, name)


def find_graphs(files: Sequence[str | PathLike[str]], texts: Iterable[str]) -> Graphs:
    """Graphs of some texts from PENMAN files; graphs of other texts are not parsed, and of several the first counts.

    Texts are compared by their letters and digits alone: published sets are tokenized in different ways.

    Raises:
        SourceError: A file cannot be read, or the graph of one of the texts is broken.
        MissingExtraError: The library penman is not installed.
    """
    require_extra("amr", "Reading AMR graphs")
    wanted: dict[str, list[str]] = {}
    for text in set(texts):
        wanted.setdefault(plain_name(text), []).append(_key(text))
    found: dict[str, str] = {}
    names = [fspath(file) for file in files]
    for file in names:
        for first, block in _blocks(file):
            named = _NAMED.search(block)
            keys = wanted.pop(plain_name(named[1]), []) if named else []
            if keys:
                try:
                    found.update((key, graph) for _, graph in _entries(block) for key in keys)
                except SourceError as error:
                    raise SourceError(f"{file}, the graph at line {first}: {error}") from error
    return Graphs(found, ", ".join(names))


@cache
def fingerprint_graphs() -> Graphs:
    """Graphs of the texts of an encoder's fingerprint, which no file has to have."""
    require_extra("amr", "Reading AMR graphs")
    entries = (entry for block in _FINGERPRINT_PENMAN.split("\n\n") for entry in _entries(block))
    return Graphs({_key(str(text)): graph for text, graph in entries}, "bellm")


def linearize(penman: str) -> str:
    """One graph in PENMAN notation as one line, depth first, without `:wiki`.

    Variables go. A node that is named again has a pointer in their place, numbered in the order in which they come; so
    graphs that differ in the names of their variables alone are the same text. The line has the whole graph.

    >>> linearize("(w / want-01 :ARG0 (b / boy :wiki -) :ARG1 (g / go-02 :ARG0 b))")
    '(want-01 :ARG0 (<0> boy) :ARG1 (go-02 :ARG0 <0>))'

    Raises:
        SourceError: It is no graph, or more than one.
    """
    require_extra("amr", "Reading AMR graphs")
    graphs = [graph for _, graph in _entries(penman)]
    if len(graphs) != 1:
        raise SourceError(f"{penman[:60]!r} holds {len(graphs)} graphs in PENMAN notation: give one.")
    return graphs[0]


def warn_missing_graphs(num_missing: int, num_texts: int) -> None:
    """Tell the caller of bellm that texts have no graph."""
    if num_missing:
        message = f"{num_missing} of {num_texts} texts have no AMR graph, and are read as they are."
        warn(message, BellmWarning)


def _key(text: str) -> str:
    return " ".join(text.split())


def _table_entries(file: str) -> Iterator[tuple[str, str, str]]:
    """Location, text and graph of every row."""
    names: dict[str, str] = {}

    def select(columns: Any) -> list[str]:
        for part, usual in _COLUMNS.items():
            wanted = next((name for name in usual if same_columns(columns, name)), part)
            names[part] = find_column(columns, wanted, part)
        return list(names.values())

    for row in RowFile(file).rows(select, strict=True, skip_blank=True):
        if not isinstance(row.cells, dict):
            raise SourceError(f"{file}, {row.location}: it has no columns. Give the columns text and graph.")
        text, penman = (row.cells[names[part]] for part in _COLUMNS)
        if problem := text_problem(text) or text_problem(penman):
            raise SourceError(f"{file}, {row.location}: {problem}")
        try:
            yield row.location, text, linearize(penman)
        except SourceError as error:
            raise SourceError(f"{file}, {row.location}: {error}") from error


def _penman_entries(file: str) -> Iterator[tuple[str, str, str]]:
    """Location, text and graph of every graph that has `::snt`."""
    nameless: list[str] = []
    for first, block in _blocks(file):
        location = f"line {first}"
        try:
            for text, graph in _entries(block):
                if text is None:
                    nameless.append(location)
                else:
                    yield location, text, graph
        except SourceError as error:
            raise SourceError(f"{file}, the graph at {location}: {error}") from error
    if nameless:
        message = f"{file}: graphs without ::snt are left out: {len(nameless)}, the first at {nameless[0]}."
        warn(message, BellmWarning)


def _blocks(file: str) -> Iterator[tuple[int, str]]:
    """Lines between empty ones, with the number of the first."""
    lines: list[str] = []
    number = 0
    for number, row in enumerate(RowFile(file).lines(strict=True), 1):
        line = str(row.cells)
        if is_blank(line):
            if lines:
                yield number - len(lines), "\n".join(lines)
            lines = []
        else:
            lines.append(line)
    if lines:
        yield number - len(lines) + 1, "\n".join(lines)


def _entries(block: str) -> Iterator[tuple[str | None, str]]:
    """Text, if it is given, and linearised graph of all graphs in PENMAN notation, which may have comments."""
    import penman

    logging.getLogger("penman").addHandler(_SILENT)  # What it warns of is raised here.
    body = "\n".join(line for line in block.split("\n") if not line.startswith("#")).strip()
    if not body:
        return
    bare = _STRING.sub("", body)  # What penman would pass over: what stands around graphs.
    if not (bare.startswith("(") and bare.endswith(")") and bare.count("(") == bare.count(")")):
        raise SourceError(f"it begins with {body[:40]!r}, and its parentheses do not match.")
    try:
        for tree in penman.iterparse(block):
            yield tree.metadata.get("snt"), _Linearizer(tree.node).line
    except penman.DecodeError as error:
        raise SourceError(f"{error.message} in {str(error.text).strip()[:60]!r}.") from error
    except RecursionError as error:
        raise SourceError("its nodes are nested too deep.") from error


class _Linearizer:
    """Writes the nodes of a tree of penman: a variable, and branches of role and target, which may be a node."""

    def __init__(self, root: Any) -> None:
        self._variables: set[str] = set()
        self._targets: set[str] = set()
        self._pointers: dict[str, str] = {}
        self._look(root)
        self.line = self._write(root)

    def _look(self, node: Any) -> None:
        variable, branches = node
        if variable in self._variables:
            raise SourceError(f"two nodes have the name {variable}.")
        self._variables.add(variable)
        if not branches or branches[0][0] != "/":
            raise SourceError(f"the node {variable} has no concept.")
        for role, target in branches:
            if target is None:
                raise SourceError(f"nothing follows {role} in the node {variable}.")
            if isinstance(target, tuple):
                self._look(target)
            elif role != "/":
                self._targets.add(_bare(target))

    def _write(self, node: Any) -> str:
        variable, branches = node
        parts = [self._pointer(variable)] if variable in self._targets else []
        for role, target in branches:
            if (role := _bare(role)) == ":wiki":
                continue
            parts += [role] if role != "/" else []
            if isinstance(target, tuple):
                parts.append(self._write(target))
            else:
                target = _bare(target)
                parts.append(self._pointer(target) if role != "/" and target in self._variables else target)
        return f"({' '.join(parts)})"

    def _pointer(self, variable: str) -> str:
        return self._pointers.setdefault(variable, f"<{len(self._pointers)}>")


def _bare(symbol: str) -> str:
    """A role or target without the words of the sentence that it is aligned with."""
    return _ALIGNMENT.sub("", symbol)
