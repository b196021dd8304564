"""`bellm doctor`: does the encoder do what it says?"""

import dataclasses
import json
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bellm.cli import command_group
from bellm.cli.model_options import AsJson, ModelOptions, Source, with_model_options

if TYPE_CHECKING:
    from bellm.doctor import Check, Diagnosis, LayerSight

_MARKS = {
    "pass": "[green]pass[/]",
    "warn": "[yellow]warn[/]",
    "fail": "[bold red]FAIL[/]",
    "skip": "[dim]skip[/]",
}


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

        place = saving.find_saved(source)
        saved = saving.read_saved(place) if place else None
        # With other settings than the saved ones the fingerprint was checked on loading, and says no more.
        is_as_saved = saved is not None and saved.config == encoder.config
        diagnosis = diagnose(encoder, saved=saved if is_as_saved else None)
    if as_json:
        typer.echo(json.dumps({"healthy": diagnosis.healthy, **dataclasses.asdict(diagnosis)}, ensure_ascii=False))
    else:
        _show(diagnosis, Console())
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _show(diagnosis: "Diagnosis", console: Console) -> None:
    console.print(escape(diagnosis.subject))
    console.print(_layers(diagnosis.layers))
    console.print(_checks(diagnosis.checks))
    for check in diagnosis.checks:
        if check.advice:
            console.print(f"{_MARKS[check.status]} {escape(check.name)}: {escape(check.advice)}")
    failed = sum(check.status == "fail" for check in diagnosis.checks)
    console.print("[green]Healthy.[/]" if diagnosis.healthy else f"[bold red]{failed} checks failed.[/]")


def _layers(rows: "tuple[LayerSight, ...]") -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="What each layer sees", title_justify="left")
    for heading in ("layers", "kind", "direction", "sees the future", "sees the past", "reach ahead"):
        table.add_column(heading, justify="right" if heading in ("sees the future", "sees the past") else "left")
    for group in _runs(rows):
        first, last = group[0], group[-1]
        table.add_row(
            str(first.layer) if first is last else f"{first.layer}-{last.layer}",
            first.kind,
            "[cyan]both ways[/]" if first.is_open else "causal",
            _spread([row.sight.future for row in group]),
            _spread([row.sight.past for row in group]),
            f"{max(row.sight.reach for row in group)} tokens" if any(row.sight.reach for row in group) else "-",
        )
    return table


def _runs(rows: "tuple[LayerSight, ...]") -> "list[list[LayerSight]]":
    """Neighbouring layers of one kind, direction and sight, together."""
    groups: list[list[LayerSight]] = []
    for row in rows:
        if groups and _signature(groups[-1][-1]) == _signature(row):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _signature(row: "LayerSight") -> tuple[str, bool, bool, bool]:
    return row.kind, row.is_open, row.sight.future > 0, row.sight.past > 0


def _spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"


def _checks(checks: "tuple[Check, ...]") -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Checks", title_justify="left")
    for heading in ("", "check", "difference", "allowed", "measured on"):
        table.add_column(heading, justify="right" if heading in ("difference", "allowed") else "left")
    for check in checks:
        numbers = ("" if number is None else f"{number:.2g}" for number in (check.value, check.limit))
        table.add_row(_MARKS[check.status], escape(check.name), *numbers, escape(check.finding))
    return table
