"""The floors of docs/architecture.md: a file imports only from floors below it or from its own room."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bellm"

FLOORS = (
    {"errors", "types", "version"},
    {"extras", "tensors", "layer_spec", "prompts", "io", "progress", "hints"},
    {"config", "backbone", "data", "report"},
    {"saved_encoder"},
    {"engine", "saving", "run_dir", "config_resolution", "encode_options"},
    {"encoder"},
    {"metadata", "pool", "multiview"},
    {"text_files", "doctor"},
    {"corpus", "evaluate", "train", "integrations"},
    {"analyse", "layer_search", "demonstrations", "compress", "export", "augment", "serve"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {"__init__", "__main__"}

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = ARCHITECTURE.split("```")[1]

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem not in DOORS]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Rooms of bellm that a file imports, at its top, in functions and for types alike."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("bellm.") and name.split(".")[1] in FLOOR_OF}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_downwards(path: Path) -> None:
    room = room_of(path)
    for other in imports_of(path) - {room}:
        assert FLOOR_OF[other] < FLOOR_OF[room], f"{room} imports {other}"


def test_every_room_stands_on_a_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


def test_the_picture_has_every_room_on_its_floor() -> None:
    shown: dict[str, int] = {}
    floor = len(FLOORS)
    for number, room in re.findall(r"^(\d\d|\d |  ) (\w+)(?:/|\.py) ", PICTURE, re.MULTILINE):
        floor = int(number) if number.strip() else floor
        shown[room] = floor
    assert shown == FLOOR_OF


def test_the_picture_names_every_module_once() -> None:
    modules = sorted(path.name for path in FILES if path.stem not in DOORS)
    assert sorted(re.findall(r"\w+\.py\b", PICTURE)) == modules


@pytest.mark.parametrize("title", ["Text to vector", "One training step", "One task's score"])
def test_a_walk_names_each_file_once_and_what_is_in_it(title: str) -> None:
    walk = ARCHITECTURE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d+\. `([\w/]+\.py)`: ((?:.|\n {3})*)", walk, re.MULTILINE)
    files = [file for file, _ in steps]
    assert len(files) > 10
    assert len(files) == len(set(files)) == len(re.findall(r"^\d+\. ", walk, re.MULTILINE))
    for file, said in steps:
        named = re.findall(r"`([a-zA-Z_]+)(?:\.([a-z_]+))?`", said)
        code = (PACKAGE / file).read_text(encoding="utf-8")
        assert all(re.search(rf"\b{name}\b", code) for names in named for name in names if name), file


def test_nothing_prints_below_the_command_line() -> None:
    for path in FILES:
        if room_of(path) != "cli":
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path


def test_all_warnings_are_given_by_one_function() -> None:
    """By `errors.warn`, which finds the line of the caller."""
    for path in FILES:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        named = [call for call in calls if isinstance(call, ast.Attribute) and call.attr in ("warn", "warn_explicit")]
        assert len(named) == (path.name == "errors.py"), path


def test_no_message_shows_the_repr_of_an_exception() -> None:
    """A message is a sentence: what Python's repr of an exception says belongs into it in words."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.name:
                shown = [part for part in ast.walk(node) if isinstance(part, ast.FormattedValue)]
                names = [
                    part.value.id for part in shown if part.conversion == ord("r") and isinstance(part.value, ast.Name)
                ]
                assert node.name not in names, f"{path}, line {node.lineno}"


@pytest.mark.parametrize(
    "module",
    [
        "bellm.cli",
        "bellm.corpus.row_ranges",
        "bellm.data",
        "bellm.io.vectors",
        "bellm.backbone.source_names",
        "bellm.saved_encoder",
        "bellm.engine.graph_encoder",
    ],
)
def test_what_needs_no_model_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert run([sys.executable, "-c", program]).returncode == 0


def names_of(node: ast.stmt) -> list[str]:
    """Names that a statement defines: a function, a class, or what is assigned to."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def definitions() -> dict[str, list[str]]:
    """Modules that define each public name at their top."""
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for name in names_of(node):
                if not name.startswith("_"):
                    found.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    return found


def test_no_two_public_names_are_alike() -> None:
    assert {name: paths for name, paths in definitions().items() if len(paths) > 1} == {}


def test_no_module_name_stands_twice() -> None:
    stems = Counter(path.stem for path in FILES if path.stem not in DOORS)
    rooms = {path.name for path in PACKAGE.rglob("*") if (path / "__init__.py").exists()}
    assert [name for name, count in stems.items() if count > 1 or name in rooms] == []
