"""AMR graphs as a second view (MSE-AMR), on STS-Benchmark and SICK: text, graph, both, and two prompts as the control.

Graphs are those of BAMBOO, of a parser. Both and the control put two vectors side by side, of equal weight and width:
what both gains beyond the control comes from the graph. With --steps it also trains on the rated training pairs of both
sets, twice from the same weights and in the same order: on texts alone, and with every text drawn from itself and its
graph. Nothing is chosen on the test pairs. What is embedded and trained is kept in --work: the same command resumes.
Data: `amr/bamboo` in BELLM_DATA or ../shared/data.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from measure_sts import data_folder
from rich.console import Console
from rich.table import Table

from bellm import Encoder, MultiViewEncoder
from bellm.data import Graphs, STSPairs, read_graphs
from bellm.errors import BellmWarning
from bellm.evaluate import EvaluatedModel, evaluate
from bellm.evaluate.sts_task import STSTask
from bellm.multiview import View
from bellm.report.formatting import format_interval, format_p_value, format_points
from bellm.report.statistics import Difference, Score
from bellm.types import InputType, Vectors

TEXT, GRAPH, BOTH, CONTROL = "text", "graph", "text + graph", "text + second prompt"
PROMPT, SECOND_PROMPT = "prompteol", "knowledge"
UNTRAINED, TEXTS, MIXED = "untrained", "texts", "mixed views"
SETS = {"STS-Benchmark": "sts", "SICK": "sick"}
DUMMY = "Empty line"
"""The last graph of every file; the files of SICK also begin with one, of the header."""


@dataclass(frozen=True)
class Cell:
    """One model on one set."""

    training: str
    task: str
    view: str
    score: Score
    against: dict[str, Difference] = field(default_factory=dict)
    """Score minus that of other models on the same pairs; p-values are corrected for both sets."""


@dataclass(frozen=True)
class Kept:
    """An embedder whose vectors are looked up where they were made before."""

    model: EvaluatedModel

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""
        return self.model.embedder.embedding_dim

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.model.name

    def encode(self, texts: Sequence[str], *, input_type: InputType = "text") -> Vectors:
        """Vectors of texts."""
        return self.model.vectors(texts, input_type)

    def fingerprint(self) -> Vectors:
        """That of the embedder."""
        return self.model.embedder.fingerprint()

    def describe(self) -> dict[str, Any]:
        """That of the embedder."""
        return self.model.embedder.describe()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias (smollm2)")
    parser.add_argument(
        "--work", type=Path, default=Path("amr-work"), help="folder of vectors and trainings (amr-work)"
    )
    parser.add_argument("--pairs", type=int, help="of each test set, drawn with seed 0; default all")
    parser.add_argument("--steps", type=int, default=0, help="steps of each training (0, none)")
    parser.add_argument("--until", type=int, help="measure after so many of the --steps; the same command goes on")
    parser.add_argument("--batch-size", type=int, default=24, help="pairs of a step (24)")
    parser.add_argument("--quick", action="store_true", help="80 pairs of each set, nothing trained")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    warnings.simplefilter("ignore", BellmWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = data_folder() / "amr" / "bamboo"
    options.work.mkdir(exist_ok=True)
    file = write_graphs(folder, options.work / "graphs.jsonl")
    graphs = read_graphs(file)
    tests = [read_pairs(folder, name, "test", 80 if options.quick else options.pairs) for name in SETS]
    started = time.process_time()
    encoders = {UNTRAINED: Encoder.from_pretrained(options.model, prompt=PROMPT, pooling="last")}
    if options.steps and not options.quick:
        encoders[TEXTS] = trained(options, folder, None)
        encoders[MIXED] = trained(options, folder, file)
    models = {
        (training, view): EvaluatedModel.of(model, f"{view}, {training}")
        for training, encoder in encoders.items()
        for view, model in views_of(encoder, None if training == TEXTS else graphs, options.work).items()
    }
    cells = measure(models, tests)
    title = f"{options.model}, {PROMPT} and {SECOND_PROMPT}, {time.process_time() - started:.0f} s of CPU"
    Console().print(table(title, cells))
    if options.json:
        record = {"machine": platform.processor() or platform.machine()}
        record |= {name: getattr(options, name) for name in ("model", "pairs", "steps", "until", "batch_size")}
        rows = [asdict(cell) for cell in cells]
        options.json.write_text(json.dumps({**record, "cells": rows}, indent=1) + "\n")


def graphs_of(path: Path) -> Iterator[tuple[str, str]]:
    """Sentence and graph in PENMAN notation of every graph of a file that is no dummy."""
    blocks = [block for block in path.read_text(encoding="utf-8").split("\n\n") if block.strip()]
    for number, block in enumerate(blocks):
        sentence = next(line for line in block.split("\n") if line.startswith("# ::snt ")).removeprefix("# ::snt ")
        if sentence != DUMMY and not (number == 0 and sentence.startswith("sentence_")):
            yield sentence, block


def write_graphs(folder: Path, path: Path) -> Path:
    """One file of the graphs of both sets; the parser gave some sentences several, of which the first counts."""
    first: dict[str, str] = {}
    for name in SETS.values():
        for part in ("train", "dev", "test"):
            for side in ("src", "tgt"):
                for sentence, graph in graphs_of(folder / name / "main" / f"{side}.{part}.amr"):
                    first.setdefault(" ".join(sentence.split()), graph)
    lines = (json.dumps({"text": sentence, "graph": graph}) + "\n" for sentence, graph in first.items())
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read_pairs(folder: Path, name: str, part: str, number: int | None = None) -> STSPairs:
    """Rated pairs of a set as the files of graphs have them, all or a sample with seed 0."""
    place = folder / SETS[name]
    left, right = (
        [sentence for sentence, _ in graphs_of(place / "main" / f"{side}.{part}.amr")] for side in ("src", "tgt")
    )
    gold = np.loadtxt(place / f"{part}.y")
    header = int(SETS[name] == "sick")
    gold = gold[header : header + len(left)]
    assert len(left) == len(right) == len(gold)
    rows = np.random.default_rng(0).permutation(len(gold))[:number]
    return STSPairs(
        name, tuple(left[row] for row in rows), tuple(right[row] for row in rows), gold[rows], (name,) * len(rows)
    )


def trained(options: argparse.Namespace, folder: Path, graphs: Path | None) -> Encoder:
    """An encoder after a short training on rated pairs; with graphs every text is itself or its graph."""
    from bellm.train import Recipe, load_dataset, train

    file = options.work / "pairs.jsonl"
    pairs = [read_pairs(folder, each, "train") for each in SETS]
    rows = [row for each in pairs for row in zip(each.left, each.right, each.gold_N.tolist(), strict=True)]
    lines = (json.dumps({"anchor": left, "positive": right, "score": gold}) + "\n" for left, right, gold in rows)
    file.write_text("".join(lines), encoding="utf-8")
    recipe = Recipe(
        model=options.model,
        encoder_options={"prompt": PROMPT, "pooling": "last"},
        graphs=str(graphs) if graphs else None,
        batch_size=options.batch_size,
        max_steps=options.steps,
    )
    run = options.work / ("run" if graphs else "run-texts")
    return train(recipe, load_dataset(file), run, checkpoint_every=2, until=options.until)


def views_of(encoder: Encoder, graphs: Graphs | None, work: Path) -> dict[str, Any]:
    """What is made of an encoder, with its vectors kept; without graphs the text, and two prompts."""

    def kept(name: str, model: Any) -> Kept:
        return Kept(EvaluatedModel.of(model, name, work / "vectors"))

    text = kept(TEXT, encoder)
    second = kept(SECOND_PROMPT, encoder.replace(prompt=SECOND_PROMPT))
    views: dict[str, Any] = {TEXT: text, CONTROL: MultiViewEncoder([text, second])}
    if graphs:
        graph = kept(GRAPH, MultiViewEncoder([View(encoder, "amr")]).with_graphs(graphs))
        views |= {GRAPH: graph, BOTH: MultiViewEncoder([text, graph])}
    return views


def measure(models: Mapping[tuple[str, str], EvaluatedModel], tests: Sequence[STSPairs]) -> list[Cell]:
    """Score every model on all sets, and compare those that answer a question.

    With the text alone and, of text + graph, with two prompts, each after the same training; with the same view
    untrained; and after training on mixed views with text, or two prompts, after training on texts.
    """
    tasks = [STSTask(pairs.name, data=pairs) for pairs in tests]
    report = evaluate(list(models.values()), tasks, resamples=2000)
    cells = {
        (key, task.name): Cell(key[0], task.name, key[1], run.scores[task.name])
        for key, run in zip(models, report.runs, strict=True)
        for task in tasks
    }

    def compare(key: tuple[str, str], other: tuple[str, str], name: str) -> None:
        _, run = evaluate([models[other], models[key]], tasks, resamples=2000).runs
        for task in tasks:
            cells[key, task.name].against[name] = run.differences[task.name]

    for training, view in models:
        if view != TEXT:
            compare((training, view), (training, TEXT), "text")
        if view == BOTH:
            compare((training, view), (training, CONTROL), "two prompts")
        if training != UNTRAINED:
            compare((training, view), (UNTRAINED, view), "untrained")
        if training == MIXED:
            compare((training, view), (TEXTS, TEXT), "text, trained on texts")
            compare((training, view), (TEXTS, CONTROL), "two prompts, trained on texts")
    return list(cells.values())


def table(title: str, cells: Sequence[Cell]) -> Table:
    """The cells for people."""
    grid = Table("training", "set", "view", "Spearman x100", "against", title=title)
    for cell in cells:
        score = f"{cell.score.value:.2f} ({cell.score.low:.1f} to {cell.score.high:.1f})"
        against = "\n".join(f"{name}: {in_words(difference)}" for name, difference in cell.against.items())
        grid.add_row(cell.training, cell.task, cell.view, score, against)
    return grid


def in_words(difference: Difference) -> str:
    """A difference with its interval and p-value."""
    gain = format_points(difference.value, signed=True)
    return f"{gain}, {format_interval(difference)}, {format_p_value(difference.p_value)}"


if __name__ == "__main__":
    main()
