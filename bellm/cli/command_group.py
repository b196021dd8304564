"""Manners of the command line: one line for an error, one for a warning, silence from the libraries below."""

import contextlib
import os
import sys
import warnings
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from bellm.cli.terminal import show_note
from bellm.errors import BellmError, BellmWarning

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class CommandGroup(TyperGroup):
    """The place where a user's mistake becomes one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors that are nobody's bug end it without a traceback, bellm's own warnings are notes."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", BellmWarning)
                warnings.showwarning = lambda message, *_: show_note(str(message))
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


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"bellm: {' '.join(message.split())}", err=True)
    raise typer.Exit(code) from None


def _drop_stdout() -> None:
    """Send what standard output still holds nowhere: it would fail again when Python ends."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
