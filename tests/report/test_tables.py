"""A table in a terminal and as Markdown."""

import io

from rich.console import Console

from bellm.report.formatting import Table

TABLE = Table(
    ("name", "metric", "[red]odd"),
    [("one | two", "cosine", "1.0"), ("[bold]three", "<b>", "22.0")],
    "A caption\nwith [blue]markup.",
    num_left=2,
    styles=("bold", ""),
)


def test_markdown_keeps_texts_in_their_cells() -> None:
    assert TABLE.to_markdown().splitlines() == [
        "| name | metric | [red]odd |",
        "| --- | --- | ---: |",
        "| one \\| two | cosine | 1.0 |",
        "| [bold]three | &lt;b&gt; | 22.0 |",
        "",
        "A caption with [blue]markup.",
    ]
    assert Table(("a",), []).to_markdown() == "| a |\n| --- |\n"


def test_a_terminal_shows_markup_as_text_and_numbers_to_the_right() -> None:
    out = io.StringIO()
    Console(file=out, width=60).print(TABLE)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[:3] == [
        "name         metric  [red]odd",
        "one | two    cosine       1.0",
        "[bold]three  <b>         22.0",
    ]
    assert " ".join(lines[3:]).split() == ["A", "caption", "with", "[blue]markup."]
