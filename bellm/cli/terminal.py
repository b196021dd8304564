"""Console output: results on standard output; errors, notes and progress on standard error."""

import contextlib
import functools
import inspect
import io
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from bellm.errors import BellmError, BellmWarning, did_you_mean
from bellm.hints import COMMAND_HINTS

BarUpdate = Callable[..., None]
"""Called as `update(description, done, total, bar="")`: a total of 0 is unknown, and each `bar` is a row of its own."""


UsageError: type[Any] = typer.BadParameter.__mro__[1]  # Of click, or of typer's own copy of click.


class _Verbosity:
    """How much the command that runs says besides its result: -1 errors alone, 0 notes, 1 all that libraries say."""

    level = 0


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Add --quiet and --verbose to a command."""

    @functools.wraps(command)
    def with_options(*args: Any, quiet: bool, verbose: bool, **kwargs: Any) -> None:
        if quiet and verbose:
            raise BellmError("--quiet and --verbose are two answers to one question: give one.")
        _Verbosity.level = int(verbose) - int(quiet)
        command(*args, **kwargs)

    flags = {
        "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress, errors alone.")],
        "verbose": Annotated[
            bool, typer.Option("--verbose", "-v", help="All that libraries say, and the traceback of an error.")
        ],
    }
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=False, annotation=flag) for name, flag in flags.items()]
    signature = inspect.signature(command)
    with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(each.replace(kind=kind) for each in signature.parameters.values()), *added]
    )
    with_options.__annotations__ = {**command.__annotations__, **flags}
    return with_options


class OneValueCommand(TyperCommand):
    """A command that refuses an option given twice, where the last value would win in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        try:
            values, _, given = self.make_parser(ctx).parse_args(args=list(args))
        except UsageError as error:
            error.ctx = ctx
            raise
        for option in given:
            if option.param_type_name == "option" and not option.multiple and given.count(option) > 1:
                names = "/".join((*option.opts, *option.secondary_opts))
                raise UsageError(f"{names} is given more than once: give it one value.", ctx)
        return super().parse_args(ctx, self.with_source(values, args))

    def with_source(self, _values: Mapping[str, Any], args: list[str]) -> list[str]:
        """The command line with its source, given the values that the parser has found."""
        return args


class OptionalSourceCommand(OneValueCommand):
    """A command whose first argument, the source, may be left out; it then gets an empty one."""

    def with_source(self, values: Mapping[str, Any], args: list[str]) -> list[str]:
        """The command line with an empty source in front, where one argument is missing."""
        missing = [
            param
            for param in self.params
            if param.param_type_name == "argument" and not isinstance(values.get(param.name), str)
        ]
        return ["", *args] if len(missing) == 1 else args


class CommandGroup(TyperGroup):
    """Typer group that maps exceptions to one line on standard error and an exit code."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse what stands before the command."""
        _Verbosity.level = 0
        with _usage_errors(self.commands):
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors that are nobody's bug end it without a traceback, bellm's own warnings are notes."""
        try:
            with warnings.catch_warnings(), _usage_errors(self.commands):
                warnings.simplefilter("always")
                once = functools.cache(show_note)  # Several models may have the same to say.

                def show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
                    if _Verbosity.level >= int(not issubclass(category, BellmWarning)):
                        once(str(message))

                warnings.showwarning = show_warning  # type: ignore[assignment]
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
def _usage_errors(commands: Mapping[str, Any]) -> Iterator[None]:
    """Say in one line what is wrong with a command line, what may be meant, and how it is written."""
    try:
        yield
    except UsageError as error:
        if error.ctx is None or type(error).__name__ == "NoArgsIsHelpError":  # No arguments at all: the help.
            raise
        path, params = error.ctx.command_path, error.ctx.command.params
        message = error.format_message().partition(" (Possible options")[0].partition(" Did you mean")[0].rstrip(".")
        message = message.replace(": Value error, ", ": ")  # Typer says so of a choice.
        near = ""
        if option := getattr(error, "option_name", ""):
            names = [name for param in params for name in (*param.opts, *param.secondary_opts) if name[0] == "-"]
            near = COMMAND_HINTS.get(option) or did_you_mean(option, names)
        elif unknown := re.search(r"No such command '(.*)'", message):
            near = did_you_mean(unknown[1], commands)
        elif value := re.search(r"'([^']*)' is not one of (.*)", message):
            near = did_you_mean(value[1], re.findall(r"'([^']*)'", value[2]))
        _end(f"{message}.{near} {error.ctx.get_usage()} ({path} --help says more)", error.exit_code)


def _end(message: str, code: int) -> NoReturn:
    if _Verbosity.level > 0 and sys.exc_info()[0]:
        traceback.print_exc()
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
    _quiet_libraries()
    # A status line refreshes itself in a thread.
    with console.status(escape(what)) if _shows_progress(console) else contextlib.nullcontext():
        yield


def _shows_progress(console: Any) -> bool:
    return console.is_terminal and _Verbosity.level >= 0


def is_quiet() -> bool:
    """Whether errors alone are to be said."""
    return _Verbosity.level < 0


def is_progress_shown() -> bool:
    """Whether bars of the library are for a person at a terminal, who wants them."""
    return sys.stderr.isatty() and _Verbosity.level >= 0


def _quiet_libraries() -> None:
    """Let libraries say nothing, whether they are imported already or not, unless all is to be said."""
    if _Verbosity.level > 0:
        return
    # Read when tqdm and transformers are first imported; bars that bellm asks for are shown nevertheless.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


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
    shown = progress.Progress(*columns, console=console, transient=True, disable=not _shows_progress(console))
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
    """Print a note on a line of its own, unless errors alone are wanted."""
    if _Verbosity.level < 0:
        return
    typer.echo(f"note: {' '.join(sentence.split())}", err=True)


def check_output(output: str) -> str:
    """Refuse an output without a name, and `-`, which would become a folder of that name."""
    if output in ("", "-"):
        raise typer.BadParameter(f"{output!r} is no name, and a folder cannot go to standard output. Name one.")
    return output


def text_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A table of texts as they are; one that is None is empty."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell), overflow="fold") for cell in row))
    return table


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
