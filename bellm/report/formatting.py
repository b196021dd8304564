"""Write points, intervals, p-values, ticks, metadata and tables as terminals, Markdown and pages show them."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import rich.console
import rich.table
from rich.text import Text

from bellm.report.statistics import Difference, Score

SIGNIFICANT = 0.05
"""Corrected p-values below this are called a difference."""

BETTER, WORSE = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"


def format_points(value: float, *, signed: bool = False) -> str:
    """A number of points to one decimal; with its sign where it is a difference.

    >>> format_points(-0.04), format_points(3.14159, signed=True)
    ('0.0', '+3.1')
    """
    rounded = round(value, 1) + 0.0  # No minus before a zero.
    return f"{rounded:{'+' if signed and rounded else ''}.1f}".replace("-", "\N{MINUS SIGN}")


class Interval(Protocol):
    """What has the ends of an interval."""

    @property
    def low(self) -> float:
        """Lower end."""
        ...

    @property
    def high(self) -> float:
        """Upper end."""
        ...


def format_interval(estimate: Interval) -> str:
    """The ends of the 95 % interval."""
    return f"{format_points(estimate.low)} to {format_points(estimate.high)}"


def format_score(score: Score) -> str:
    """A score with half the width of its interval.

    >>> format_score(Score("accuracy", 73.24, 72, 74, 100))
    '73.2 ± 1.0'
    """
    return f"{format_points(score.value)} \N{PLUS-MINUS SIGN} {format_points((score.high - score.low) / 2)}"


def format_p_value(value: float) -> str:
    """A p-value to three decimals: `0.041`, `< 0.001`."""
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def significance_mark(difference: Difference | None) -> str:
    """A triangle up or down for a significant difference to the baseline, and nothing for any other."""
    if difference is None or not difference.p_value < SIGNIFICANT or not difference.value:
        return ""
    return BETTER if difference.value > 0 else WORSE


def format_tick(value: float, *, signed: bool = False) -> str:
    """The number at a tick, as short as it gets.

    >>> format_tick(20.0, signed=True), format_tick(0.0, signed=True), format_tick(0.5)
    ('+20', '0', '0.5')
    """
    return f"{value:{'+' if signed and value else ''}g}".replace("-", "\N{MINUS SIGN}")


def format_cell(value: float) -> str:
    """A number to two decimals, without a minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def shorten(label: str, most: int = 24) -> str:
    """A label in so many letters at most."""
    return label if len(label) <= most else label[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def format_metadata(metadata: Mapping[str, object]) -> dict[str, str]:
    """Names and values of metadata for people.

    >>> format_metadata({"open_layers": [3, 5], "window": None, "versions": {"bellm": "1.0"}})
    {'open layers': '3, 5', 'window': 'none', 'versions': 'bellm 1.0'}
    """
    return {name.replace("_", " "): _in_words(value) for name, value in metadata.items()}


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = [f"{name} {_in_words(part)}" for name, part in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value)) or None
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Table:
    """Cells of text under a header, with a caption. `Console.print` prints it; markup in its texts is text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    num_left: int = 1
    """Columns that are aligned left; the others are numbers."""
    styles: Sequence[str] = ()
    """A rich style for each row."""

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

    def __str__(self) -> str:
        console = rich.console.Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

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
