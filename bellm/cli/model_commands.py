"""`bellm info`, a model and its settings, and `bellm doctor`, what its layers see and whether its vectors hold."""

import dataclasses
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellm.backbone.source_names import EXPORT_FILE
from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options
from bellm.cli.terminal import print_result, status_line
from bellm.config import setting_names
from bellm.errors import BellmError

if TYPE_CHECKING:
    from rich.table import Table

    from bellm.doctor import Diagnosis

_MERGED = ("saved_encoder", "name", "open_layers", "num_layers", "template")  # Shown in another row.
_LOADED = (
    "parameters",
    "architecture",
    "layers",
    "device",
    "attention",
    "batching_mode",
    "attention_kernel",
)  # Unknown of files alone.
_MARKS = {"pass": "[green]pass[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]", "skip": "[dim]skip[/]"}


@with_model_options
def info_command(source: Source, *, as_json: AsJson = False, options: ModelOptions) -> None:
    """Show a model's layers and everything that decides its vectors.

    Of a folder that bellm saved only small files are read, and no model, unless an option of a model is given. Whether
    its weights are those of its settings bellm doctor says.

    Example: bellm info smollm2 --bidirectional last:8

    Example: bellm info my-encoder
    """
    from bellm.backbone.source_names import VIEWS_FILE
    from bellm.saved_encoder import describe_saved, is_saved, read_views

    if (Path(source) / VIEWS_FILE).is_file() and not options.given():
        description = read_views(Path(source))[0]["description"]
        print_result({"source": source, **description}, as_json, _views_table(description))
        return
    if is_saved(source) and not options.given():
        info = {"source": source, "saved_encoder": True, **describe_saved(Path(source))}
        unknown = ", ".join(name for name in _LOADED if info[name] is None)
        note = f"No model was loaded, which {unknown} are of: bellm info {source} --device auto, or bellm doctor."
        print_result(info, as_json, _info_table(info), note)
        return
    encoder = options.load(source)
    from bellm import MultiViewEncoder, saving
    from bellm.backbone.architecture import layer_kinds

    if isinstance(encoder, MultiViewEncoder):
        description = encoder.describe()
        print_result({"source": source, **description}, as_json, _views_table(description))
        return

    info = {
        "source": source,
        "saved_encoder": saving.find_saved(source) is not None,
        "base_model": encoder.name,
        "architecture": type(encoder.model).__name__,
        "parameters": encoder.model.num_parameters(),
        "layers": layer_kinds(encoder.model),
        **encoder.describe(),
        "compression": list(encoder.compression),
        "attention": encoder.model.config._attn_implementation,
        "batching_mode": encoder.batching_mode,
        "attention_kernel": encoder.attention_kernel,
        "chat_template": bool(encoder.tokenizer.chat_template),
    }
    print_result(info, as_json, _info_table(info))


def _views_table(description: dict[str, Any]) -> "Table":
    """What is said of several views: the whole, then each view's settings in a row."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, value in description.items():
        if name != "views":
            table.add_row(name.replace("_", " "), Text(str(value), overflow="fold"))
    for number, view in enumerate(description["views"], 1):
        settings = ", ".join(f"{name}={value}" for name, value in view.items() if value is not None)
        table.add_row(f"view {number}", Text(settings, overflow="fold"))
    return table


def _info_table(info: dict[str, Any]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    chat = "applied" if info["prompt"] == "chat" else "present, not applied"
    shown = info | {
        "source": f"{info['source']}{' (saved bellm encoder)' if info['saved_encoder'] else ''}",
        "parameters": info["parameters"] and f"{info['parameters']:,}",
        "layers": info["layers"] and "; ".join(f"{layers} {kind}" for kind, layers in info["layers"].items()),
        "bidirectional": f"{info['bidirectional']} of {info['num_layers']}",
        "prompt": f"{info['prompt']}: {info['template']}",
        "compression": "; ".join(step["summary"] for step in info["compression"]) or None,
        "chat_template": chat if info["chat_template"] else "none",
    }
    table = Table(show_header=False, box=None)
    for name, value in shown.items():
        if name in setting_names() or (name not in _MERGED and value is not None):
            table.add_row(name.replace("_", " "), Text("-" if value is None else str(value), overflow="fold"))
    return table


@with_model_options
def doctor_command(
    source: Source,
    *,
    python: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of an export: Python of an environment that has its library."),
    ] = None,
    as_json: AsJson = False,
    options: ModelOptions,
) -> None:
    """Measure what every layer sees, and whether vectors stay the same where they must.

    Differences are relative to the states compared; float32 unless --dtype says otherwise, for exact answers.
    Exits with 1 if anything fails. A folder that bellm export wrote is run in
    its own library, and compared with the encoder's vectors of that day.

    Example: bellm doctor smollm2 --bidirectional last:8
    """
    if (Path(source) / EXPORT_FILE).is_file():
        if given := options.given():
            raise BellmError(f"{source} is an export with settings of its own: leave {next(iter(given))} out.")
        with status_line(f"running {source}"):
            from bellm.export import diagnose_export

            diagnosis = diagnose_export(Path(source), python)
    elif python:
        raise BellmError(f"--python is for exports, and {source} is none.")
    else:
        diagnosis = _diagnose_encoder(source, options)
    record = {"healthy": diagnosis.healthy, **dataclasses.asdict(diagnosis)}
    print_result(record, as_json, *_diagnosis_in_words(diagnosis))
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _diagnose_encoder(source: str, options: ModelOptions) -> "Diagnosis":
    encoder = options.load(source, verify=False, dtype="float32")
    with status_line(f"examining {source}"):
        from bellm import Encoder, saving
        from bellm.doctor import diagnose
        from bellm.saved_encoder import read_saved

        folder = saving.find_saved(source)
        saved = read_saved(folder) if folder else None
        # With other settings than the saved ones the fingerprint was checked on loading, and says no more.
        is_saved = saved and isinstance(encoder, Encoder) and saved.config == encoder.config
        return diagnose(encoder, saved=saved if is_saved else None)


def _diagnosis_in_words(diagnosis: "Diagnosis") -> Iterator[Any]:
    from rich.markup import escape
    from rich.text import Text

    yield Text(diagnosis.subject)
    if diagnosis.layers:
        yield _layer_table(diagnosis)
    table = _table("Checks", "", "check", "difference>", "allowed>", "measured on")
    for check in diagnosis.checks:
        numbers = ("" if number is None else f"{number:.2g}" for number in (check.value, check.limit))
        table.add_row(_MARKS[check.status], escape(check.name), *numbers, escape(check.finding))
    yield table
    for check in diagnosis.checks:
        if check.advice:
            yield Text.from_markup(f"{_MARKS[check.status]} {escape(check.name)}: {escape(check.advice)}")
    failed = sum(check.status == "fail" for check in diagnosis.checks)
    yield Text("Healthy.", "green") if diagnosis.healthy else Text(f"{failed} checks failed.", "bold red")


def _layer_table(diagnosis: "Diagnosis") -> "Table":
    """A row for neighboring layers of one kind and direction that see the same sides."""
    headings = ("layers", "kind", "direction", "sees the future>", "sees the past>", "reach ahead")
    table = _table("What each layer sees", *headings)
    sides = groupby(diagnosis.layers, lambda row: (row.kind, row.is_open, row.leakage.future > 0, row.leakage.past > 0))
    for (kind, is_open, *_), rows in sides:
        group = list(rows)
        reach = max(row.leakage.reach for row in group)
        table.add_row(
            "-".join(dict.fromkeys(str(row.layer) for row in (group[0], group[-1]))),
            kind,
            "[cyan]both ways[/]" if is_open else "causal",
            _range([row.leakage.future for row in group]),
            _range([row.leakage.past for row in group]),
            f"{reach} tokens" if reach else "-",
        )
    return table


def _table(title: str, *headings: str) -> "Table":
    """A table without rows; numbers stand under a heading that ends in >."""
    from rich import box
    from rich.table import Column, Table

    columns = (Column(name.rstrip(">"), justify="right" if name.endswith(">") else "left") for name in headings)
    return Table(*columns, box=box.SIMPLE_HEAD, title=title, title_justify="left")


def _range(values: list[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values))))
