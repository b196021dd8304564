"""Compare models, or the layers of one or two, on the texts of a user."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bellm.analyse.agreement import Agreement, measure_agreement
from bellm.analyse.comparison import MOST_TEXTS, ComparedPair, check_draws, choose_measures, compare_vectors
from bellm.analyse.layer_vectors import every_layer
from bellm.analyse.measures import MEASURES
from bellm.analyse.representation import FEWEST_TEXTS, all_alike
from bellm.errors import BellmError, BellmWarning, check_list, warn
from bellm.evaluate import EvaluatedModel
from bellm.evaluate.evaluated_model import TextEncoder, warn_without_graphs
from bellm.metadata import package_versions
from bellm.types import Vectors

PERMUTATIONS, RESAMPLES = 100, 30
"""Defaults for models."""

LAYER_PERMUTATIONS = 20
"""Default for layers, of which there are hundreds of pairs; they get no intervals unless asked for."""

LAYER_MEASURES = tuple(name for name, measure in MEASURES.items() if not measure.is_slow)
"""Default for layers."""


@dataclass(frozen=True)
class Analysis:
    """What models, or layers, have in common."""

    models: Mapping[str, Mapping[str, Any]]
    """Metadata of each model by its name."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    """Names of what was compared, each of the rows with each of the columns; the same where all is compared."""
    comparisons: tuple[ComparedPair, ...]
    num_texts: int
    layers: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Permutations, half samples, seed, texts of which measures of all pairs of texts took a sample, versions."""
    seconds: float = 0.0

    @cached_property
    def agreement(self) -> Agreement | None:
        """Whether the measures put the comparisons in the same order."""
        return measure_agreement(self.comparisons)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures."""
        return tuple(self.comparisons[0].measures)

    @cached_property
    def by_names(self) -> Mapping[tuple[str, str], ComparedPair]:
        """Comparisons by what they compare."""
        return {(pair.a, pair.b): pair for pair in self.comparisons}

    def to_json(self) -> dict[str, Any]:
        """All numbers, the agreement of measures, and what is needed to do it again."""
        first, *others = ({"model": name, "metadata": dict(facts)} for name, facts in self.models.items())
        return {
            **first,
            "compared": others,
            "comparisons": [pair.to_json() for pair in self.comparisons],
            "agreement": self.agreement.to_json() if self.agreement else None,
            "texts": self.num_texts,
            "layers": self.layers,
            **self.metadata,
            "seconds": round(self.seconds, 1),
        }


def compare_representations(
    models: Sequence[EvaluatedModel | TextEncoder],
    texts: Sequence[str],
    *,
    layers: bool = False,
    measures: Collection[str] | None = None,
    permutations: int | None = None,
    resamples: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Analysis:
    """Compare every two models on the same texts; or all layers of one, or those of one with those of another.

    Args:
        models: Encoders, what `load_model` opens, or anything with `encode(texts)`.
        texts: Distinct ones are compared, each once.
        layers: Compare the states after every layer of one or two encoders, token embeddings first.
        measures: Names of `MEASURES`; None for all, or for those that are quick where layers are compared.
        permutations: Of each chance level; None for 100, or 20 where layers are compared; 0 for none.
        resamples: Half samples of each interval; None for 30, or 0 where layers are compared.
        seed: Of permutations and samples.
        cache: Folder that keeps vectors of layers; those of models are kept where `load_models` says.
        progress: Called with what is done, how much of it, and how much there is.

    Raises:
        BellmError: There are too few models or texts, or their vectors cannot be compared.

    Warns:
        BellmWarning: Texts came more than once, or a layer gives the same vector for all of them.
    """
    start = time.monotonic()
    check_list("models", models)
    check_num_models(len(models), layers=layers)
    if permutations is None:
        permutations = LAYER_PERMUTATIONS if layers else PERMUTATIONS
    if resamples is None:
        resamples = 0 if layers else RESAMPLES
    measures = LAYER_MEASURES if layers and measures is None else measures
    choose_measures(measures)
    check_draws(permutations, resamples)
    texts = unique_texts(texts)
    evaluated = [EvaluatedModel.of(model) for model in models]
    if len({model.name for model in evaluated}) < len(evaluated):
        raise BellmError(
            f"Several models are called {evaluated[0].name}: give each a name, EvaluatedModel.of(it, name)."
        )
    vectors: dict[str, Vectors] = {}
    groups: list[tuple[str, ...]] = []
    warn_without_graphs(evaluated, texts)
    for model in evaluated:
        made = _vectors(model, texts, layers, Path(cache) if cache else None, progress)
        groups.append(tuple(made))
        vectors |= made
    rows, columns = (groups * 2)[:2] if layers else (tuple(vectors),) * 2
    same = rows == columns
    pairs = [(a, b) for at, a in enumerate(rows) for b in (columns[at + 1 :] if same else columns)]
    comparisons = compare_vectors(
        vectors,
        pairs=pairs,
        measures=measures,
        permutations=permutations,
        resamples=resamples,
        seed=seed,
        progress=lambda done, total: progress("comparing", done, total),
    )
    metadata = {
        "permutations": permutations,
        "half_samples": resamples,
        "seed": seed,
        "sampled_texts": min(MOST_TEXTS, len(texts)),
        "versions": package_versions(),
    }
    facts = {model.name: model.metadata for model in evaluated}
    seconds = time.monotonic() - start
    return Analysis(facts, rows, columns, tuple(comparisons), len(texts), layers, metadata, seconds)


def check_num_models(count: int, *, layers: bool) -> None:
    """Raise a BellmError where so many models cannot be compared."""
    if layers and count > 2:
        raise BellmError(f"Layers of {count} models: give one, or two whose layers are compared with each other.")
    if not layers and count < 2:
        raise BellmError("One model makes no pair. Give another, or compare its layers: --layers (layers=True).")


def unique_texts(texts: Sequence[str]) -> list[str]:
    """Each text once, in order.

    Raises:
        BellmError: They are too few.

    Warns:
        BellmWarning: Some came more than once: a text that is repeated is its own nearest neighbor.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2 * FEWEST_TEXTS:
        raise BellmError(f"{len(distinct)} distinct texts are too few: give {2 * FEWEST_TEXTS} or more.")
    if repeated := len(texts) - len(distinct):
        warn(f"{repeated} of {len(texts)} texts are repeated, and left out.", BellmWarning)
    return distinct


def _vectors(
    model: EvaluatedModel,
    texts: Sequence[str],
    layers: bool,
    cache: Path | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, Vectors]:
    """The model's vectors by its name, or those of its layers by theirs."""
    num_done = 0

    def done(number: int) -> None:
        nonlocal num_done
        num_done += number
        progress(f"embedding with {model.name[:40]}", num_done, len(texts))

    if not layers:
        return {model.name: model.vectors(texts, done=done)}
    vectors_NKD = every_layer(model, texts, cache, done)
    kept = {f"{model.name} layer {layer}": vectors_NKD[:, layer] for layer in range(vectors_NKD.shape[1])}
    constant = [name for name, vectors_ND in kept.items() if all_alike(vectors_ND)]
    if len(constant) == len(kept):
        raise BellmError(f"{model.name} gives the same vector for all texts, in every layer.")
    if constant:
        warn(f"Left out, because the vector is the same for all texts: {', '.join(constant)}.", BellmWarning)
    return {name: vectors_ND for name, vectors_ND in kept.items() if name not in constant}
