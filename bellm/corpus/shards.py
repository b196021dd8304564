"""A shard: vectors of a row range in a Parquet file, with metadata of what it covers and digests to check it by.

Shards are the journal of the work: a range is done when its shard is there. Columns: `id`, `file` and `row` (from 1),
`vector` (a fixed-size list), for int8 its `scale`, of chunks `chunk`, `start`, `end` and `line`, and `text` if it is
kept. The schema's metadata holds the fields of `Shard`, the unreadable rows of the range, and a digest of both.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bellm.corpus.row_ranges import Precision, RowRange, Shard
from bellm.errors import SourceError
from bellm.io import atomic
from bellm.io.rows import TextPlace
from bellm.types import Vectors

if TYPE_CHECKING:
    from bellm.engine.embedding import EncodeResult

_METADATA, _DIGEST = b"bellm", b"bellm.digest"
_STRINGS = ("id", "file", "text")


class DamagedError(SourceError):
    """A shard's bytes are not those that were written."""


def write_shard(
    folder: Path,
    row_range: RowRange,
    encoded: "EncodeResult",
    *,
    precision: Precision,
    keep_text: bool,
    has_places: bool = False,
    config_digest: str,
) -> Shard:
    """Write the shard of a row range atomically.

    Args:
        folder: Folder of the shards.
        row_range: N readable rows, and the unreadable ones between them.
        encoded: Their vectors, (N, D).
        precision: How vectors are kept.
        keep_text: Whether texts are kept beside them.
        has_places: Whether rows are chunks of documents.
        config_digest: See `Shard`.
    """
    shard = Shard(
        file=row_range.file,
        first=row_range.first,
        stop=row_range.stop,
        num_rows=len(row_range.rows),
        num_numbered=row_range.num_numbered,
        num_tokens=encoded.num_tokens,
        num_truncated=encoded.num_truncated,
        num_missing_graphs=encoded.num_missing_graphs,
        rows_digest=row_range.digest,
        config_digest=config_digest,
    )
    table = _table(row_range, encoded.vectors, precision, keep_text, has_places)
    metadata = dataclasses.asdict(shard) | {"columns": _columns(table), "content_digest": _content_digest(table)}
    metadata["unreadable"] = row_range.unreadable
    data = json.dumps(metadata, ensure_ascii=False).encode()
    table = table.replace_schema_metadata({_METADATA: data, _DIGEST: hashlib.sha256(data).hexdigest().encode()})
    path = folder / shard.name
    with atomic.atomic_write(path) as file:
        # Vectors are noise to a compressor and to a dictionary, and cost time there.
        compression = {name: "zstd" for name in table.column_names if name != "vector"}
        compression["vector.list.element"] = "none"
        pq.write_table(table, file, compression=compression, use_dictionary=["file"], write_page_checksum=True)
    return dataclasses.replace(shard, num_bytes=path.stat().st_size)


def read_shard_info(path: Path) -> Shard:
    """Read the metadata of a shard, without its rows.

    Raises:
        DamagedError: It is no shard, or its bytes have changed.
        SourceError: It cannot be read.
    """
    metadata = _read_metadata(path)
    known = {field.name: metadata[field.name] for field in dataclasses.fields(Shard)}
    return Shard(**known | {"num_bytes": path.stat().st_size})


def read_unreadable_rows(path: Path) -> list[tuple[int, str]]:
    """Read the numbers of the rows that could not be embedded, and why; errors as in `read_shard_info`."""
    return [(int(row), str(reason)) for row, reason in _read_metadata(path)["unreadable"]]


def read_ids(path: Path) -> list[str]:
    """Read the ids of a shard's rows, of chunks that of each document once; errors as in `read_shard_info`."""
    with _damage(path), pq.ParquetFile(path) as file:
        has_places = "chunk" in file.schema_arrow.names
        table = file.read(columns=["id", *["chunk"] * has_places])
        table = table.filter(pc.equal(table.column("chunk"), 0)) if has_places else table
        ids: list[str] = table.column("id").to_pylist()
    return ids


def read_shard(path: Path) -> Any:
    """Read a shard's rows as a pyarrow table, checked by their digest; errors as in `read_shard_info`."""
    metadata = _read_metadata(path)
    with _damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
        table.validate(full=True)
    # Types first: of other types the digest could not be taken.
    if _columns(table) != metadata["columns"] or _content_digest(table) != metadata["content_digest"]:
        raise DamagedError(f"{path} is damaged: its rows have changed.")
    return table


def shard_vectors(table: Any) -> Vectors:
    """The vectors of a shard's rows as float32 of shape (rows, width), whatever form they are kept in."""
    column = table.column("vector").combine_chunks()
    width = column.type.list_size
    vectors: Vectors = column.flatten().to_numpy().reshape(-1, width).astype(np.float32, copy=False)
    return vectors * table.column("scale").to_numpy()[:, None] if "scale" in table.column_names else vectors


def _table(
    row_range: RowRange, vectors: Vectors, precision: Precision, keep_text: bool, has_places: bool = False
) -> Any:
    kept, scale = _quantize(vectors, precision)
    file = pa.DictionaryArray.from_arrays(np.zeros(len(row_range.rows), np.int32), pa.array([row_range.file]))
    values = pa.array(kept.ravel())
    kind = pa.list_(pa.field("element", values.type), vectors.shape[1])
    columns = {
        "id": pa.array(row_range.ids, pa.string()),
        "file": file,
        "row": pa.array(row_range.rows, pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(values, type=kind),
    }
    columns |= {"scale": pa.array(scale)} if scale is not None else {}
    if has_places:
        columns |= {
            name: pa.array([getattr(place, name) for place in row_range.places], pa.int64())
            for name in TextPlace._fields
        }
    return pa.table(columns | ({"text": pa.array(row_range.texts, pa.string())} if keep_text else {}))


def _quantize(vectors: Vectors, precision: Precision) -> tuple[Any, Vectors | None]:
    """Vectors as they are kept, and for int8 the scale of each row."""
    match precision:
        case "float32":
            return np.ascontiguousarray(vectors), None
        case "float16":
            limit, largest = float(np.finfo(np.float16).max), float(np.abs(vectors).max(initial=0))
            if largest > limit:
                raise SourceError(
                    f"A vector holds {largest:.4g}, and float16 ends at {limit:.0f}: scale vectors to length 1 "
                    "(--normalize), or keep them as float32."
                )
            return vectors.astype(np.float16), None
        case "int8":
            scale = np.abs(vectors).max(axis=1, initial=0) / 127
            steps = vectors / np.where(scale > 0, scale, 1)[:, None]
            return np.rint(steps).astype(np.int8), scale.astype(np.float32)


def _columns(table: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}


def _content_digest(table: Any) -> str:
    """SHA-256 of all columns; the checksums of Parquet's pages do not know of its footer."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in _STRINGS:
            texts = [text.encode() for text in column.to_pylist()]
            digest.update(f"{name} {list(map(len, texts))};".encode() + b"".join(texts))
        else:
            values = (column.flatten() if name == "vector" else column).to_numpy()
            digest.update(f"{name} {values.dtype} {len(values)};".encode() + values.tobytes())
    return digest.hexdigest()


def _read_metadata(path: Path) -> dict[str, Any]:
    with _damage(path):
        schema = pq.read_schema(path).metadata or {}
    data = schema.get(_METADATA, b"")
    if hashlib.sha256(data).hexdigest().encode() != schema.get(_DIGEST):
        raise DamagedError(f"{path} is damaged: its metadata has changed.")
    metadata: dict[str, Any] = json.loads(data)
    return metadata


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        # Arrow's word for a wrong checksum is an OSError too, one without an error number.
        if isinstance(error, OSError) and error.errno:
            raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
        raise DamagedError(f"{path} is damaged: {error}") from error
