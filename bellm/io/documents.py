"""Files that are one document each, Markdown, HTML or plain text, with the place of every character in the file."""

import re
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser

from bellm.errors import SourceError
from bellm.io.formats import LONGEST, text_problem
from bellm.io.streams import STREAM_ERRORS, as_utf8, content_suffix, open_stream

_MARKDOWN, _HTML = (".md", ".markdown"), (".html", ".htm")

DOCUMENT_SUFFIXES = (".txt", *_MARKDOWN, *_HTML)
"""Suffixes of files that are one document, where documents are asked for."""

_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "br",
        "caption",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "li",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "title",
        "tr",
        "ul",
    ]
)
_UNSEEN = frozenset(["head", "script", "style", "template"])  # Of the head the title is read.
_HEADINGS = {f"h{level}": level for level in range(1, 7)} | {"title": 1}


@dataclass(frozen=True)
class Document:
    """What is to be read of a file."""

    text: str
    """Of HTML the words, headings as in Markdown; of all others the file as it is."""
    has_markdown: bool
    places: tuple[tuple[int, int], ...] | None = None
    """Of each character where it begins and ends in the file, in characters; None where the text is the file."""
    source: str = ""
    """The file, where the text is not."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where a part of the text begins and ends in the file."""
        if self.places is None:
            return start, end
        real = [place for place in self.places[start:end] if place[0] < place[1]]
        return (real[0][0], real[-1][1]) if real else (self.places[start][0],) * 2

    def line(self, start: int) -> int:
        """Number of the line, from 1, in which a character of the file stands."""
        return (self.text if self.places is None else self.source).count("\n", 0, start) + 1


def read_document(file: str) -> Document:
    """Read a file as one document.

    Raises:
        SourceError: It cannot be read, is no UTF-8, or holds what no text holds.
    """
    try:
        with open_stream(file) as (_, _, content):
            data = as_utf8(content).read(4 * LONGEST + 1)
        source = data.decode("utf-8-sig")
    except SourceError as error:
        raise SourceError(f"{file}: {error}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{file} cannot be read: its bytes are no UTF-8 at byte {error.start}.") from error
    except STREAM_ERRORS as error:
        raise SourceError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if problem := text_problem(source):
        raise SourceError(f"{file}: {problem}")
    suffix = content_suffix(file)
    if suffix not in _HTML:
        return Document(source, suffix in _MARKDOWN)
    page = _Page(source)
    page.feed(source)
    page.close()
    return Document("".join(page.characters), True, tuple(page.places), source)


class _Page(HTMLParser):
    """The words of a page, a blank line between blocks."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.characters: list[str] = []
        self.places: list[tuple[int, int]] = []
        self._source = source
        self._lines = [0, *(match.end() for match in re.finditer("\n", source))]
        self._unseen: list[str] = []
        self._title = self._pre = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """Begin a block, or what is not seen."""
        if tag in _UNSEEN:
            self._unseen.append(tag)
        self._pre += tag == "pre"
        self._title += tag == "title"
        if tag in _BLOCKS:
            self._break()
            if tag in _HEADINGS and self._is_seen:
                self._add("#" * _HEADINGS[tag] + " ", None)

    def handle_endtag(self, tag: str) -> None:
        """End it."""
        if tag in self._unseen:
            del self._unseen[self._unseen.index(tag) :]
        self._pre -= tag == "pre" and self._pre > 0
        self._title -= tag == "title" and self._title > 0
        if tag in _BLOCKS:
            self._break()

    def handle_data(self, data: str) -> None:
        """Add words."""
        start = self._position()
        for index, character in enumerate(data):
            self._add(character, (start + index, start + index + 1))

    def handle_entityref(self, name: str) -> None:
        """Add what a name stands for."""
        self._add_reference(f"&{name}")

    def handle_charref(self, name: str) -> None:
        """Add what a number stands for."""
        self._add_reference(f"&#{name}")

    @property
    def _is_seen(self) -> bool:
        return not self._unseen or (self._title > 0 and self._unseen == ["head"])

    def _position(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def _add_reference(self, written: str) -> None:
        start = self._position()
        end = start + len(written)
        end += self._source.startswith(";", end)
        for character in unescape(f"{written};"):
            self._add(character, (start, end))

    def _add(self, text: str, place: tuple[int, int] | None) -> None:
        if not self._is_seen:
            return
        for character in text:
            is_space = character.isspace() and place is not None
            if is_space and not self._pre:
                character = " "
                if not self.characters or self.characters[-1].isspace():
                    continue
            here = self._position()
            self.characters.append(character)
            self.places.append(place or (here, here))

    def _break(self) -> None:
        """A blank line, unless nothing was said since the last one."""
        if not self._is_seen:
            return
        while self.characters and self.characters[-1] == " ":
            self.characters.pop()
            self.places.pop()
        if self.characters and self.characters[-1] != "\n":
            here = self._position()
            self.characters += "\n\n"
            self.places += [(here, here)] * 2
