"""`bellm info`: what a source is, and what bellm makes of it."""

import json
from typing import TYPE_CHECKING, Any

import typer

from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options

if TYPE_CHECKING:
    from bellm.encoder import Encoder


@with_model_options
def info_command(source: Source, *, as_json: AsJson = False, options: ModelOptions) -> None:
    """Show a model's layers and everything that decides its vectors.

    Example: bellm info smollm2 --bidirectional last:8
    """
    encoder = options.load(source)
    from bellm.metadata import encoder_metadata

    found = encoder_metadata(source, encoder) | _model_facts(source, encoder)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _show(found)


def _model_facts(source: str, encoder: "Encoder") -> dict[str, Any]:
    from bellm import saving

    return {
        "architecture": type(encoder.model).__name__,
        "base_model": encoder.name,
        "saved_encoder": saving.find_saved(source) is not None,
        "parameters": encoder.model.num_parameters(),
        "layers": _kinds(encoder),
        "attention": encoder.model.config._attn_implementation,
        "batching_mode": encoder.batching_mode,
        "chat_template": bool(encoder.tokenizer.chat_template),
    }


def _kinds(encoder: "Encoder") -> dict[str, str]:
    """Layer numbers of each kind, as in `{"full": "0-29"}`."""
    from bellm.backbone.architecture import get_layers
    from bellm.layer_spec import format_layers

    layers = get_layers(encoder.model)
    kinds = dict.fromkeys(layer.kind for layer in layers)
    return {kind: format_layers([layer.number for layer in layers if layer.kind == kind]) for kind in kinds}


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, value in _in_words(found).items():
        table.add_row(name, Text(value, overflow="fold"))
    Console().print(table)


def _in_words(found: dict[str, Any]) -> dict[str, str]:
    applied = "applied" if found["prompt"] == "chat" else "present, not applied"
    return {
        "source": f"{found['source']}{' (saved bellm encoder)' if found['saved_encoder'] else ''}",
        "base model": found["base_model"],
        "architecture": found["architecture"],
        "parameters": f"{found['parameters']:,}",
        "layers": "; ".join(f"{layers} {kind}" for kind, layers in found["layers"].items()),
        "open layers": f"{found['bidirectional']} of {found['num_layers']}",
        "variant": found["variant"],
        "window": found["window"],
        "prompt": f"{found['prompt']}: {found['template']}",
        "chat template": applied if found["chat_template"] else "none",
        "pooling": f"{found['pooling']}, state of layer {found['layer']}",
        "max tokens": str(found["max_tokens"]),
        "dimensions": str(found["embedding_dim"]),
        "dtype": found["dtype"],
        "device": found["device"],
        "attention": found["attention"],
        "texts run": found["batching_mode"],
    }
