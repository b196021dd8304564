"""Options that several commands have; those of a model are derived from the fields of `EncoderConfig`."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from bellm.backbone.source_names import check_source_exists
from bellm.cli.terminal import status_line
from bellm.config import check_settings, setting_help, setting_names, setting_type
from bellm.errors import BellmError

if TYPE_CHECKING:
    from bellm.encoder import Encoder
    from bellm.engine.graph_encoder import GraphEncoder
    from bellm.multiview import MultiViewEncoder

DEFAULT_MODEL = "smollm2"

Source = Annotated[
    str,
    typer.Argument(help="Hub id, folder of a model or of PEFT adapters, .gguf file, saved bellm encoder, or smollm2."),
]
OptionalSource = Annotated[
    str,
    typer.Argument(
        default_factory=str,
        metavar="SOURCE",
        show_default=False,
        help=f"As for other commands; default {DEFAULT_MODEL}, and for a corpus the model that embedded it.",
    ),
]
Column = Annotated[
    str,
    typer.Option(
        "--column",
        "--columns",
        metavar="COLUMN|text=COLUMN,id=COLUMN",
        help="Which column of a table or of JSON holds the texts, and which the ids.",
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Most tokens in one forward pass; less takes less memory; default what suits the hardware."
    ),
]
DataFolder = Annotated[Path | None, typer.Option(help="Folder of data sets; default BELLM_DATA, else the Hub.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Folder that keeps vectors; default BELLM_CACHE, or ~/.cache/bellm."),
]
OwnColumns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="PART=COLUMN,...",
        help="Columns of a file of your own, as in anchor=query,positive=passage,score=rating or "
        "text=review,label=stars; default by their usual names.",
    ),
]
GraphFile = Annotated[
    str | None,
    typer.Option(
        "--graphs",
        metavar="FILE",
        help="AMR graphs of the texts, for encoders with a view of them (SOURCE?transform=amr): PENMAN notation with "
        "# ::snt TEXT, or a table with the columns text and graph. Texts without a graph are embedded as they are.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]


@dataclass(frozen=True)
class ModelOptions:
    """Encoder settings and loading options that were given on the command line."""

    settings: Mapping[str, Any]
    """By the names of `EncoderConfig`'s fields."""
    loading: Mapping[str, Any]
    """dtype, device, attention, device_map and trust_remote_code."""

    def load(self, source: str, **defaults: Any) -> "Encoder | MultiViewEncoder":
        """Load a source with these options, and others where they were not given."""
        with status_line(f"loading {source}"):
            from bellm.multiview import open_encoder

            return open_encoder(source, **{**defaults, **self.given()})

    def load_embedder(self, source: str, **defaults: Any) -> "Encoder | MultiViewEncoder | GraphEncoder":
        """Load a source as `load` does, or the graph of an export."""
        with status_line(f"loading {source}"):
            from bellm.multiview import open_embedder

            return open_embedder(source, **{**defaults, **self.given()})

    def load_encoder(self, source: str) -> "Encoder":
        """Load a source that is one encoder, not a multi-view encoder, with its settings and these options."""
        with status_line(f"loading {source}"):
            from bellm.encoder import Encoder
            from bellm.multiview import source_settings

            settings = {**self.given(), **source_settings(source)}
            if "transform" in settings:
                raise BellmError(f"{source} is a view, and this takes one encoder: leave transform out.")
            encoder: Encoder = Encoder.from_pretrained(source.partition("?")[0], **settings)
            return encoder

    def given(self) -> dict[str, Any]:
        """All options, as keyword arguments of `Encoder.from_pretrained`."""
        return {**self.loading, **self.settings}

    def relocation(self) -> dict[str, Any]:
        """Loading options that do not change vectors, for an encoder that is loaded again elsewhere."""
        return {name: value for name, value in self.loading.items() if name != "dtype"}


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for every encoder setting and for loading; the command gets them as one argument `options`."""
    options = [*map(_setting_option, setting_names()), *_LOADING_OPTIONS]

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> None:
        given = {each.name: kwargs.pop(each.name) for each in options}
        chosen = {name: value for name, value in given.items() if value is not None}
        if revision := chosen.pop("revision", None):  # Part of the source, wherever that is written down.
            name = next(name for name in ("source", "sources") if name in kwargs)
            kwargs[name] = _with_revision(kwargs[name], revision)
        settings = {name: chosen.pop(name) for name in setting_names() if name in chosen}
        check_settings(settings)  # Before anything slow is imported or loaded, as are the sources.
        for source in _sources(kwargs):
            check_source_exists(source)
        command(*args, **kwargs, options=ModelOptions(settings, chosen))

    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "options"
    ]
    with_options.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *options)}
    return with_options


def _sources(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Sources of models among a command's arguments."""
    source = arguments.get("source")
    if source and not source.endswith(".py"):  # None stands for the default, and a recipe names its model itself.
        yield source
    for name in ("sources", "compare"):
        yield from arguments.get(name) or ()


def _with_revision(sources: Any, revision: str) -> Any:
    """A source, or several, as `owner/name@revision`, before the settings that a source may have."""
    if isinstance(sources, list):
        return [_with_revision(source, revision) for source in sources]
    if not sources:
        raise BellmError(f"--revision {revision} is of a model of the Hub: give that too, as the first argument.")
    source, mark, settings = sources.partition("?")
    if os.path.exists(source):
        raise BellmError(
            f"--revision {revision} is of a model of the Hub (owner/name), and {source} is a file or folder."
        )
    return f"{source}@{revision}{mark}{settings}"


def _setting_option(name: str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    flags = (f"{flag}/--no-{flag[2:]}",) if setting_type(name) is bool else (flag,)
    return _parameter(name, setting_type(name), *flags, help=setting_help(name))


def _parameter(name: str, kind: type, *flags: str, help: str) -> inspect.Parameter:
    option = typer.Option(*flags, help=help, rich_help_panel="Model")
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_LOADING_OPTIONS = (
    _parameter("dtype", str, "--dtype", help="float32, bfloat16, float16 or auto"),
    _parameter("device", str, "--device", help="cpu, cuda, mps or auto"),
    _parameter("attention", str, "--attention", help="eager, sdpa, flash_attention_2, flex_attention or auto"),
    _parameter(
        "revision", str, "--revision", help="Branch, tag or commit of a model of the Hub: owner/name@REVISION too"
    ),
    _parameter("device_map", str, "--device-map", help="auto spreads a large model over all devices (accelerate)"),
    _parameter("trust_remote_code", bool, "--trust-remote-code", help="Let the source run Python code of its own"),
)
