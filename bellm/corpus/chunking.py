"""Documents in chunks: rows of a corpus that know where they stand in their document.

Texts are split by `semantic-text-splitter`: at headings of Markdown, paragraphs, sentences and words, in this order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bellm.errors import BellmError, SourceError
from bellm.io.documents import DOCUMENT_SUFFIXES, Document, read_document
from bellm.io.rows import TextFile, TextPlace, TextRow
from bellm.io.streams import STDIN, content_suffix


@dataclass(frozen=True)
class Chunking:
    """How documents are split."""

    tokenizer: Any
    """A `tokenizers.Tokenizer`, which counts tokens."""
    size: int
    """Most tokens of a chunk."""
    overlap: int = 0
    """At most so many tokens at the end of a chunk begin the next one too, whole sentences or words."""

    def __post_init__(self) -> None:
        """Refuse sizes that leave nothing new in a chunk."""
        if self.size < 1:
            raise BellmError(f"chunk={self.size} is too small: give at least 1 token.")
        if not 0 <= self.overlap < self.size:
            raise BellmError(f"overlap={self.overlap} does not fit chunks of {self.size} tokens: give less, or 0.")

    def spans(self, document: Document) -> list[tuple[int, int]]:
        """First and past-the-last character of every chunk, in order; white space between chunks is in none."""
        splitter = self._splitters[document.has_markdown]
        return [(start, start + len(chunk)) for start, chunk in splitter.chunk_indices(document.text)]

    @cached_property
    def _splitters(self) -> dict[bool, Any]:
        try:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        except ImportError as error:
            raise BellmError("Chunks need semantic-text-splitter: pip install 'bellm[corpus]'.") from error
        kinds: dict[bool, Any] = {True: MarkdownSplitter, False: TextSplitter}
        return {
            markdown: kind.from_callback(self._count, self.size, overlap=self.overlap)
            for markdown, kind in kinds.items()
        }

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker gets: it makes splitters of its own."""
        return {name: getattr(self, name) for name in ("tokenizer", "size", "overlap")}


@dataclass
class ChunkedFile(TextFile):
    """A file of documents, chunk by chunk: a file of its own suffix is one document, else every row is."""

    chunking: Chunking = field(kw_only=True)

    def texts(self) -> Iterator[TextRow]:
        """Chunks, counted from 1 over the whole file, with the id of their document and their place in it."""
        number = 0
        for row, document in self._documents():
            if document is None:
                number += 1
                yield row._replace(number=number)
                continue
            for chunk, (first, stop) in enumerate(self.chunking.spans(document)):
                number += 1
                start, end = document.span(first, stop)
                place = TextPlace(chunk, start, end, document.line(start))
                yield row._replace(number=number, text=document.text[first:stop], place=place)

    def _documents(self) -> Iterator[tuple[TextRow, Document | None]]:
        if self.file == STDIN or content_suffix(self.file) not in DOCUMENT_SUFFIXES:
            for row in super().texts():
                yield row, None if row.text is None else Document(row.text, has_markdown=False)
            return
        self.num_rows += 1
        try:
            document = read_document(self.file)
        except SourceError as error:
            yield TextRow(1, "", None, str(error)), None
        else:
            yield TextRow(1, self.file, document.text), document
        self.share = 1.0
