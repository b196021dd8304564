"""Files as streams of UTF-8: decompressed by their suffix, and decoded where they are UTF-16 or UTF-32."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from bellm.errors import SourceError

STDIN = "-"

CONVERT = "Convert the file, for instance with: iconv -f {} -t utf-8."
"""What to do about a file in another encoding."""

_HEAD = 4096  # Bytes that show what a file is.
_SOME = 64  # Of so many bytes one is zero, be it that of a space or the end of a line, where UTF-16 has no mark.
_WITHOUT_MARK = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_MARKS = {  # The mark of UTF-32 begins with that of UTF-16.
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_MAGIC = {
    "gzip": b"\x1f\x8b\x08",
    "bzip2": b"BZh91AY&SY",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"\x28\xb5\x2f\xfd",
    "zip": b"PK\x03\x04",
    "Parquet": b"PAR1",
}

STREAM_ERRORS = (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError)
"""What reading a stream raises where a file cannot be read."""


class OpenFile(NamedTuple):
    """A file that is being read: as it lies on the disk, with its size there, and what is in it."""

    raw: BinaryIO
    size: int
    """0 for standard input."""
    content: BinaryIO


def import_pyarrow() -> tuple[Any, Any]:
    """Pyarrow and pyarrow.parquet, or the one error that says they are missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SourceError("Parquet files need pyarrow: pip install 'bellm[corpus]'.") from error
    return pyarrow, pyarrow.parquet


@contextmanager
def open_stream(file: str) -> Iterator[OpenFile]:
    """Open a file, or `-` for standard input, decompressed."""
    if file == STDIN and sys.stdin is None:
        raise SourceError("standard input is closed: give it lines, or name a file.")
    if file == STDIN:
        yield OpenFile(sys.stdin.buffer, 0, sys.stdin.buffer)
        return
    with open(file, "rb") as raw:
        decompress = _DECOMPRESS.get(Path(file.lower()).suffix)
        yield OpenFile(raw, os.fstat(raw.fileno()).st_size, decompress(raw) if decompress else raw)


def as_utf8(stream: BinaryIO) -> BinaryIO:
    """A stream of text that is UTF-16 or UTF-32, by its first bytes, as UTF-8; any other as it is.

    Raises:
        SourceError: It holds compressed data, or may be UTF-16 without a mark.
    """
    if not hasattr(stream, "peek"):
        stream = io.BufferedReader(cast("Any", stream))
    head = stream.peek(_HEAD)[:_HEAD]
    if form := next((form for form, magic in _MAGIC.items() if head.startswith(magic)), None):
        raise SourceError(f"there is {form} data in it where text should be. Unpack it first, or correct its suffix.")
    if b"\r" in head[:-1] and b"\n" not in head:
        raise SourceError("its lines end in carriage returns alone. Convert it, for instance with: tr '\\r' '\\n'.")
    if encoding := next((encoding for encoding, mark in _MARKS.items() if head.startswith(mark)), None):
        return io.BufferedReader(_Recoded(stream, encoding))
    # Without a mark: every second byte of Latin letters is zero.
    for encoding, zeros, letters in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if len(head) > 3 and all(letters[:32]) and not any(zeros[:32]):
            return io.BufferedReader(_Recoded(stream, encoding))
    if head.count(0) * _SOME > len(head) and (encoding := next(filter(partial(_is_encoded, head), _WITHOUT_MARK), "")):
        raise SourceError(f"it holds zero bytes, as {encoding} without a mark does. {CONVERT.format(encoding)}")
    return stream


def content_suffix(path: str) -> str:
    """Suffix of a file in lower case, that before .gz and the like where it is compressed."""
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in _DECOMPRESS else name.suffix


def _is_encoded(head: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeError:
        return False
    return True


class _Recoded(io.RawIOBase):
    """Text in another encoding as bytes of UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream, self._decoder, self._ready = stream, codecs.getincrementaldecoder(encoding)(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b" "
        while data and not self._ready:
            data = self._stream.read(len(buffer))
            self._ready = self._decoder.decode(data, final=not data).encode()
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _open_zstd(raw: BinaryIO) -> BinaryIO:
    pyarrow, _ = import_pyarrow()
    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


_DECOMPRESS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
COMPRESSIONS = tuple(_DECOMPRESS)
