"""Time and memory of `bellm analyse MODEL --layers`: every pair of a model's layers, on sentences of Wikipedia.

The command runs twice, each time in a process of its own: first for the vectors, by one measure and without
permutations, then with the kept vectors and all that is default. CPU time, and the peak of the process's memory with
its model and libraries, are those that the kernel counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from representations import texts


def main() -> None:
    """Run the command and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--quick", action="store_true", help="200 texts")
    options = parser.parse_args()
    options.texts = 200 if options.quick else options.texts
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.txt")
        file.write_text("\n".join(texts(options.texts)), encoding="utf-8")
        command = ["analyse", options.model, "--layers", "--texts", str(file), "--cache", f"{folder}/cache"]
        vectors = ["--measures", "cka", "--permutations", "0", "-o", f"{folder}/vectors"]
        print(f"vectors of {options.texts} texts, one measure: {used([*command, *vectors])}", flush=True)
        print(f"all measures of layers, 20 permutations: {used([*command, '-o', f'{folder}/layers'])}")


def used(arguments: list[str]) -> str:
    """What a command of bellm takes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bellm", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"bellm {' '.join(arguments)} failed.")
    cpu, wall = usage.ru_utime + usage.ru_stime, time.perf_counter() - started
    return f"{cpu:.0f} s of CPU, {wall:.0f} s in all, {usage.ru_maxrss / 1024:.0f} MiB at most"


if __name__ == "__main__":
    main()
