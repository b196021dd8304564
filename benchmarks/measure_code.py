"""Measure the package as code: sizes, types, import cycles, names that stand twice, places that list the settings.

python benchmarks/measure_code.py [ROOT ...]: a column for each checkout, this one by default.
"""

import argparse
import ast
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

SETTINGS = ("bidirectional", "window", "pooling", "layer", "max_tokens")
"""Settings that have had the same name from the start: a file that lists them all in a row repeats EncoderConfig."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Print one row for each measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--quick", action="store_true", help="as without: it takes a second")
    columns = {str(root): measure(root / "bellm") for root in parser.parse_args().roots}
    table = Table("measure", *columns, box=None)
    for name in next(iter(columns.values())):
        table.add_row(name, *(str(column[name]) for column in columns.values()))
    Console().print(table)


def measure(package: Path) -> dict[str, object]:
    """All measures of one package."""
    trees = {path.relative_to(package): ast.parse(path.read_text("utf-8")) for path in sorted(package.rglob("*.py"))}
    lines = {path: len((package / path).read_text("utf-8").splitlines()) for path in trees}
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]
    lengths = sorted(map(length, functions))
    names = Counter(name for tree in trees.values() for name in public_names(tree))
    stems = Counter(path.stem for path in trees if not path.stem.startswith("__"))
    return {
        "modules": len(trees),
        "lines": sum(lines.values()),
        "lines without docstrings, comments and blanks": sum(code_lines(package / path) for path in trees),
        "median file": round(statistics.median(lines.values())),
        "longest file": "{1} {0}".format(*max(lines.items(), key=lambda item: item[1])),
        "functions": len(functions),
        "median function": round(statistics.median(lengths)),
        "90 % of functions are at most": lengths[int(0.9 * len(lengths))],
        "typed": f"{100 * sum(map(is_typed, functions)) / len(functions):.0f} %",
        "import cycles": len(cycles(imports(trees))),
        "module names that stand twice": sum(count > 1 for count in stems.values()),
        "public names that stand twice": sum(count > 1 for count in names.values()),
        "files that list the settings": len([path for path, tree in trees.items() if lists_settings(tree)]),
    }


def code_lines(path: Path) -> int:
    """Lines of a file that hold code."""
    return len(ast.unparse(without_docstrings(ast.parse(path.read_text("utf-8")))).splitlines())


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree without strings that stand alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            kept = [
                part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
            node.body = kept or [ast.Pass()]
    return tree


def length(function: Function) -> int:
    """Lines of a function without its docstring."""
    assert function.end_lineno
    documented = ast.get_docstring(function) is not None
    first = function.body[0]
    return function.end_lineno - function.lineno + 1 - (documented and (first.end_lineno or 0) - first.lineno + 1)


def is_typed(function: Function) -> bool:
    """Whether every argument and the result have a type."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return function.returns is not None and all(one.annotation or one.arg in ("self", "cls") for one in every)


def public_names(tree: ast.Module) -> Iterator[str]:
    """Functions and classes at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def imports(trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Modules that each module imports when it is imported."""
    modules = {"bellm." + ".".join(path.with_suffix("").parts): tree for path, tree in trees.items()}
    modules = {name.removesuffix(".__init__"): tree for name, tree in modules.items()}
    found: dict[str, set[str]] = {}
    for name, tree in modules.items():
        named: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{one.name}" for one in node.names]
                named.update(one if one in modules else node.module for one in inner)
        found[name] = named & modules.keys() - {name}
    return found


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves by way of others."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            if (name := ahead.pop()) not in seen:
                seen.add(name)
                ahead += graph[name]
        return seen

    return [name for name in graph if name in reachable(name)]


def lists_settings(tree: ast.Module) -> bool:
    """Whether a signature, call, class or literal of the module names all settings in a row."""
    for node in ast.walk(tree):
        words: set[str | None] = set()
        if isinstance(node, Function):
            words = {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
        elif isinstance(node, ast.Call):
            words = {one.arg for one in node.keywords}
        elif isinstance(node, ast.ClassDef):
            words = {
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            }
        elif isinstance(node, ast.Dict):
            words = {one.value for one in node.keys if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        elif isinstance(node, ast.Tuple | ast.List):
            words = {one.value for one in node.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        if set(SETTINGS) <= words:
            return True
    return False


if __name__ == "__main__":
    main()
