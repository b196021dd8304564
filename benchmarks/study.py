"""The study of open layers: maps, pooling and readings of SmolLM2 on the seven STS tasks, untrained and after training.

Every cell is compared with the causal model of the same prompt and pooling on the same pairs; trained ones with the
causal model after the same steps on the same rows, over several seeds. A cell takes minutes to an hour. What is
measured goes into a JSON file cell by cell, and the same command goes on from there; then the tables of docs/study.md
are rewritten. Needs bellm[smollm2,evaluate,train], the STS tasks in BELLM_DATA, ../shared/data or the Hub, and for
training a file of triplets.
"""

import argparse
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import transformers
from flops import machine
from measure_sts import data_folder
from rich.console import Console
from rich.progress import track

from bellm import durable
from bellm.engine.trunk import one_trunk
from bellm.errors import NoOpWarning
from bellm.evaluate import statistics
from bellm.evaluate.cache import default_folder
from bellm.evaluate.record import record
from bellm.evaluate.results import Difference, Score
from bellm.evaluate.sources import Sources
from bellm.evaluate.statistics import Estimate
from bellm.evaluate.suite import STS, evaluate
from bellm.evaluate.tables import interval, mark, points
from bellm.facts import versions
from bellm.layers.verdict import p_value
from bellm.train.loop import train
from bellm.train.reading import load
from bellm.train.recipe import Recipe

DOCS = Path(__file__).parent.parent / "docs"
MAPS = ("last:1", "last:2", "last:4", "last:8", "last:15", "first:8", "10-19", "every:2", "all")
SETTINGS = {"PromptEOL, last token": "prompt=prompteol&pooling=last", "raw text, mean": "prompt=raw&pooling=mean"}
READINGS = ("sequential", "parallel")
AVERAGE = "STS average"

TRAINED = ("last:8", "last:15", "first:8", "all")
SEEDS = (42, 43, 44)

Results = dict[str, dict[str, Any]]
"""What was measured of each cell, by its source."""


@dataclass(frozen=True)
class Cell:
    """One way to open SmolLM2."""

    setting: str
    bidirectional: str
    reading: str = "sequential"

    @property
    def source(self) -> str:
        """As `bellm evaluate` takes it."""
        opened = "" if self.bidirectional == "none" else f"&bidirectional={self.bidirectional}&reading={self.reading}"
        return f"smollm2?{SETTINGS[self.setting]}{opened}"

    @property
    def causal(self) -> "Cell":
        """What it is compared with."""
        return Cell(self.setting, "none")


def cells() -> Iterator[Cell]:
    """The untrained ones. With every layer open the parallel reading has nothing to add: it is the sequential one."""
    for reading in READINGS:
        for setting in SETTINGS:
            # From the bottom up, so that each goes on from the causal layers of the one before.
            upwards = (Cell(setting, spec, reading) for spec in reversed(MAPS))
            yield from (cell for cell in upwards if reading == "sequential" or cell.bidirectional != "all")


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=DOCS / "study.json", help="what was measured (docs/study.json)")
    parser.add_argument("--markdown", type=Path, default=DOCS / "study.md", help="whose tables are rewritten")
    parser.add_argument("--only", default="", help="cells whose source has this in it")
    parser.add_argument("--train", type=Path, metavar="FILE", help="triplets: train too, for days on a processor")
    parser.add_argument("--runs", type=Path, default=Path("study"), help="folder of the trainings (study)")
    parser.add_argument("--steps", type=int, default=64, help="of each training, of 64 triplets (64)")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--quick", action="store_true", help="one cell on one task, printed and not kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore", NoOpWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.quick:
        Console().print_json(data=measure(Cell("raw text, mean", "last:8"), ["STSBenchmark-dev"])["difference"])
        return
    found: dict[str, Results] = {"untrained": {}, "trained": {}}
    if options.json.exists():
        found = json.loads(options.json.read_text(encoding="utf-8"))

    def go_through(wanted: Sequence[Cell], known: Results, measured: Callable[[Cell], dict[str, Any]]) -> None:
        missing = [cell for cell in wanted if cell.source not in known and options.only in cell.source]
        for cell in track(missing, "cells"):
            known[cell.source] = measured(cell)
            durable.write(options.json, (json.dumps(found, indent=1) + "\n").encode())

    if not options.tables:
        with one_trunk():
            go_through(list(cells()), found["untrained"], lambda cell: measure(cell, ["sts"]))
    if options.train and not options.tables:
        learned = [Cell(setting, spec) for setting in SETTINGS for spec in TRAINED]
        go_through(learned, found["trained"], lambda cell: trained(cell, options.train, options.runs, options.steps))
    page = options.markdown.read_text(encoding="utf-8")
    for name, setting in zip(("last", "mean"), SETTINGS, strict=True):
        page = with_table(page, name, table(setting, found["untrained"]))
    page = with_table(page, "trained", table_of_trained(found["trained"]))
    durable.write(options.markdown, page.encode())


def measure(cell: Cell, tasks: Sequence[str]) -> dict[str, Any]:
    """Score a cell and the causal model of its setting, whose vectors are kept for all cells."""
    started = time.monotonic()
    sources = Sources(default_folder())
    report = evaluate([sources.open(each.source) for each in (cell.causal, cell)], tasks, data=data_folder())
    first = record(report)
    (ours,) = first["compared"]
    name = AVERAGE if AVERAGE in ours["averages"] else tasks[0]
    return {
        "causal": {**first["scores"], **first["averages"]}[name],
        "score": {**ours["scores"], **ours["averages"]}[name],
        "difference": ours["differences"][name],
        "tasks": {task: [first["scores"][task]["value"], one["value"]] for task, one in ours["scores"].items()},
        **_circumstances(started),
    }


def trained(cell: Cell, file: Path, runs: Path, steps: int) -> dict[str, Any]:
    """Train a cell and the causal model of its setting with every seed, and score them all; what is there stays."""
    started = time.monotonic()
    estimates = {each: [_score(each, seed, file, runs, steps) for seed in SEEDS] for each in (cell.causal, cell)}
    causal, ours = (statistics.over_seeds(each) for each in estimates.values())
    return {
        "causal": _as_score(causal),
        "score": _as_score(ours),
        "difference": asdict(statistics.difference(ours, causal)),
        "seeds": {seed: [both[0].value, both[1].value] for seed, *both in zip(SEEDS, *estimates.values(), strict=True)},
        "steps": steps,
        **_circumstances(started),
    }


def _score(cell: Cell, seed: int, file: Path, runs: Path, steps: int) -> Estimate:
    """The average over the tasks after one training."""
    settings = dict(parse_qsl(cell.source.partition("?")[2]))
    recipe = Recipe(settings=settings, max_steps=steps, seed=seed)
    name = re.sub(r"[^\w-]+", "-", f"{cell.setting} {cell.bidirectional} {seed} {steps}")
    train(recipe, [(load(file), 1.0)], runs / name)
    (outcomes,) = evaluate(
        [Sources(default_folder()).open(str(runs / name / "model"))], STS, data=data_folder()
    ).outcomes
    return statistics.average([statistics.estimate(each.items_N, each.gold_N) for each in outcomes.values()])


def _as_score(estimate: Estimate) -> dict[str, Any]:
    return asdict(Score("mean", estimate.value, estimate.low, estimate.high, len(STS)))


def _circumstances(started: float) -> dict[str, Any]:
    return {"facts": {"machine": machine(), "seconds": round(time.monotonic() - started), **versions()}}


def table(setting: str, found: Mapping[str, Any]) -> str:
    """Both readings of a setting as Markdown; p-values corrected for all cells of the setting that are there."""
    known = {cell: found[cell.source] for cell in cells() if cell.setting == setting and cell.source in found}
    if not known:
        return "Not measured yet."
    gains = statistics.corrected({cell.source: Difference(**one["difference"]) for cell, one in known.items()})
    causal = Score(**next(iter(known.values()))["causal"])
    lines = [
        "| open layers | sequential | over causal | p | parallel | over causal | p |",
        "|---|---|---|---|---|---|---|",
        f"| none | {points(causal.value)} ({interval(causal)}) | | | as sequential | | |",
    ]
    for spec in MAPS:
        parts = []
        for reading in READINGS:
            cell = Cell(setting, spec, reading)
            if spec == "all" and reading == "parallel":
                parts.append("as sequential | | ")
            elif cell not in known:
                parts.append("not measured | | ")
            else:
                score = Score(**known[cell]["score"])
                parts.append(f"{points(score.value)} | {_told(gains[cell.source])}")
        lines.append(f"| {spec} | {' | '.join(parts)} |")
    return "\n".join(lines)


def table_of_trained(found: Mapping[str, Any]) -> str:
    """Trained cells as Markdown; p-values corrected for all that are there."""
    if not found:
        return "Not measured yet."
    gains = statistics.corrected({source: Difference(**one["difference"]) for source, one in found.items()})
    lines = ["| | open layers | steps | seeds | score | over causal | p |", "|---|---|---|---|---|---|---|"]
    for setting in SETTINGS:
        known = {spec: found.get(Cell(setting, spec).source) for spec in TRAINED}
        baselines = [("none", one["causal"], "", one) for one in known.values() if one][:1]
        rows = [
            (spec, one["score"], _told(gains[Cell(setting, spec).source]), one) for spec, one in known.items() if one
        ]
        for spec, score, told, one in [*baselines, *rows]:
            scored = Score(**score)
            values = f"{points(scored.value)} ({interval(scored)})"
            lines.append(f"| {setting} | {spec} | {one['steps']} | {len(one['seeds'])} | {values} | {told or '| '} |")
    return "\n".join(lines)


def _told(gain: Difference) -> str:
    value = f"{mark(gain)} {points(gain.value, signed=True)} ({interval(gain)})".strip()
    return f"{value} | {p_value(gain.p_value)}"


def with_table(page: str, name: str, table: str) -> str:
    """The page with a table between `<!-- table NAME -->` and `<!-- end -->`."""
    place = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
    page, count = re.subn(place, lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page, flags=re.S)
    assert count == 1, f"the page has {count} places for the table {name!r}"
    return page


if __name__ == "__main__":
    main()
