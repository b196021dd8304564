"""CPU seconds that each command takes until it is done, beside importing torch and transformers.

User and system time of the process and of all that it starts; the time of a cold run is its first with an empty cache
of bellm, that of a warm one the median of those that follow. The saved folder is the default model as bellm saves it.
Texts are two short ones, so that what counts is the start.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flops import machine
from rich.console import Console
from rich.table import Table

IMPORTS = "import torch, transformers"
READ = f"{IMPORTS}, safetensors.torch; safetensors.torch.load_file({{!r}})"

MISTAKES = {
    "--help": ["--help"],
    "embed --help": ["embed", "--help"],
    "an unknown option": ["embed", "{saved}", "two.txt", "-o", "v.npy", "--poolin", "mean"],
    "an unknown value": ["embed", "{saved}", "two.txt", "-o", "v.npy", "--pooling", "middle"],
    "a missing option": ["embed", "{saved}", "two.txt"],
    "embed: no such file": ["embed", "{saved}", "none.txt", "-o", "v.npy"],
    "embed: no such file, to a folder": ["embed", "{saved}", "none.txt", "-o", "vectors/"],
    "similarity: no such file": ["similarity", "none.txt", "two.txt", "--model", "{saved}"],
    "search: no such file": ["search", "snow", "--in", "none.txt", "--model", "{saved}"],
    "train: no such file": ["train", "{saved}", "--data", "none.csv", "-o", "run"],
    "evaluate: no such file": ["evaluate", "{saved}", "--tasks", "none.csv", "-o", "report"],
    "layers: no such file": ["layers", "{saved}", "--dev", "none.csv", "-o", "layers"],
    "index: no such folder": ["index", "none"],
    "info: no such folder": ["info", "./none"],
}
WORK = {
    "info, a saved folder": ["info", "{saved}"],
    "similarity, a saved folder": ["similarity", "Snow fell.", "It snowed.", "--model", "{saved}"],
    "embed, a saved folder": ["embed", "{saved}", "two.txt", "-o", "v.npy", "--force"],
    "similarity, the default model": ["similarity", "Snow fell.", "It snowed."],
}


@dataclass(frozen=True)
class Row:
    """CPU seconds of one command."""

    command: str
    cold: float
    warm: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="warm runs of each command (5)")
    parser.add_argument("--quick", action="store_true", help="one warm run each, without the default model itself")
    parser.add_argument("--only", default="", help="only commands with this in their name")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "two.txt").write_text("Snow fell all night.\nIt snowed.\n")
        save = "from bellm import Encoder; Encoder.from_pretrained('smollm2').save_pretrained('saved')"
        cpu_seconds([sys.executable, "-c", save], folder)
        rows = []
        for title, code in {
            "import torch": "import torch",
            IMPORTS: IMPORTS,
            f"{IMPORTS}, and read the weights": READ.format("saved/model.safetensors"),
        }.items():
            rows.append(measure(title, [sys.executable, "-c", code], folder, runs))
        for title, arguments in (MISTAKES | WORK).items():
            if options.only in title and not (options.quick and "default model" in title):
                filled = [argument.format(saved="saved") for argument in arguments]
                rows.append(measure(title, [sys.executable, "-m", "bellm", *filled], folder, runs))
    Console().print(table(rows, runs))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )


def measure(title: str, command: Sequence[str], folder: Path, runs: int) -> Row:
    """A command's CPU seconds with an empty cache, and the median with one that it has filled."""
    with tempfile.TemporaryDirectory() as cache:
        cold, *warm = (cpu_seconds(command, folder, BELLM_CACHE=cache) for _ in range(runs + 1))
    return Row(title, cold, statistics.median(warm))


def cpu_seconds(command: Sequence[str], folder: Path, **environment: str) -> float:
    """User and system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment}, capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(rows: Sequence[Row], runs: int) -> Table:
    """The rows, each also as a multiple of the imports."""
    imports = next(row.warm for row in rows if row.command == IMPORTS)
    shown = Table(title=f"CPU seconds, {runs} warm runs each; {machine()}", title_justify="left")
    shown.add_column("command")
    for heading in ("cold", "warm", "of the imports"):
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(row.command, f"{row.cold:.2f}", f"{row.warm:.2f}", f"{row.warm / imports:.2f}")
    return shown


if __name__ == "__main__":
    main()
