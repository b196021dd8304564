"""AMR graphs: one line for each, whatever its variables are called, with the whole graph; and files of graphs."""

import gzip
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import penman
import pytest

from bellm.data.amr import Graphs, fingerprint_graphs, linearize, read_graphs
from bellm.errors import BellmWarning, SourceError
from bellm.saved_encoder import FINGERPRINT_TEXTS

TWO = """# ::id 1 ::annotator nobody
# ::snt The otter wants to swim.
(w / want-01 :ARG0 (o / otter)
    :ARG1 (s / swim-01 :ARG0 o))

# ::snt Otters swim.
(s / swim-01
    :ARG0 (o / otter))
"""
WANTING = "(w / want-01 :ARG0 (o / otter) :ARG1 (s / swim-01 :ARG0 o))"
WANTS, SWIM = "(want-01 :ARG0 (<0> otter) :ARG1 (swim-01 :ARG0 <0>))", "(swim-01 :ARG0 (otter))"


@pytest.fixture(scope="module")
def little_prince(data: Path) -> list[Any]:
    """1562 graphs of the AMR bank."""
    with (data / "amr" / "little_prince" / "amr-bank-struct-v3.0.txt").open(encoding="utf-8") as file:
        return [tree for tree in penman.iterparse(file) if "snt" in tree.metadata]


def renamed(tree: Any, names: Iterator[str]) -> Any:
    """The same tree with other variables."""
    new = {variable: next(names) for variable, _ in tree.nodes()}

    def walk(node: Any) -> Any:
        variable, branches = node
        return new[variable], [
            (role, walk(target) if isinstance(target, tuple) else target if role == "/" else new.get(target, target))
            for role, target in branches
        ]

    return penman.Tree(walk(tree.node), tree.metadata)


def triples_of(graph: str) -> set[tuple[Any, ...]]:
    """Triples of a graph in PENMAN notation, its variables numbered, without :wiki."""
    tree = penman.parse(graph)
    tree.reset_variables("v{i}")
    return {triple for triple in penman.interpret(tree).triples if triple[1] != ":wiki"}


def with_variables(line: str) -> str:
    """PENMAN notation of a line: pointers are variables, and nodes without one get theirs."""
    free = (f"free{number} / " for number in itertools.count())
    strings: list[str] = []

    def keep(match: re.Match[str]) -> str:
        strings.append(match[0])
        return f"STRING{len(strings) - 1}."

    line = re.sub(r'"(?:[^"\\]|\\.)*"', keep, line)
    line = re.sub(r"\((<\d+> )?", lambda match: f"({match[1].strip() + ' / ' if match[1] else next(free)}", line)
    line = re.sub(r"<(\d+)>", r"shared\1", line)
    return re.sub(r"STRING(\d+)\.", lambda match: strings[int(match[1])], line)


# Linearisation


@pytest.mark.parametrize(
    ("graph", "line"),
    [
        ("(s / snow)", "(snow)"),
        (WANTING, WANTS),
        ("(a / and :op1 b :op2 (b / b :mod a))", "(<0> and :op1 <1> :op2 (<1> b :mod <0>))"),
        ("(i / i :polarity - :quant 6)", "(i :polarity - :quant 6)"),
        ('(c / city :wiki "Ely (x)" :name (n / name :op1 "E~l.1"~e.4))', '(city :name (name :op1 "E~l.1"))'),
        ("(d / dig-01~e.2 :ARG0~e.1,3 (m / mole~2))", "(dig-01 :ARG0 (mole))"),
    ],
)
def test_a_graph_is_one_line_without_variables(graph: str, line: str) -> None:
    assert linearize(graph) == line


def test_names_of_variables_change_nothing(little_prince: list[Any]) -> None:
    assert len(little_prince) == 1562
    for number, tree in enumerate(little_prince):
        line = linearize(penman.format(tree))
        for names in (
            (f"z{i}" for i in itertools.count()),
            (f"q{(i * 7919 + number) % 10007}" for i in itertools.count()),
        ):
            assert linearize(penman.format(renamed(tree, names))) == line


def test_the_line_has_the_whole_graph(little_prince: list[Any]) -> None:
    for tree in little_prince:
        graph = penman.format(tree)
        assert triples_of(with_variables(linearize(graph))) == triples_of(graph), graph


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ("(w / want-01 :ARG0 (o / otter)", "parentheses do not match"),
        ("(w / want-01))", "parentheses do not match"),
        ("(w / want-01) and more", "parentheses do not match"),
        ("an otter", "parentheses do not match"),
        ("()", "has no concept"),
        ("(w :ARG0 (o / otter))", "the node w has no concept"),
        ("(w / )", "nothing follows /"),
        ("(w / want-01 :ARG0)", "nothing follows :ARG0 in the node w"),
        ("(w want-01)", "Expected: ROLE"),
        ("(w / want-01 :ARG0 (w / otter))", "two nodes have the name w"),
        ("(w / want-01) (o / otter)", "holds 2 graphs"),
        ("# only a comment", "holds 0 graphs"),
        (f"{'(a / b :c ' * 3000}d{')' * 3000}", "(two nodes have the name a|nested too deep)"),
    ],
)
def test_what_is_no_graph_is_refused(graph: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match=said):
        linearize(graph)
    assert capfd.readouterr() == ("", "")


# Files


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("otters.amr", TWO),
        ("otters.txt", "# AMR release; generated by nobody\n\n" + TWO.replace("\n", "\r\n")),
        ("otters.penman.gz", TWO.rstrip("\n")),
        ("otters.jsonl", f'{{"text": "The otter wants to swim.", "graph": "{WANTING}"}}\n{{"text": "Otters swim.", '
         '"graph": "(a / swim-01 :ARG0 (b / otter))"}\n'),
        ("otters.csv", f"snt,amr\nThe otter wants to swim.,{WANTING}\nOtters swim.,(a / swim-01 :ARG0 (b / otter))\n"),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_gives_texts_their_graphs(tmp_path: Path, name: str, content: str) -> None:
    graphs = read_graphs(write(tmp_path / name, content))
    assert [graphs(text) for text in ("The otter wants to swim.", "Otters  swim. ", "A mole.")] == [
        WANTS, SWIM, "A mole.",
    ]  # fmt: skip
    assert graphs.num_missing(["Otters swim.", "A mole.", "A mole."]) == 2
    assert graphs.digest == Graphs({"Otters swim.": SWIM, "The otter wants to swim.": WANTS}, "").digest
    assert graphs.digest != Graphs({"Otters swim.": WANTS, "The otter wants to swim.": WANTS}, "").digest


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("g.amr", TWO.replace("o))", "o)"), r"g\.amr, the graph at line 1: it begins with '\(w / want-01"),
        ("g.amr", TWO.replace("(o / otter))\n", "(o otter))\n"), r"g\.amr, the graph at line 6: "),
        ("g.amr", f"{TWO}\n# ::snt Otters swim.\n(o / otter)\n", "line 10: .* has another graph than in line 6"),
        ("g.amr", "# nothing here\n", "g.amr holds no graphs of texts"),
        ("g.jsonl", '{"text": "A", "graph": "(a / b"}\n', r"g\.jsonl, line 1: it begins with"),
        ("g.jsonl", '{"text": "A", "graph": 4}\n', r"g\.jsonl, line 1: "),
        ("g.jsonl", '{"text": "A", "other": "(a / b)"}\n', "graph"),
        ("g.jsonl", '["(a / b)"]\n', "no columns"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_hold_is_one_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        read_graphs(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.amr cannot be read: No such file"):
        read_graphs(tmp_path / "none.amr")


def test_the_same_graph_twice_is_one(tmp_path: Path) -> None:
    again = TWO + "\n# ::snt Otters swim.\n(a / swim-01 :ARG0 (b / otter))\n"
    assert read_graphs(write(tmp_path / "g.amr", again)).digest == read_graphs(write(tmp_path / "h.amr", TWO)).digest


def test_graphs_without_a_text_are_left_out_and_named(tmp_path: Path) -> None:
    with pytest.warns(BellmWarning, match=r"g\.amr: graphs without ::snt are left out: 1, the first at line 1\."):
        graphs = read_graphs(write(tmp_path / "g.amr", f"#\n# an example\n(s / snow)\n\n{TWO}"))
    assert len(graphs.by_text) == 2


def test_every_text_of_the_fingerprint_has_a_graph() -> None:
    assert [text in fingerprint_graphs() for text in FINGERPRINT_TEXTS] == [True] * len(FINGERPRINT_TEXTS)
    assert len({fingerprint_graphs()(text) for text in FINGERPRINT_TEXTS} - {*FINGERPRINT_TEXTS}) == 4
