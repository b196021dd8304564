"""Check that the packages of an optional extra are installed, before a package of bellm needs them."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from bellm.errors import MissingExtraError

_IMPORTS = {
    "train": ("peft", "accelerate", "datasets", "filelock", "pyarrow"),
    "evaluate": ("scipy", "sklearn", "datasets", "jinja2", "pyarrow", "pytrec_eval", "statsmodels"),
    "corpus": ("pyarrow", "filelock", "lancedb"),
}
"""What each extra of pyproject.toml makes importable."""


def require_extra(extra: str) -> None:
    """Make sure that an extra is installed; nothing is imported.

    Raises:
        MissingExtraError: One of its packages is missing.
    """
    if missing := [name for name in _IMPORTS[extra] if _is_missing(name)]:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"bellm.{extra} needs {', '.join(missing)}, which {verb} not installed: pip install 'bellm[{extra}]'."
        )


def lazy_exports(package: str, extra: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package that imports its public names when they are first asked for.

    Args:
        package: Name of the package.
        extra: What has to be installed.
        modules: Module of the package that defines each name.
    """

    def import_name(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        require_extra(extra)
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return import_name


def _is_missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ImportError:  # Something on `sys.meta_path` forbids it.
        return True
