"""What a corpus folder holds: a scan of its shards, and `manifest.json` and `rejected.jsonl` of a complete one."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bellm.corpus import shards
from bellm.corpus.row_ranges import SHARD_FOLDER, Shard
from bellm.errors import CorpusWarning, SourceError, warn
from bellm.io import atomic
from bellm.version import __version__

MANIFEST_FILE = "manifest.json"
REJECTED_FILE = "rejected.jsonl"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A complete corpus folder."""

    encoder: dict[str, Any]
    """Source and description of the encoder, see `Embedder.describe`."""
    config: dict[str, Any]
    """Fields of `CorpusConfig`."""
    config_digest: str
    """Digest that every shard carries."""
    embedding_dim: int
    rows: int
    """Rows with a vector."""
    unreadable: int
    """Rows without one; `rejected.jsonl` lists them."""
    numbered: int
    """Rows whose id is `FILE:ROW`, because the column of ids has none for them."""
    duplicate_ids: int
    """Rows that have the id of an earlier row."""
    duplicate_id: str
    """The first such id."""
    truncated: int
    missing_graphs: int
    """Texts without an AMR graph, of an encoder that reads graphs."""
    tokens: int
    shards: list[dict[str, Any]]
    """Every shard in the order of the corpus: `name`, `file`, `first`, `stop`, `rows`, `bytes`."""
    bellm: str = __version__
    complete: bool = True


def scan_shards(out: Path, config_digest: str) -> list[Shard]:
    """Read every shard of a corpus folder, whole; damaged ones are removed, so that their rows are embedded again.

    Warns:
        CorpusWarning: A shard was damaged.
    """
    found = []
    for path in sorted((out / SHARD_FOLDER).glob("*.parquet")):
        try:
            shards.read_shard(path)
            shard = shards.read_shard_info(path)
        except shards.DamagedError as error:
            # A manifest never names a shard that is not there.
            (out / MANIFEST_FILE).unlink(missing_ok=True)
            path.unlink()
            warn(f"{error} Its rows are embedded again.", CorpusWarning)
            continue
        if shard.config_digest != config_digest or shard.name != path.name:
            raise SourceError(f"{path} does not belong to {out}: it comes from elsewhere. Move it away.")
        found.append(shard)
    return found


def write_manifest(
    out: Path, encoder: dict[str, Any], config: dict[str, Any], config_digest: str, done: Sequence[Shard]
) -> Manifest:
    """Write the list of unreadable rows, and then the manifest, each whole or not at all.

    Args:
        out: A corpus folder.
        encoder: Source and description of the encoder.
        config: Fields of `CorpusConfig`.
        config_digest: Digest that every shard carries.
        done: Every shard of the folder, in the order of the corpus.
    """
    with atomic.atomic_write(out / REJECTED_FILE) as file:
        for shard in done:
            if shard.num_unreadable:
                for row, reason in shards.read_unreadable_rows(out / SHARD_FOLDER / shard.name):
                    line = {"file": shard.file, "row": row, "reason": reason}
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    repeated = _repeated_ids(out, done) if config["id_column"] else []
    manifest = Manifest(
        encoder=encoder,
        config=config,
        config_digest=config_digest,
        embedding_dim=encoder["embedding_dim"],
        rows=sum(shard.num_rows for shard in done),
        unreadable=sum(shard.num_unreadable for shard in done),
        numbered=sum(shard.num_numbered for shard in done),
        duplicate_ids=len(repeated),
        duplicate_id=next(iter(repeated), ""),
        truncated=sum(shard.num_truncated for shard in done),
        missing_graphs=sum(shard.num_missing_graphs for shard in done),
        tokens=sum(shard.num_tokens for shard in done),
        shards=[
            {
                **{name: getattr(shard, name) for name in ("name", "file", "first", "stop")},
                "rows": shard.num_rows,
                "bytes": shard.num_bytes,
            }
            for shard in done
        ],
    )
    atomic.write_json(out / MANIFEST_FILE, vars(manifest))
    return manifest


def read_manifest(out: str | Path) -> Manifest:
    """Read the manifest of a complete corpus folder.

    Raises:
        SourceError: The work is not done, or the manifest is damaged.
    """
    path = Path(out) / MANIFEST_FILE
    try:
        return Manifest(**json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise SourceError(
            f"{out} has no {MANIFEST_FILE}: it is no corpus, or not complete. Run bellm embed."
        ) from error
    except (OSError, TypeError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}. Give the same bellm embed command again.") from error


def shard_paths(out: Path, manifest: Manifest) -> Iterable[Path]:
    """Where the shards of a corpus lie, in order."""
    return (out / SHARD_FOLDER / entry["name"] for entry in manifest.shards)


def check_contents(out: Path, manifest: Manifest, files: Sequence[str]) -> None:
    """Warn of rows and ids that a corpus lacks, and of files that it holds besides those that are named now.

    Raises:
        SourceError: No row of a file can be read.
    """
    rows, total = manifest.rows, manifest.rows + manifest.unreadable
    listed = f"{out / REJECTED_FILE} lists them."
    readable: Counter[str] = Counter()
    for shard in manifest.shards:
        readable[shard["file"]] += shard["rows"]
    notes = []
    if manifest.unreadable and not rows:
        raise SourceError(f"None of the {total} rows can be read; {listed}")
    if manifest.unreadable:
        notes.append(f"{manifest.unreadable} of {total} rows cannot be read; {listed}")
    if manifest.numbered:
        column = manifest.config["id_column"]
        notes.append(f"{manifest.numbered} of {rows} rows have no id in the column {column!r}: it is FILE:ROW.")
    if manifest.duplicate_ids:
        example = f"such as {manifest.duplicate_id!r}; a search cannot tell them apart"
        notes.append(f"{manifest.duplicate_ids} of {rows} rows have the id of an earlier row, {example}.")
    if others := sorted(readable.keys() - set(files)):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"{out} also holds {others[0]}{more}, embedded earlier and not named now.")
    for note in notes:
        warn(note, CorpusWarning)
    if rejected := [file for file in files if file in readable and not readable[file]]:
        raise SourceError(f"No row of {', '.join(rejected)} can be read; {listed} The other files are embedded.")


def _repeated_ids(out: Path, done: Sequence[Shard]) -> list[str]:
    """The ids of all rows that have the id of an earlier one; memory holds eight bytes a row."""
    paths = [out / SHARD_FOLDER / shard.name for shard in done]
    hashes = np.sort(np.fromiter((hash(id) for path in paths for id in shards.read_ids(path)), np.int64))
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    found = []
    for id in (id for path in paths if repeated for id in shards.read_ids(path) if hash(id) in repeated):
        found += [id] * (id in seen)
        seen.add(id)
    return found
