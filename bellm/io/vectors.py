"""Files of vectors: .npy holds them alone, .jsonl (- prints it) and .parquet texts as well, .txt and .vec words."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bellm.errors import SourceError
from bellm.io.atomic import reserve_file
from bellm.io.formats import text_problem
from bellm.io.rows import RowFile
from bellm.io.streams import content_suffix, import_pyarrow

if TYPE_CHECKING:
    from bellm.types import Vectors

STDOUT = "-"

_COLUMNS = ["text", "vector"]


@contextmanager
def new_vector_file(path: str, *, force: bool = False) -> Iterator[Callable[[Sequence[str], "Vectors"], None]]:
    """Check that `path` can be written, and give the function that writes texts and vectors there in one go.

    `-` is standard output, as lines of JSON. Else the rows go to a draft in the same folder, which then takes the place
    of `path`. Whatever happens before leaves nothing behind.
    """
    if path == STDOUT:
        yield _write_stdout
        return
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in WRITERS:
        raise SourceError(
            f"bellm cannot write {target}: its suffix is {suffix!r}, not one of {', '.join(WRITERS)}; the name of a "
            "folder of shards ends in /."
        )
    if suffix == ".parquet":
        import_pyarrow()  # Says what is missing before the work begins.
    _refuse_taken(target, force)
    with reserve_file(target) as fill:

        def write(texts: Sequence[str], vectors: "Vectors") -> None:
            with fill() as file:
                WRITERS[suffix](file, texts, vectors)

        yield write


def read_vectors(file: Path) -> tuple[list[str], "Vectors"]:
    """Read texts and vectors: .jsonl or .parquet as `new_vector_file` writes, or word vectors as .txt or .vec.

    The latter are those of GloVe and word2vec: a word and its numbers on each line, with or without a first line of
    how many there are.
    """
    suffix = content_suffix(str(file))
    if suffix in (".txt", ".vec"):
        return _read_word_vectors(file)
    if suffix not in (".jsonl", ".parquet"):
        raise SourceError(
            f"{file}: its suffix is {file.suffix!r}, not .parquet or .jsonl, as bellm embed writes, nor .txt or .vec."
        )
    import numpy as np  # Here, as commands that only name a file start without it.

    texts: list[str] = []
    vectors: list[Vectors] = []
    for row in RowFile(str(file)).rows(_require_columns, strict=True):
        if not isinstance(row.cells, dict):
            raise SourceError(f"{file}, {row.location}: it has no columns. Give the columns text and vector.")
        text, numbers = (row.cells[name] for name in _COLUMNS)
        if problem := text_problem(text):
            raise SourceError(f"{file}, {row.location}: {problem}")
        try:
            vector = np.asarray(numbers, dtype=np.float32)
        except (ValueError, TypeError):
            vector = np.empty(0, dtype=np.float32)
        if vector.ndim != 1 or not len(vector):
            raise SourceError(f"{file}, {row.location}: its vector is no list of numbers.")
        if vectors and len(vector) != len(vectors[0]):
            raise SourceError(
                f"{file}, {row.location}: {len(vector)} numbers, but the first vector has {len(vectors[0])}."
            )
        texts.append(text)
        vectors.append(vector)
    if not vectors:
        raise SourceError(f"{file} holds no vectors.")
    return texts, np.stack(vectors)


def _read_word_vectors(file: Path) -> tuple[list[str], "Vectors"]:
    import numpy as np

    words: list[str] = []
    rows: list[Vectors] = []
    for row in RowFile(str(file)).lines(strict=True):
        word, *cells = str(row.cells).rstrip().split(" ")
        if not words and len(cells) == 1:  # The counts of word2vec.
            continue
        width = len(rows[0]) if rows else len(cells)
        more = max(len(cells) - width, 0)  # Some words of GloVe hold spaces.
        word, cells = " ".join([word, *cells[:more]]), cells[more:]
        try:
            rows.append(np.array(cells, dtype=np.float32))
        except ValueError as error:
            raise SourceError(f"{file}, {row.location}: {word!r:.60} is not followed by numbers.") from error
        if len(rows[-1]) != width or not width:
            raise SourceError(f"{file}, {row.location}: {len(rows[-1])} numbers, but the first word has {width}.")
        words.append(word)
    if not rows:
        raise SourceError(f"{file} holds no vectors.")
    return words, np.stack(rows)


def is_folder(path: str) -> bool:
    """Whether an output is meant as a folder: it is one, has no suffix, or ends in a slash."""
    if path == STDOUT:
        return False
    suffix = Path(path).suffix.lower()
    return suffix not in WRITERS and (not suffix or path.endswith(("/", os.sep)) or Path(path).is_dir())


def _write_stdout(texts: Sequence[str], vectors: "Vectors") -> None:
    _write_json_lines(sys.stdout.buffer, texts, vectors)
    sys.stdout.buffer.flush()


def _require_columns(names: Sequence[str]) -> list[str]:
    if not set(_COLUMNS) <= set(names):
        raise SourceError(f"it needs the columns text and vector, and has {', '.join(names)}.")
    return _COLUMNS


def _refuse_taken(target: Path, force: bool) -> None:
    try:
        if not target.parent.is_dir():
            raise SourceError(f"{target} cannot be written: there is no folder {target.parent}. Make it first.")
        if target.is_dir():
            raise SourceError(f"{target} is a folder. Name a file.")
        if target.exists() and not force:
            raise SourceError(f"{target} exists already. Choose another name, or replace it with --force.")
    except OSError as error:  # The name is too long.
        raise SourceError(f"{target} cannot be written: {error.strerror or error}.") from error


def _write_npy(file: BinaryIO, _texts: Sequence[str], vectors: "Vectors") -> None:
    import numpy as np

    # np.save writes past Python's file object, and a full disk then has no error number.
    vectors = np.ascontiguousarray(vectors)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(vectors))
    file.write(vectors.data)


def _write_json_lines(file: BinaryIO, texts: Sequence[str], vectors: "Vectors") -> None:
    for text, vector in zip(texts, vectors, strict=True):
        file.write(json.dumps({"text": text, "vector": vector.tolist()}, ensure_ascii=False).encode() + b"\n")


def _write_parquet(file: BinaryIO, texts: Sequence[str], vectors: "Vectors") -> None:
    pa, pq = import_pyarrow()
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "vector": rows}), file)


WRITERS: dict[str, Callable[[BinaryIO, Sequence[str], "Vectors"], None]] = {
    ".npy": _write_npy,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}
"""Suffixes of the outputs that are one file."""
