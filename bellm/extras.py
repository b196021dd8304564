"""Check that the packages of an optional extra are installed, before a package of bellm needs them."""

from importlib.util import find_spec

from bellm.errors import MissingExtraError

_IMPORTS = {
    "train": ("peft", "accelerate", "datasets", "filelock", "pyarrow"),
    "evaluate": ("scipy", "sklearn", "datasets", "jinja2", "pyarrow", "pytrec_eval"),
    "corpus": ("pyarrow", "filelock", "lancedb"),
}
"""What each extra of pyproject.toml makes importable."""


def require_extra(extra: str) -> None:
    """Make sure that an extra is installed; nothing is imported.

    Raises:
        MissingExtraError: One of its packages is missing.
    """
    if missing := [name for name in _IMPORTS[extra] if find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"bellm.{extra} needs {', '.join(missing)}, which {verb} not installed: pip install 'bellm[{extra}]'."
        )
