"""Options of every command that loads a model, written once."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from bellm.cli import command_group

if TYPE_CHECKING:
    from bellm.encoder import Encoder

DEFAULT_MODEL = "smollm2"

_LOADING = ("device", "attention", "trust_remote_code")


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Model", show_default=False)


Source = Annotated[
    str,
    typer.Argument(help="Hub id, model folder, .gguf file, saved bellm encoder, or smollm2.", show_default=False),
]
Model = Annotated[str, typer.Option("--model", help="Hub id, model folder, .gguf file or saved bellm encoder.")]
Column = Annotated[str, typer.Option(help="Which column of .jsonl, .csv, .tsv or .parquet holds the texts.")]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Most tokens in one forward pass; less takes less memory; default what suits the hardware."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How to load a model; None leaves the choice to the encoder."""

    bidirectional: Annotated[
        str | None,
        _option(help="Layers that look both ways: none, all, last:K, first:K, every:K, 0-7 or 3,5,28-29; default none"),
    ] = None
    variant: Annotated[
        str | None,
        _option(help="sequential: open layers stay in the stack; parallel: they run as a branch of their own"),
    ] = None
    window: Annotated[
        str | None, _option(help="Opened sliding-window layers keep or open their window; default keep")
    ] = None
    prompt: Annotated[
        str | None,
        _option(
            help="raw, bellm, prompteol, angle, pretended-cot, knowledge, instruct, instruct:TASK, chat, or your own "
            "template with a {text} slot; default prompteol"
        ),
    ] = None
    pooling: Annotated[
        str | None, _option(help="last, mean, mean-text, weighted-mean, first or max over the tokens; default last")
    ] = None
    layer: Annotated[
        int | None, _option(help="State to pool: 0 embeddings, k after layer k, -1 the final one; default -1")
    ] = None
    max_tokens: Annotated[
        int | None, _option(help="Longest input with its prompt; longer texts are cut; default the model's limit")
    ] = None
    dtype: Annotated[str | None, _option(help="float32, bfloat16, float16 or auto")] = None
    device: Annotated[str | None, _option(help="cpu, cuda, mps or auto")] = None
    attention: Annotated[str | None, _option(help="eager, sdpa, flash_attention_2, flex_attention or auto")] = None
    trust_remote_code: Annotated[
        bool, _option("--trust-remote-code", help="Let the source run Python code of its own")
    ] = False

    def load(self, source: str, *, verify: bool = True) -> "Encoder":
        """Load the source with these choices, quietly."""
        with command_group.status_line(f"loading {source}"):
            from bellm.encoder import Encoder

            return Encoder.from_pretrained(source, **self.given(), verify=verify)

    def given(self) -> dict[str, Any]:
        """The choices that were made."""
        return {name: choice for name, choice in dataclasses.asdict(self).items() if choice is not None}

    def loading(self) -> dict[str, Any]:
        """Those that leave the vectors alone, for an encoder that is loaded again elsewhere."""
        return {name: choice for name, choice in self.given().items() if name in _LOADING}


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of `ModelOptions`, handed to it as one `options`."""
    names = [field.name for field in dataclasses.fields(ModelOptions)]

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> None:
        options = ModelOptions(**{name: kwargs.pop(name) for name in names})
        command(*args, **kwargs, options=options)

    hints = get_type_hints(command, include_extras=True) | get_type_hints(ModelOptions, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "options"
    ]
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(ModelOptions)
    ]
    with_options.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
    return with_options
