"""`bellm cache`: what bellm keeps on this machine, and how to be rid of it."""

import time
from typing import Annotated

import typer

from bellm.cli.model_options import AsJson
from bellm.cli.terminal import print_result
from bellm.errors import BellmError
from bellm.io.cache import KINDS, cache_entries, clear_cache, default_cache_folder


def cache_command(
    kind: Annotated[str | None, typer.Argument(help=f"{', '.join(KINDS)}; default everything.")] = None,
    *,
    clear: Annotated[bool, typer.Option("--clear", help="Remove it; bellm makes again what it needs.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what bellm keeps to be quicker next time, last used first, or clear it.

    It lies in BELLM_CACHE, or ~/.cache/bellm. Models of the Hub are in the cache of the Hub's client (hf cache).

    Example: bellm cache

    Example: bellm cache vectors --clear
    """
    if kind is not None and kind not in KINDS:
        raise BellmError(f"kind={kind!r} is not one of {', '.join(KINDS)}.")
    kinds = [kind] if kind else list(KINDS)
    entries = clear_cache(kinds) if clear else cache_entries(kinds)
    total = sum(entry.num_bytes for entry in entries)
    folder = str(default_cache_folder())
    record = {
        "folder": folder,
        "cleared": clear,
        "bytes": total,
        "entries": [
            {"kind": entry.kind, "name": entry.path.name, "bytes": entry.num_bytes, "last_used": entry.last_used}
            for entry in entries
        ],
    }
    if clear or not entries:
        words = f"{_size(total)} removed from {folder}." if entries else f"Nothing is kept in {folder}."
        print_result(record, as_json, words)
        return
    from rich import box
    from rich.table import Column, Table

    columns = (Column("kind"), Column("name", overflow="fold"), Column("size", justify="right"), Column("last used"))
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for entry in entries:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        table.add_row(entry.kind, entry.path.name, _size(entry.num_bytes), day)
    print_result(record, as_json, table, f"{_size(total)} in {folder}.")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
