"""What a page's HTML holds, read without a browser."""

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name in {"src", "xmlns"}]


def assert_no_markup_from_outside(page: Path, num_scripts: int) -> None:
    """A page has its own scripts and nothing else that runs or is fetched, and says so in its policy."""
    text = page.read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(text)
    assert reader.tags["script"] == num_scripts
    assert not {"img", "iframe", "object", "embed", "link", "base", "foreignobject"} & set(reader.tags)
    assert reader.handlers == []
    assert "default-src 'none'" in text
