"""Texts from files, vectors to files: whole, in memory, and not one row amiss.

No row is ever dropped or split, so row numbers of vectors and texts match.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bellm.corpus.formats import Columns, text_problem
from bellm.corpus.input_files import InputFile
from bellm.corpus.row_ranges import CorpusRow
from bellm.errors import SourceError
from bellm.types import Vectors


def read_texts(file: str, column: str = "text") -> list[str]:
    """Read all texts of a file, or the lines of standard input for `-`.

    Raises:
        SourceError: The file cannot be read, or a row holds no text.
    """
    source = InputFile(file, Columns(column))
    return [_strict(source, row) for row in source.rows()]


def checked_text(place: str, cell: str) -> str:
    """Give a text back as it came.

    Raises:
        SourceError: It holds half a character, or is too long.
    """
    if problem := text_problem(cell):
        raise SourceError(f"{place}: {problem}")
    return cell


@contextmanager
def new_vector_file(path: str, *, force: bool = False) -> Iterator[Callable[[Sequence[str], Vectors], None]]:
    """Check that `path` can be written, and give the function that writes texts and vectors there in one go.

    The rows go to a draft in the same folder, which then takes the place of `path`. Whatever happens before leaves
    nothing behind. `.npy` holds the vectors alone, `.jsonl` and `.parquet` the texts as well.

    Raises:
        SourceError: The suffix is unknown, something is there already, or the disk refuses.
    """
    target = Path(path)
    writer = _writer(target)
    with _refusals(path):
        _refuse_taken(target, force)
    draft = target.with_name(f".{target.name}-{os.getpid()}.part")

    def write(texts: Sequence[str], vectors: Vectors) -> None:
        with _refusals(path):
            with draft.open("wb") as file:
                writer(file, texts, vectors)
            os.replace(draft, target)

    with _refusals(path):
        draft.touch()  # A folder that takes no files shows now, not after hours of work.
    try:
        yield write
    finally:
        draft.unlink(missing_ok=True)


def is_folder(path: str) -> bool:
    """Whether an output is meant as a folder: it is one, has no suffix, or ends in a slash."""
    suffix = Path(path).suffix.lower()
    return suffix not in WRITERS and (not suffix or path.endswith(("/", os.sep)) or Path(path).is_dir())


def _refuse_taken(target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise SourceError(f"{target} cannot be written: there is no folder {target.parent}. Make it first.")
    if target.is_dir():
        raise SourceError(f"{target} is a folder. Name a file.")
    if target.exists() and not force:
        raise SourceError(f"{target} exists already. Choose another name, or replace it with --force.")


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path} cannot be written: {error.strerror or error}.") from error


def _writer(target: Path) -> Callable[[BinaryIO, Sequence[str], Vectors], None]:
    suffix = target.suffix.lower()
    if suffix not in WRITERS:
        raise SourceError(
            f"bellm cannot write {target}: its suffix is {suffix!r}, not one of {', '.join(WRITERS)}; the name of a "
            "folder of shards ends in /."
        )
    if suffix == ".parquet":
        import bellm.corpus.arrow  # noqa: F401 - says what is missing before the work begins
    return WRITERS[suffix]


def _strict(source: InputFile, row: CorpusRow) -> str:
    if row.text is None:
        raise SourceError(f"{source.title}, {row.reason}")
    return row.text


def _write_npy(file: BinaryIO, _texts: Sequence[str], vectors: Vectors) -> None:
    # np.save writes past Python's file object, and a full disk then has no error number.
    vectors = np.ascontiguousarray(vectors)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(vectors))
    file.write(vectors.data)


def _write_json_lines(file: BinaryIO, texts: Sequence[str], vectors: Vectors) -> None:
    for text, vector in zip(texts, vectors, strict=True):
        file.write(json.dumps({"text": text, "vector": vector.tolist()}, ensure_ascii=False).encode() + b"\n")


def _write_parquet(file: BinaryIO, texts: Sequence[str], vectors: Vectors) -> None:
    from bellm.corpus.arrow import pa, pq

    columns = {
        "text": pa.array(texts, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    pq.write_table(pa.table(columns), file)


WRITERS: dict[str, Callable[[BinaryIO, Sequence[str], Vectors], None]] = {
    ".npy": _write_npy,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}
"""Suffixes of the outputs that are one file."""
