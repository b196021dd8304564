"""What side information is worth to a language model on every task of `bellm augment`: gains, calibration, curves.

Each row is a task with its arms on the same items; gains are points of accuracy above the plain prompt. Accuracy by
confidence of the receipt is that of all tasks with two classes together. With --graph-items it also puts AMR graphs
beside the pairs of MRPC, whole and with fewer of their words. Scores are kept in --work: the same command resumes, and
more items go on where fewer ended. Data: `transfer`, `qqp`, `sick`, `scifact` and `amr/bamboo` in BELLM_DATA or
../shared/data.
"""

import argparse
import json
import platform
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from measure_sts import data_folder
from rich.console import Console

from bellm import Encoder
from bellm.augment import augment, read_task, write_augmentation
from bellm.errors import BellmWarning
from bellm.report.formatting import Table, format_points, significance_mark
from bellm.report.statistics import Difference

TASKS = ("SST2-CR", "SST2-MR", "TREC", "MRPC", "MRPC-QQP", "SICK-E", "SciFact")
FEWEST_TRAINED = {"TREC": 1000}  # Its rarest class is one item in sixty, and a probe needs five.
GRAPHS = "MRPC beside graphs"


def main() -> None:
    """Measure what is missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias")
    parser.add_argument("--work", type=Path, default=Path("side_information"), help="folder that keeps scores")
    parser.add_argument("--tasks", default=",".join(TASKS), help="with commas")
    parser.add_argument("--arms", default="hint,sp-output,receipt,retrieval", help="with commas")
    parser.add_argument("--items", type=int, default=150, help="test items of each task")
    parser.add_argument(
        "--graph-items", type=int, default=0, help="pairs of MRPC that are put beside graphs; 0 for none"
    )
    parser.add_argument("--train-items", type=int, default=200, help="that the probe and the neighbors come from")
    parser.add_argument("--neighbors", type=int, default=2, help="training items that retrieval shows")
    parser.add_argument("--calibration", default="batch", help="none, contextual or batch")
    parser.add_argument("--print-only", action="store_true", help="measure nothing")
    parser.add_argument("--quick", action="store_true", help="one task with 12 items")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.items, options.arms = "SST2-CR", 12, "hint,receipt"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", BellmWarning)
    if not options.print_only:
        measure(options)
    found = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for name in (*TASKS, GRAPHS)
        if (path := options.work / name / "results.json").exists()
    }
    for table in tables(found):
        Console(width=160).print(table)
    Console().print(f"{options.model} in its default dtype on {platform.machine()}.")


def measure(options: argparse.Namespace) -> None:
    """Run each task, one after the other, on one model."""
    encoder = Encoder.from_pretrained(options.model)
    runs = [(name, name, options.arms, options.items) for name in options.tasks.split(",")]
    if options.graph_items:
        runs.append((GRAPHS, "MRPC", "sp-input,amr", options.graph_items))
    for folder, name, arms, number in runs:
        trained = max(options.train_items, FEWEST_TRAINED.get(name, 0))
        task = read_task(name, data_folder(), limit=number, train_limit=trained)
        found = augment(
            encoder,
            task,
            options.work / folder,
            arms=arms,
            neighbors=options.neighbors,
            calibration=options.calibration,
            ablation=folder == GRAPHS,
            data=data_folder(),
            cache=options.work / "cache",
        )
        write_augmentation(found, options.model, options.work / folder)
        Console().print(f"{folder}: {found.seconds:.0f} s")


def tables(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """Gains, calibration, accuracy by confidence, and the curves of the graphs."""
    names = list(
        dict.fromkeys(name for one in found.values() for name in one["arms"] if name not in ("plain", "probe"))
    )
    for metric, prefix in (("accuracy", ""), ("F1", "f1_")):
        rows = []
        for task, one in found.items():
            arms = one["arms"]
            plain = arms["plain"]["value" if metric == "accuracy" else "f1"]
            cells = [gain(arms[name], prefix) if name in arms else "" for name in ("probe", *names)]
            rows.append([task, str(arms["plain"]["n"]), format_points(plain), *cells])
        yield Table(("task", "items", f"plain, {metric}", "probe", *names), rows)
    rows = []
    for task, one in found.items():
        probe, learned = one["probe"], one["probe"]["out_of_fold"]
        sides = ((learned["accuracy"], learned), (one["arms"]["probe"]["value"], probe))
        cells = [
            f"{format_points(accuracy)}, {100 * side['ece_before']:.1f} to {100 * side['ece_after']:.1f}"
            for accuracy, side in sides
        ]
        chosen = f"{probe['C']:.2g}{'*' if probe['penalty_edge'] else ''}"
        rows.append([task, str(learned["n"]), chosen, f"{probe['temperature']:.2f}", *cells])
    yield Table(("task", "trained on", "C", "temperature", "out of fold: right, ECE", "test items: right, ECE"), rows)
    if rows := list(by_confidence(found)):
        yield Table(("confidence", "items", "receipt", "plain", "with receipt", "plain agrees", "follows"), rows)
    if GRAPHS in found:
        points = {(each["part"], each["share"]): each for each in found[GRAPHS]["ablation"]}
        shares = sorted({share for _, share in points})
        rows = []
        for part in ("amr", "text"):
            of_part = [points[part, share] for share in shares]
            rows.append([part, *(f"{each['value']:.1f} ({each['low']:.1f} to {each['high']:.1f})" for each in of_part)])
        yield Table(("words left of", *(f"{share:.0%}" for share in shares)), rows)


def gain(arm: Mapping[str, Any], prefix: str) -> str:
    """Points above the plain prompt, with half the width of the interval, marked where they are no chance."""
    value, low, high, p_value = (arm[f"{prefix}{name}"] for name in _DIFFERENCE)
    mark = significance_mark(Difference(value, low, high, p_value))
    return f"{format_points(value, signed=True)} ± {format_points((high - low) / 2)} {mark}".rstrip()


_DIFFERENCE = ("difference", "difference_low", "difference_high", "p")


def by_confidence(found: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """Bins of all tasks with two classes together."""
    bins: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for one in found.values():
        if len(one["settings"]["labels"]) == 2:
            for each in one["by_confidence"]:
                bins.setdefault((each["low"], each["high"]), []).append(each)
    for (low, high), those in sorted(bins.items()):
        weights = [each["n"] for each in those]
        names = ("receipt", "plain", "with_receipt", "plain_agrees", "follows")
        means = (float(np.average([each[name] for each in those], weights=weights)) for name in names)
        yield [f"{100 * low:.0f} to {100 * high:.0f} %", str(sum(weights)), *(f"{100 * mean:.0f} %" for mean in means)]


if __name__ == "__main__":
    main()
