"""Write a table to a terminal and as Markdown."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import rich.table
from rich.text import Text


@dataclass(frozen=True)
class Table:
    """Cells of text under a header, with a caption. `Console.print` prints it; markup in its texts is text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    num_left: int = 1
    """Columns that are aligned left; the others are numbers."""
    styles: Sequence[str] = ()
    """A rich style for each row, for terminals."""

    def __rich__(self) -> rich.table.Table:
        """The table without lines, its caption below."""
        caption = Text(self.caption, style="table.caption")
        table = rich.table.Table(box=None, caption=caption, caption_justify="left", pad_edge=False, header_style="bold")
        for index, heading in enumerate(self.header):
            is_left = index < self.num_left or not heading
            table.add_column(Text(heading, overflow="fold"), justify="left" if is_left else "right")
        for row, style in zip(self.rows, self.styles or [""] * len(self.rows), strict=True):
            table.add_row(*map(Text, row), style=style)
        return table

    def to_markdown(self) -> str:
        """The table for a model card, its caption below as a paragraph."""
        alignment = ["---"] * self.num_left + ["---:"] * (len(self.header) - self.num_left)
        rows = ([_escape(cell) for cell in row] for row in self.rows)
        lines = [[_escape(heading) for heading in self.header], alignment, *rows]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return f"{table}\n{_escape(self.caption)}\n" if self.caption else table


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, in one cell."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
