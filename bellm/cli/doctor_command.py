"""`bellm doctor`: measure what the layers see, and check the encoder's invariances."""

import dataclasses
import json
from itertools import groupby
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bellm.cli import command_group
from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options

if TYPE_CHECKING:
    from bellm.doctor import Diagnosis

_MARKS = {"pass": "[green]pass[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]", "skip": "[dim]skip[/]"}


@with_model_options
def doctor_command(source: Source, *, as_json: AsJson = False, options: ModelOptions) -> None:
    """Measure what every layer sees, and whether vectors stay the same where they must.

    Differences are relative to the states compared; float32 unless --dtype says otherwise, for exact answers.
    Exits with 1 if anything fails.

    Example: bellm doctor smollm2 --bidirectional last:8
    """
    if "dtype" not in options.loading:
        options = options.changed(dtype="float32")
    encoder = options.load(source, verify=False)
    with command_group.status_line(f"examining {source}"):
        from bellm import saving
        from bellm.doctor import diagnose

        folder = saving.find_saved(source)
        saved = saving.read_saved(folder) if folder else None
        # With other settings than the saved ones the fingerprint was checked on loading, and says no more.
        diagnosis = diagnose(encoder, saved=saved if saved and saved.config == encoder.config else None)
    if as_json:
        typer.echo(json.dumps({"healthy": diagnosis.healthy, **dataclasses.asdict(diagnosis)}, ensure_ascii=False))
    else:
        _show(diagnosis, Console())
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _show(diagnosis: "Diagnosis", console: Console) -> None:
    console.print(escape(diagnosis.subject))
    console.print(_layer_table(diagnosis))
    table = _table("Checks", "", "check", "difference", "allowed", "measured on")
    for check in diagnosis.checks:
        numbers = ("" if number is None else f"{number:.2g}" for number in (check.value, check.limit))
        table.add_row(_MARKS[check.status], escape(check.name), *numbers, escape(check.finding))
    console.print(table)
    for check in diagnosis.checks:
        if check.advice:
            console.print(f"{_MARKS[check.status]} {escape(check.name)}: {escape(check.advice)}")
    failed = sum(check.status == "fail" for check in diagnosis.checks)
    console.print("[green]Healthy.[/]" if diagnosis.healthy else f"[bold red]{failed} checks failed.[/]")


def _layer_table(diagnosis: "Diagnosis") -> Table:
    """One row for neighboring layers of one kind and direction that see the same sides."""
    table = _table(
        "What each layer sees", "layers", "kind", "direction", "sees the future", "sees the past", "reach ahead"
    )
    for (kind, is_open, *_), rows in groupby(
        diagnosis.layers, lambda row: (row.kind, row.is_open, row.leakage.future > 0, row.leakage.past > 0)
    ):
        group = list(rows)
        reach = max(row.leakage.reach for row in group)
        table.add_row(
            "-".join(dict.fromkeys(str(row.layer) for row in (group[0], group[-1]))),
            kind,
            "[cyan]both ways[/]" if is_open else "causal",
            _spread([row.leakage.future for row in group]),
            _spread([row.leakage.past for row in group]),
            f"{reach} tokens" if reach else "-",
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    numeric = ("sees the future", "sees the past", "difference", "allowed")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numeric else "left")
    return table


def _spread(values: list[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values))))
