"""Check that the packages of an optional extra are installed, before a package of bellm needs them."""

import ast
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import getsource
from typing import Any

from bellm.errors import MissingExtraError

_IMPORTS = {
    "amr": ("penman",),
    "train": ("peft", "accelerate", "datasets", "filelock", "pyarrow"),
    "evaluate": ("scipy", "sklearn", "datasets", "jinja2", "pyarrow", "pytrec_eval"),
    "corpus": ("pyarrow", "filelock", "lancedb"),
    "serve": ("orjson", "prometheus_client", "pydantic", "starlette", "uvicorn"),
    "export": ("gguf", "model2vec", "onnx", "onnxruntime", "onnxscript", "openvino", "sentence_transformers"),
}
"""What each extra of pyproject.toml makes importable."""

_PACKAGES = (
    "analyse",
    "augment",
    "compress",
    "corpus",
    "data",
    "evaluate",
    "export",
    "integrations",
    "layer_search",
    "serve",
    "train",
)
"""Public packages, which are attributes of `bellm` once asked for."""


def require_extra(extra: str, what: str | None = None, packages: Sequence[str] | None = None) -> None:
    """Make sure that an extra is installed; nothing is imported. `what` needs it, if not the package of its name.

    `packages` are those of the extra that are needed, if not all.

    Raises:
        MissingExtraError: One of its packages is missing.
    """
    if missing := [name for name in packages or _IMPORTS[extra] if _is_missing(name)]:
        verb = "is" if len(missing) == 1 else "are"
        who = what or f"bellm.{extra}"
        raise MissingExtraError(
            f"{who} needs {', '.join(missing)}, which {verb} not installed: pip install 'bellm[{extra}]'."
        )


def lazy_exports(
    package: str, extra: str | None = None, needs: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` of a package that imports its public names when they are first asked for.

    Which module defines a name is read from the package's own imports under `if TYPE_CHECKING:`, the list that type
    checkers and editors read too. `needs` names the package of another library that a name needs, for some names.
    """

    @cache
    def modules() -> dict[str, str]:
        nodes = ast.walk(ast.parse(getsource(sys.modules[package])))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        return {alias.name: str(node.module) for node in imports for alias in node.names}

    def import_name(name: str) -> Any:
        if package == "bellm" and name in _PACKAGES:
            return import_module(f"bellm.{name}")
        if name not in sys.modules[package].__all__:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if extra:
            require_extra(extra)
        if needs and _is_missing(needs[name]):
            install = {"haystack": "haystack-ai"}.get(needs[name], re.sub("[._]", "-", needs[name]))
            raise MissingExtraError(
                f"{package}.{name} needs {needs[name]}, which is not installed: pip install {install}."
            )
        return getattr(import_module(modules()[name]), name)

    def names() -> list[str]:
        module = sys.modules[package]
        special = (name for name in vars(module) if name.startswith("__"))
        return sorted({*module.__all__, *special, *(_PACKAGES if package == "bellm" else ())})

    return import_name, names


def _is_missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ImportError:  # Something on `sys.meta_path` forbids it.
        return True
