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
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from bellm.errors import SourceError

STDIN = "-"

CONVERT = "Convert the file, for instance with: iconv -f {} -t utf-8."
"""What to do about a file in another encoding."""

_HEAD = 4096  # Bytes that show what a file is.
_CHUNK = 2**16  # Bytes that are decompressed or decoded at once.
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
        SourceError: It holds compressed data, or is UTF-16 or UTF-32 without a mark.
    """
    if not hasattr(stream, "peek"):
        stream = io.BufferedReader(cast("Any", stream))
    head = stream.peek(_HEAD)[:_HEAD]
    if form := next((form for form, magic in _MAGIC.items() if head.startswith(magic)), None):
        raise SourceError(f"there is {form} data in it where text should be. Unpack it first, or correct its suffix.")
    if encoding := next((encoding for encoding, mark in _MARKS.items() if head.startswith(mark)), None):
        return _Pieces.buffered(_recoded(stream, encoding))
    # Without a mark: every second byte of Latin letters is zero.
    for encoding, zeros, letters in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if len(head) > 3 and all(letters[:32]) and not any(zeros[:32]):
            return _Pieces.buffered(_recoded(stream, encoding))
    if encoding := _encoding_without_mark(head):
        raise SourceError(f"its bytes are those of {encoding} without a mark. {CONVERT.format(encoding)}")
    return stream


def content_suffix(path: str) -> str:
    """Suffix of a file in lower case, that before .gz and the like where it is compressed."""
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in _DECOMPRESS else name.suffix


def _encoding_without_mark(head: bytes) -> str:
    """The encoding of text that is neither UTF-8 nor marked; empty where there is no sure sign of one."""
    for encoding in ("utf-32-le", "utf-32-be"):
        if len(head) > 3 and _is_encoded(head, encoding):
            return encoding
    signs = {}
    for encoding, lows, highs in (("utf-16-le", head[::2], head[1::2]), ("utf-16-be", head[1::2], head[::2])):
        # Letters of a script other than Chinese have a few high bytes in common, which are control characters.
        controls = len(highs) - len(highs.translate(None, bytes({*range(32)} - {*b"\t\n\r"})))
        spaces = sum(high == 0 and low in b"\n " for low, high in zip(lows, highs, strict=False))
        lone = head.count(b"\n") + head.count(b" ") - spaces  # In UTF-8 all spaces, whatever stands beside them.
        if len(head) > 3 and (2 * controls >= len(highs) or spaces > lone) and _is_encoded(head, encoding):
            signs[encoding] = controls + spaces
    return max(signs, key=lambda encoding: signs[encoding], default="")


def _is_encoded(head: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeError:
        return False
    return True


class _Pieces(io.RawIOBase):
    """Pieces of bytes, read as one stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._ready = pieces, b""

    @classmethod
    def buffered(cls, pieces: Iterator[bytes]) -> io.BufferedReader:
        return io.BufferedReader(cls(pieces))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._ready = self._ready or next(filter(None, self._pieces), b"")
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _recoded(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """Text in another encoding as bytes of UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)()
    while data := stream.read(_CHUNK):
        yield decoder.decode(data).encode()
    yield decoder.decode(b"", final=True).encode()


def _decompressed(raw: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
    """What several compressed streams hold, one behind the other; Python's own readers leave out what is no stream."""
    decompressor, data = new(), b""
    while True:
        if decompressor.eof:
            data = (decompressor.unused_data or raw.read(_CHUNK)).lstrip(b"\0")  # Zeros fill a file up.
            while not data and (more := raw.read(_CHUNK)):
                data = more.lstrip(b"\0")
            if not data:
                return
            decompressor = new()
        elif decompressor.needs_input and not (data := raw.read(_CHUNK)):
            raise EOFError("Compressed file ended before its end was reached")
        yield decompressor.decompress(data, _CHUNK)
        data = b""


def _open_zstd(raw: BinaryIO) -> BinaryIO:
    pyarrow, _ = import_pyarrow()
    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


_DECOMPRESS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": lambda raw: _Pieces.buffered(_decompressed(raw, bz2.BZ2Decompressor)),
    ".xz": lambda raw: _Pieces.buffered(_decompressed(raw, lzma.LZMADecompressor)),
    ".zst": _open_zstd,
}
COMPRESSIONS = tuple(_DECOMPRESS)
