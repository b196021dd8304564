"""CPU seconds that each command takes until it is done, beside importing torch and transformers.

User and system time of the process and of all that it starts; the time of a cold run is its first with an empty cache
of bellm, that of a warm one the median of those that follow. The script ends at a command that does something else. The
saved folder is the default model as bellm saves it. Texts are two short ones, so that what counts is the start.
"""

import argparse
import json
import os
import re
import resource
import shlex
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

HELP = {"--help": ["--help"], "embed --help": ["embed", "--help"]}
MISTAKES = {
    "an unknown option": (["embed", "saved", "two.txt", "-o", "v.npy", "--poolin", "mean"], "No such option"),
    "an unknown value": (["embed", "saved", "two.txt", "-o", "v.npy", "--pooling", "middle"], "pooling"),
    "a missing option": (["embed", "saved", "two.txt"], "Missing option"),
    "embed: no such file": (["embed", "saved", "none.txt", "-o", "v.npy"], "none.txt"),
    "embed: no such file, to a folder": (["embed", "saved", "none.txt", "-o", "vectors/"], "none.txt"),
    "similarity: no such file": (["similarity", "saved", "none.txt", "two.txt"], "none.txt"),
    "search: no such file": (["search", "saved", "snow", "--in", "none.txt"], "none.txt"),
    "train: no such file": (["train", "saved", "--data", "none.csv", "-o", "run"], "none.csv"),
    "evaluate: no such file": (["evaluate", "saved", "--tasks", "none.csv", "-o", "report"], "none.csv"),
    "layers: no such file": (["layers", "saved", "--dev", "none.csv", "-o", "layers"], "none.csv"),
    "index: no such folder": (["index", "none"], "none"),
    "info: no such folder": (["info", "./none"], "none"),
}
"""Commands, and what their error has to say."""
WORK = {
    "info, a saved folder": ["info", "saved"],
    "similarity, a saved folder": ["similarity", "saved", "Snow fell.", "It snowed."],
    "embed, a saved folder": ["embed", "saved", "two.txt", "-o", "v.npy", "--force"],
    "similarity, the default model": ["similarity", "Snow fell.", "It snowed."],
}
PLAIN = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("saved"), AutoTokenizer.from_pretrained("saved")
with torch.inference_mode():
    model.model(**tokenizer(["Snow fell.", "It snowed."], return_tensors="pt", padding=True))
"""


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
        rows = [
            measure(title, [sys.executable, "-c", code], folder, runs)
            for title, code in {
                "import torch": "import torch",
                IMPORTS: IMPORTS,
                f"{IMPORTS}, and read the weights": READ.format("saved/model.safetensors"),
                "transformers alone: load, and one forward pass": PLAIN,
            }.items()
        ]
        right = {title: (arguments, "") for title, arguments in (HELP | WORK).items()}
        for title, (arguments, error) in (MISTAKES | right).items():
            if options.only in title and not (options.quick and "default model" in title):
                rows.append(measure(title, [sys.executable, "-m", "bellm", *arguments], folder, runs, error))
    Console().print(table(rows, runs))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )


def measure(title: str, command: Sequence[str], folder: Path, runs: int, error: str = "") -> Row:
    """A command's CPU seconds with an empty cache, and the median with one that it has filled."""
    with tempfile.TemporaryDirectory() as cache:
        cold, *warm = (cpu_seconds(command, folder, error, BELLM_CACHE=cache) for _ in range(runs + 1))
    return Row(title, cold, statistics.median(warm))


def cpu_seconds(command: Sequence[str], folder: Path, error: str = "", **environment: str) -> float:
    """User and system time of a command and its children, which succeeds, or fails with this error in one line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if bool(done.returncode) != bool(error) or (error and not re.fullmatch(f"bellm: .*{error}.*\n", done.stderr)):
        raise SystemExit(f"{shlex.join(command)} did something else:\n{done.stdout}{done.stderr}")
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
