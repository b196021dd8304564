"""Progress bars of commands on standard error, for people at a terminal."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

Loaded = TypeVar("Loaded")

BarUpdate = Callable[..., None]
"""Called as `update(description, done, total, bar="")`: a total of 0 is unknown, and each `bar` is a row of its own."""


@contextmanager
def live_bars(first: str = "", *, counts: bool = True) -> Iterator[BarUpdate]:
    """Show progress bars that vanish at the end; yield a function that updates them.

    Args:
        first: Description of a bar that is there from the start; none is if it is empty.
        counts: Show `done/total`, not a percentage.
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
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        rows: dict[str, progress.TaskID] = {"": shown.add_task(first, total=None)} if first else {}

        def update(description: str, done: float, total: float, bar: str = "") -> None:
            if bar not in rows:
                rows[bar] = shown.add_task("", total=None)
            shown.update(rows[bar], description=description, completed=done, total=total or None)

        yield update


@contextmanager
def bars_once_loaded(
    load: Callable[[], Loaded], first: str, *, counts: bool = True
) -> Iterator[tuple[Callable[[], Loaded], BarUpdate]]:
    """Show `live_bars` from when a model is loaded: loading has a status line of its own, and only one can be alive.

    Args:
        load: Loads the model.
        first: Description of the first bar.
        counts: Show `done/total`, not a percentage.
    """
    updates: list[BarUpdate] = []
    with ExitStack() as stack:

        def load_first() -> Loaded:
            loaded = load()
            updates.append(stack.enter_context(live_bars(first, counts=counts)))
            return loaded

        yield load_first, lambda *args: updates[-1](*args)
