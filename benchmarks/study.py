"""The study of open layers: maps, pooling and variants of SmolLM2 on the seven STS tasks, untrained and after training.

Every cell is compared with the causal model of the same prompt and pooling on the same pairs; trained ones with the
causal model after the same steps on the same rows, over several seeds. A cell takes minutes to an hour. What is
measured goes into a JSON file cell by cell, and the same command resumes from there; then the tables of docs/study.md
are rewritten. Needs bellm[gguf,evaluate,train], the STS tasks in BELLM_DATA, ../shared/data or the Hub, and for
training a file of triplets.
"""

import argparse
import io
import json
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import matplotlib
import matplotlib.pyplot as plt
import transformers
from flops import machine
from measure_sts import data_folder
from rich.console import Console
from rich.progress import track

from bellm.engine.activation_cache import share_activations
from bellm.errors import NoOpWarning
from bellm.evaluate import default_cache_folder, evaluate, load_models
from bellm.io import atomic
from bellm.metadata import package_versions
from bellm.report import statistics
from bellm.report.formatting import format_interval, format_p_value, format_points, format_tick, significance_mark
from bellm.report.statistics import BootstrapEstimate, Difference, Score
from bellm.train import Recipe, load_dataset, train

DOCS = Path(__file__).parent.parent / "docs"
MAPS = ("last:1", "last:2", "last:4", "last:8", "last:15", "first:8", "10-19", "every:2", "all")
SETTINGS = {"PromptEOL, last token": "prompt=prompteol&pooling=last", "raw text, mean": "prompt=raw&pooling=mean"}
VARIANTS = ("sequential", "parallel")
AVERAGE = "STS average"
TICKS = (-50, -10, -3, -1, 0, 1, 3, 10)

TRAINED = ("last:8", "last:15", "first:8", "all")
SEEDS = (42, 43, 44)
TESTS = ("STSBenchmark", "SICK-R")
"""Of what was trained: thirty models on all seven would take as long again as their training."""

Results = dict[str, dict[str, Any]]
"""What was measured of each cell, by its source."""


@dataclass(frozen=True)
class Cell:
    """One way to open SmolLM2."""

    setting: str
    bidirectional: str
    variant: str = "sequential"

    @property
    def source(self) -> str:
        """As `bellm evaluate` takes it."""
        opened = "" if self.bidirectional == "none" else f"&bidirectional={self.bidirectional}&variant={self.variant}"
        return f"smollm2?{SETTINGS[self.setting]}{opened}"

    @property
    def settings(self) -> dict[str, str]:
        """As `Encoder.from_pretrained` takes them."""
        return dict(parse_qsl(self.source.partition("?")[2]))

    @property
    def causal(self) -> "Cell":
        """What it is compared with."""
        return Cell(self.setting, "none")


def cells() -> Iterator[Cell]:
    """The untrained ones. With every layer open the parallel variant has nothing to add: it is the sequential one."""
    for variant in VARIANTS:
        for setting in SETTINGS:
            # From the bottom up, so that each goes on from the causal layers of the one before.
            upwards = (Cell(setting, spec, variant) for spec in reversed(MAPS))
            yield from (cell for cell in upwards if variant == "sequential" or cell.bidirectional != "all")


def learned() -> Iterator[Cell]:
    """The trained ones."""
    yield from (Cell(setting, spec) for setting in SETTINGS for spec in TRAINED)


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=DOCS / "study.json", help="what was measured (docs/study.json)")
    parser.add_argument("--markdown", type=Path, default=DOCS / "study.md", help="whose tables are rewritten")
    parser.add_argument("--again", metavar="SOURCE", help="one cell once more, printed beside what is known, not kept")
    parser.add_argument("--train", type=Path, metavar="FILE", help="triplets: train too, thirty models")
    parser.add_argument("--runs", type=Path, default=Path("study"), help="folder of the trainings (study)")
    parser.add_argument("--steps", type=int, default=32, help="of each training (32)")
    parser.add_argument("--batch-size", type=int, default=32, help="triplets of a step (32)")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--quick", action="store_true", help="one cell on one task, printed and not kept")
    options = parser.parse_args()
    if options.train and not options.train.is_file():
        parser.error(f"--train: {options.train} is no file")  # Not after hours of untrained cells.
    warnings.simplefilter("ignore", NoOpWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.quick:
        Console().print_json(data=measure(Cell("raw text, mean", "last:8"), ["STSBenchmark-dev"])["difference"])
        return
    found: dict[str, Results] = {"untrained": {}, "trained": {}}
    if options.json.exists():
        found = json.loads(options.json.read_text(encoding="utf-8"))

    wanted = {"untrained": list(cells()), "trained": list(learned()) if options.train else []}
    recipe = Recipe(max_steps=options.steps, batch_size=options.batch_size)

    def measured(kind: str, cell: Cell) -> dict[str, Any]:
        return trained(cell, recipe, options.train, options.runs) if kind == "trained" else measure(cell, ["sts"])

    def go_through(kind: str) -> None:
        for cell in track([one for one in wanted[kind] if one.source not in found[kind]], f"{kind} cells"):
            found[kind][cell.source] = measured(kind, cell)
            atomic.write_bytes(options.json, (json.dumps(found, indent=1) + "\n").encode())

    if options.again:
        kind = "trained" if options.train else "untrained"
        by_source = {cell.source: cell for cell in wanted[kind]}
        if options.again not in by_source:
            parser.error(f"{options.again!r} is none of the {kind} cells: {', '.join(by_source)}")
        print("known:", _in_full(found[kind].get(options.again)))
        print("again:", _in_full(measured(kind, by_source[options.again])))
        return
    if not options.tables:
        with share_activations():
            go_through("untrained")
        go_through("trained")
    for kind, specs in {"untrained": MAPS, "trained": TRAINED}.items():
        if found[kind]:
            atomic.write_bytes(options.markdown.with_name(f"study-{kind}.svg"), figure(found[kind], specs))
    page = options.markdown.read_text(encoding="utf-8")
    for name, setting in zip(("last", "mean"), SETTINGS, strict=True):
        page = with_table(page, name, table(setting, found["untrained"]))
    page = with_table(page, "trained", table_of_trained(found["trained"]))
    atomic.write_bytes(options.markdown, page.encode())


def measure(cell: Cell, tasks: Sequence[str]) -> dict[str, Any]:
    """Score a cell and the causal model of its setting, whose vectors are kept for all cells."""
    started = time.monotonic()
    models = load_models([cell.causal.source, cell.source], default_cache_folder())
    report = evaluate(models, tasks, data=data_folder())
    first = report.to_json()
    (ours,) = first["compared"]
    name = AVERAGE if AVERAGE in ours["averages"] else tasks[0]
    return {
        "causal": {**first["scores"], **first["averages"]}[name],
        "score": {**ours["scores"], **ours["averages"]}[name],
        "difference": ours["differences"][name],
        "tasks": {task: [first["scores"][task]["value"], one["value"]] for task, one in ours["scores"].items()},
        **_circumstances(started),
    }


def trained(cell: Cell, recipe: Recipe, file: Path, runs: Path) -> dict[str, Any]:
    """Train a cell and the causal model of its setting with every seed, and score them all; what is there stays."""
    started = time.monotonic()
    estimates = {
        each: [_score(each, replace(recipe, encoder_options=each.settings, seed=seed), file, runs) for seed in SEEDS]
        for each in (cell.causal, cell)
    }
    causal, ours = (statistics.average_over_seeds(each) for each in estimates.values())
    return {
        "causal": _as_score(causal),
        "score": _as_score(ours),
        "difference": asdict(statistics.paired_difference(ours, causal)),
        "seeds": {seed: [both[0].value, both[1].value] for seed, *both in zip(SEEDS, *estimates.values(), strict=True)},
        "steps": recipe.max_steps,
        "batch_size": recipe.batch_size,
        **_circumstances(started),
    }


def _score(cell: Cell, recipe: Recipe, file: Path, runs: Path) -> BootstrapEstimate:
    """The mean over the tests after one training."""
    named = f"{cell.setting} {cell.bidirectional} {recipe.seed} {recipe.max_steps} {recipe.batch_size}"
    run = runs / re.sub(r"[^\w-]+", "-", named)
    train(recipe, [(load_dataset(file), 1.0)], run)
    (results,) = evaluate(load_models([str(run / "model")], default_cache_folder()), TESTS, data=data_folder()).results
    return statistics.average_estimates(
        [statistics.bootstrap_estimate(each.item_scores_N, each.gold_N) for each in results.values()]
    )


def _as_score(estimate: BootstrapEstimate) -> dict[str, Any]:
    return asdict(Score("mean", estimate.value, estimate.low, estimate.high, len(TESTS)))


def _circumstances(started: float) -> dict[str, Any]:
    return {"metadata": {"machine": machine(), "seconds": round(time.monotonic() - started), **package_versions()}}


def table(setting: str, found: Mapping[str, Any]) -> str:
    """Both variants of a setting as Markdown; p-values corrected for all cells of the setting that are there."""
    known = {cell: found[cell.source] for cell in cells() if cell.setting == setting and cell.source in found}
    if not known:
        return "Not measured yet."
    gains = statistics.holm_correction({cell.source: Difference(**one["difference"]) for cell, one in known.items()})
    causal = Score(**next(iter(known.values()))["causal"])
    lines = [
        "| open layers | sequential | over causal | p | parallel | over causal | p |",
        "|---|---|---|---|---|---|---|",
        f"| none | {format_points(causal.value)} ({format_interval(causal)}) | | | as sequential | | |",
    ]
    for spec in MAPS:
        parts = []
        for variant in VARIANTS:
            cell = Cell(setting, spec, variant)
            if spec == "all" and variant == "parallel":
                parts.append("as sequential | | ")
            elif cell not in known:
                parts.append("not measured | | ")
            else:
                score = Score(**known[cell]["score"])
                parts.append(f"{format_points(score.value)} | {_told(gains[cell.source])}")
        lines.append(f"| {spec} | {' | '.join(parts)} |")
    return "\n".join(lines)


def table_of_trained(found: Mapping[str, Any]) -> str:
    """Trained cells as Markdown; p-values corrected for all that are there."""
    if not found:
        return "Not measured yet."
    gains = statistics.holm_correction({source: Difference(**one["difference"]) for source, one in found.items()})
    lines = ["| | open layers | triplets | score | over causal | p | with each seed |", "|---|---|---|---|---|---|---|"]
    for setting in SETTINGS:
        known = {spec: found.get(Cell(setting, spec).source) for spec in TRAINED}
        baselines = [("none", one["causal"], "", one) for one in known.values() if one][:1]
        rows = [
            (spec, one["score"], _told(gains[Cell(setting, spec).source]), one) for spec, one in known.items() if one
        ]
        for spec, score, told, one in [*baselines, *rows]:
            scored = Score(**score)
            values = f"{format_points(scored.value)} ({format_interval(scored)})"
            triplets = f"{one['steps']} x {one['batch_size']}"
            each = _each_seed(one) if told else ""
            lines.append(f"| {setting} | {spec} | {triplets} | {values} | {told or '| '} | {each} |")
    return "\n".join(lines)


def _in_full(one: Mapping[str, Any] | None) -> str:
    """A cell to two decimals."""
    if one is None:
        return "not measured yet"
    score, causal, gain = one["score"]["value"], one["causal"]["value"], one["difference"]
    said = f"{score:.2f}, causal {causal:.2f}, {gain['value']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})"
    return f"{said}; with each seed {_each_seed(one)}" if "seeds" in one else said


def _each_seed(one: Mapping[str, Any]) -> str:
    """What a trained cell has over causal after the same rows in the same order."""
    return ", ".join(format_points(ours - causal, signed=True) for causal, ours in one["seeds"].values())


def _told(gain: Difference) -> str:
    value = f"{significance_mark(gain)} {format_points(gain.value, signed=True)} ({format_interval(gain)})".strip()
    return f"{value} | {format_p_value(gain.p_value)}"


def figure(found: Results, specs: Sequence[str]) -> bytes:
    """Differences to causal with their intervals as SVG, a panel for each setting."""
    # Letters stay letters, and the same numbers give the same file.
    style = {"svg.fonttype": "none", "svg.hashsalt": "bellm", "font.size": 9, "axes.spines.right": False}
    looks = dict(zip(VARIANTS, ({"color": "#0069a8", "fmt": "o"}, {"color": "#c14e00", "fmt": "s"}), strict=True))
    with matplotlib.rc_context(style | {"axes.spines.top": False}), io.BytesIO() as file:
        page, panels = plt.subplots(
            1, len(SETTINGS), sharex=True, sharey=True, figsize=(9, 1.2 + 0.32 * len(specs)), layout="constrained"
        )
        for panel, setting in zip(panels, SETTINGS, strict=True):
            panel.set(title=setting, xlabel="points over causal (logarithmic beyond 1)")
            panel.set_xscale("symlog", linthresh=1)
            panel.set_xticks(TICKS, [format_tick(value, signed=True) for value in TICKS])
            panel.minorticks_off()
            panel.set_yticks(range(len(specs)), specs)
            panel.set_ylim(len(specs) - 0.5, -0.5)
            panel.axvline(0, color="#5c646c", linewidth=0.8)
            for variant, shift in zip(VARIANTS, (-0.12, 0.12), strict=True):
                places = {row + shift: Cell(setting, spec, variant).source for row, spec in enumerate(specs)}
                known = {row: Difference(**found[one]["difference"]) for row, one in places.items() if one in found}
                if known:
                    ends = [[abs(getattr(one, end) - one.value) for one in known.values()] for end in ("low", "high")]
                    values = [one.value for one in known.values()]
                    panel.errorbar(values, list(known), xerr=ends, label=variant, markersize=4, **looks[variant])
        handles, names = panels[-1].get_legend_handles_labels()
        if len(names) > 1:
            page.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
        page.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
        plt.close(page)
        return file.getvalue()


def with_table(page: str, name: str, table: str) -> str:
    """The page with a table between `<!-- table NAME -->` and `<!-- end -->`."""
    place = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
    page, count = re.subn(place, lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page, flags=re.S)
    assert count == 1, f"the page has {count} places for the table {name!r}"
    return page


if __name__ == "__main__":
    main()
