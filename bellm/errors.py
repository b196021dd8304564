"""Everything bellm raises or warns of on purpose, and the checks of arguments that many functions share."""

import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from pathlib import Path
from types import FrameType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints


class BellmError(ValueError):
    """Base of all errors that bellm raises for its users: a mistake or an impossible wish, said in one line."""


class LayerError(BellmError):
    """A direction map does not fit the model, or a chosen layer cannot be opened."""


class PromptError(BellmError):
    """A prompt is unknown, has no `{text}` slot, or leaves no room for the text."""


class SourceError(BellmError):
    """A model, folder or file cannot be read or written as asked."""


class SeveralViewsError(SourceError):
    """A source holds a multi-view encoder, and one encoder was asked for."""


class FingerprintError(BellmError):
    """A saved encoder does not give the vectors that it gave when it was saved."""


class MissingExtraError(BellmError, ImportError):
    """The packages of an optional extra are not installed."""


class UnknownAttributeError(BellmError, AttributeError):
    """An object has no such attribute; the message names what to write instead, where there is something."""


class MemoryLimitError(BellmError):
    """A single text does not fit in memory."""


class NothingToLearnError(BellmError):
    """No training could change what an encoder's vectors say of their texts."""


class NonFiniteError(BellmError):
    """A model gives NaN or infinity."""


class BellmWarning(UserWarning):
    """Base of all warnings that bellm gives: the work goes on, and differs from what one may think."""


class NoOpWarning(BellmWarning):
    """The open layers change nothing, or fewer layers open than were asked for."""


class SourceWarning(BellmWarning):
    """A source was read in another way than it says."""


class TruncationWarning(BellmWarning):
    """Texts were longer than `max_tokens` and were cut."""


class CorpusWarning(BellmWarning):
    """A shard was damaged and is made anew, or a corpus holds files that were not named."""


class MemoryWarning(BellmWarning):
    """Batches became smaller, because memory did not hold them."""


class KernelWarning(BellmWarning):
    """A slower kernel computes attention, because a faster one cannot."""


_T = TypeVar("_T")

_PACKAGE = str(Path(__file__).parent) + os.sep
_caller: ContextVar[FrameType | None] = ContextVar("caller", default=None)


def warn(message: str, category: type[BellmWarning]) -> None:
    """Give a warning that points to the line outside bellm that called it, through however many functions."""
    frame = _caller_frame()
    place = frame.f_code.co_filename, frame.f_lineno, str(frame.f_globals.get("__name__"))
    warnings.warn_explicit(message, category, *place, frame.f_globals.setdefault("__warningregistry__", {}))


def context_for_thread() -> Context:
    """Copy the context for a thread of bellm's own, whose warnings then point to the caller of this thread."""
    context = copy_context()
    context.run(_caller.set, _caller_frame())
    return context


def _caller_frame() -> FrameType:
    """The frame that called the outermost one of bellm; that one itself where nothing did."""
    if inherited := _caller.get():
        return inherited
    frame: FrameType | None = sys._getframe()
    caller = sys._getframe()
    while frame:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            caller = frame.f_back or frame
        frame = frame.f_back
    return caller


@contextmanager
def errors_naming(name: str) -> Iterator[None]:
    """Say which of several models an error is about."""
    try:
        yield
    except BellmError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def refuses_changes(advice: str) -> Callable[[type[_T]], type[_T]]:
    """Let a frozen dataclass say how to get another one, where a field of it is set; `{change}` is the keyword."""

    def decorate(kind: type[_T]) -> type[_T]:
        def refuse(_: _T, name: str, value: object) -> None:
            change = f"{name}={value!r:.60}"
            raise BellmError(f"{kind.__name__}.{name} cannot be set. Write {advice.format(change=change)}.")

        kind.__setattr__ = refuse  # type: ignore[assignment]
        return kind

    return decorate


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise a BellmError unless a value is one of some names, or of those of a Literal."""
    names = get_args(choices) or tuple(choices)
    if not any(value == each for each in names):
        raise BellmError(f"{name}={value!r} is not one of {', '.join(names)}.{did_you_mean(str(value), names)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known name, behind a space; empty where none is near.

    >>> did_you_mean("Mean", ["mean", "last"]), did_you_mean("x", ["mean"])
    (' Did you mean mean?', '')
    """
    names = {each.lower(): each for each in reversed(list(known))}
    close = difflib.get_close_matches(name.lower(), names, 1)
    return f" Did you mean {names[close[0]]}?" if close else ""


def check_list(name: str, value: object) -> None:
    """Raise a BellmError unless a value is a list or another sequence, and holds anything."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise BellmError(f"{name} is of type {type(value).__name__}: give a list, if only of one.")
    if not value:
        raise BellmError(f"{name} is empty: give at least one.")


def check_encoder(value: object, kind: type | UnionType) -> None:
    """Raise a BellmError unless a value is an encoder of a kind, or a function that loads one."""
    if not (isinstance(value, kind) or callable(value)):
        raise BellmError(f"{value!r:.60} is no encoder. Open one with Encoder.from_pretrained.")


def check_fields(instance: Any) -> None:
    """Raise a BellmError unless the fields of a dataclass are of their annotated types, as far as these can be seen."""
    for name, hint in get_type_hints(type(instance)).items():
        value = getattr(instance, name)
        if get_origin(hint) is Literal:
            check_choice(name, value, hint)
        elif not _is_of(value, hint):
            wanted = hint.__name__ if isinstance(hint, type) else re.sub(r"\b[\w.]+\.(?=\w)", "", str(hint))
            raise BellmError(f"{name}={value!r:.60} is not of type {wanted}.")


def _is_of(value: object, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(hint))
    if kind is Callable or kind is Any:
        return kind is Any or callable(value)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, (int, float) if kind is float else kind)
