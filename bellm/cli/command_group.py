"""Manners of the command line: one line for an error, one for a warning, silence from the libraries below."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from bellm.errors import BellmError, BellmWarning

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class CommandGroup(TyperGroup):
    """The place where a user's mistake becomes one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors that are nobody's bug end it without a traceback."""
        try:
            with _notes():
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt as stop:
            _end(f"interrupted; {str(stop) or 'nothing was written.'}", INTERRUPTED)
        except BrokenPipeError:
            _drop_stdout()
            raise typer.Exit(1) from None
        except BellmError as error:
            _end(str(error), 1)
        except OSError as error:
            _drop_stdout()
            _end(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 1)


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
def _notes() -> Iterator[None]:
    """Show bellm's own warnings as one line each, and no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", BellmWarning)
        warnings.showwarning = lambda message, *_: typer.echo(f"note: {_one_line(str(message))}", err=True)
        yield


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"bellm: {_one_line(message)}", err=True)
    raise typer.Exit(code) from None


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _drop_stdout() -> None:
    """Send what standard output still holds nowhere: it would fail again when Python ends."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
