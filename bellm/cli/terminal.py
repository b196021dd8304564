"""What a command prints: its result, and on standard error notes and, at a terminal, a status line and bars."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

BarUpdate = Callable[..., None]
"""Called as `update(description, done, total, bar="")`: a total of 0 is unknown, and each `bar` is a row of its own."""


@contextlib.contextmanager
def status_line(what: str) -> Iterator[None]:
    """Quiet transformers and its friends, and show a person at a terminal what is going on instead."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    # A status line refreshes itself in a thread.
    with console.status(escape(what)) if console.is_terminal else contextlib.nullcontext():
        # Read by tqdm when it is first imported; bars that bellm asks for are shown nevertheless.
        os.environ.setdefault("TQDM_DISABLE", "1")
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        yield


@contextlib.contextmanager
def live_bars(*, counts: bool = True) -> Iterator[BarUpdate]:
    """Show progress bars that vanish at the end; yield a function that updates them.

    The display starts with the first update: loading has a status line of its own, and only one can be alive. `counts`
    shows `done/total` in place of a percentage.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn() if counts else progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
    )
    shown = progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    rows: dict[str, progress.TaskID] = {}

    def update(description: str, done: float, total: float, bar: str = "") -> None:
        if bar not in rows:
            rows[bar] = shown.add_task("", total=None)
        shown.update(rows[bar], description=description, completed=done, total=total or None)
        shown.start()

    try:
        yield update
    finally:
        shown.stop()


def show_note(sentence: str) -> None:
    """Print a note on a line of its own."""
    typer.echo(f"note: {' '.join(sentence.split())}", err=True)


def print_result(record: Mapping[str, Any], as_json: bool, *words: Any) -> None:
    """Print a command's result as one JSON object, or in words: sentences, and tables of rich."""
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    for part in words:
        typer.echo(part) if isinstance(part, str) else console.print(part)
