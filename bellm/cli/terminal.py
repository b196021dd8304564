"""Console output: results on standard output; errors, notes and progress on standard error."""

import contextlib
import functools
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from bellm.errors import BellmError, BellmWarning

BarUpdate = Callable[..., None]
"""Called as `update(description, done, total, bar="")`: a total of 0 is unknown, and each `bar` is a row of its own."""


_UsageError: type[Any] = typer.BadParameter.__mro__[1]  # Of click, or of typer's own copy of click.


class OneValueCommand(TyperCommand):
    """A command that refuses an option given twice, where the last value would win in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        try:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        except _UsageError as error:
            error.ctx = ctx
            raise
        for option in given:
            if option.param_type_name == "option" and not option.multiple and given.count(option) > 1:
                names = "/".join((*option.opts, *option.secondary_opts))
                raise _UsageError(f"{names} is given more than once: give it one value.", ctx)
        return super().parse_args(ctx, args)


class CommandGroup(TyperGroup):
    """Typer group that maps exceptions to one line on standard error and an exit code."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse what stands before the command."""
        with _usage_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors that are nobody's bug end it without a traceback, bellm's own warnings are notes."""
        try:
            with warnings.catch_warnings(), _usage_errors():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", BellmWarning)
                once = functools.cache(show_note)  # Several models may have the same to say.
                warnings.showwarning = lambda message, *_: once(str(message))
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt as stop:
            _end(f"interrupted; {str(stop) or 'nothing was written.'}", 130)  # As shells have it.
        except BrokenPipeError:
            _drop_stdout()
            raise typer.Exit(1) from None
        except BellmError as error:
            _end(str(error), 1)
        except OSError as error:
            _drop_stdout()
            _end(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 1)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Say in one line what is wrong with a command line, and how it is written."""
    try:
        yield
    except _UsageError as error:
        if error.ctx is None or type(error).__name__ == "NoArgsIsHelpError":  # No arguments at all: the help.
            raise
        message, path = error.format_message().rstrip("."), error.ctx.command_path
        _end(f"{message}. {error.ctx.get_usage()} ({path} --help says more)", error.exit_code)


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"bellm: {' '.join(message.split())}", err=True)
    raise typer.Exit(code) from None


def _drop_stdout() -> None:
    """Send what standard output still holds nowhere: it would fail again when Python ends."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def open_streams() -> None:
    """Refuse to work without a standard output, and do without the other streams.

    Files that are opened later would take the number of a closed stream, and get what others write to it. What an
    output cannot show, such as half a character in the name of a file, is shown with a backslash.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest free number, which is this one.
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if sys.stdout is None:
        sys.exit("bellm: standard output is closed: send it somewhere, as in > /dev/null.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


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


def check_output(output: str) -> str:
    """Refuse an output without a name, and `-`, which would become a file or folder of that name."""
    if output in ("", "-"):
        raise typer.BadParameter(f"{output!r} is no name, and nothing goes to standard output. Name a file or folder.")
    return output


def print_result(record: Mapping[str, Any], as_json: bool, *words: Any) -> None:
    """Print a command's result as one JSON object, or in words: sentences, and tables of rich."""
    if as_json:
        text = json.dumps(record, ensure_ascii=False)
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            text = json.dumps(record)
        typer.echo(text)
        return
    from rich.console import Console

    console = Console()
    for part in words:
        if isinstance(part, str):
            typer.echo(part)
        else:
            console.print(part)
