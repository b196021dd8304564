"""`bellm info`: a model's architecture, and every setting that decides its vectors."""

import json
from typing import Any

import typer

from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options
from bellm.config import setting_names

_MERGED = ("saved_encoder", "name", "open_layers", "num_layers", "template")  # Shown in another row.


@with_model_options
def info_command(source: Source, *, as_json: AsJson = False, options: ModelOptions) -> None:
    """Show a model's layers and everything that decides its vectors.

    Example: bellm info smollm2 --bidirectional last:8
    """
    encoder = options.load(source)
    from bellm import saving
    from bellm.backbone.architecture import layer_kinds

    info = {
        "source": source,
        "saved_encoder": saving.find_saved(source) is not None,
        "base_model": encoder.name,
        "architecture": type(encoder.model).__name__,
        "parameters": encoder.model.num_parameters(),
        "layers": layer_kinds(encoder.model),
        **encoder.describe(),
        "attention": encoder.model.config._attn_implementation,
        "batching_mode": encoder.batching_mode,
        "chat_template": bool(encoder.tokenizer.chat_template),
    }
    if as_json:
        typer.echo(json.dumps(info, ensure_ascii=False))
    else:
        _show(info)


def _show(info: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    chat = "applied" if info["prompt"] == "chat" else "present, not applied"
    shown = info | {
        "source": f"{info['source']}{' (saved bellm encoder)' if info['saved_encoder'] else ''}",
        "parameters": f"{info['parameters']:,}",
        "layers": "; ".join(f"{layers} {kind}" for kind, layers in info["layers"].items()),
        "bidirectional": f"{info['bidirectional']} of {info['num_layers']}",
        "prompt": f"{info['prompt']}: {info['template']}",
        "chat_template": chat if info["chat_template"] else "none",
    }
    table = Table(show_header=False, box=None)
    for name, value in shown.items():
        if name in setting_names() or (name not in _MERGED and value is not None):
            table.add_row(name.replace("_", " "), Text("-" if value is None else str(value), overflow="fold"))
    Console().print(table)
