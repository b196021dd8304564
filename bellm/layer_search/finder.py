"""Find out which layers of a model to open, without training or after a little."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bellm.data import STSPairs
from bellm.encoder import Encoder
from bellm.errors import BellmError, check_choice, check_encoder
from bellm.evaluate import default_cache_folder, read_dev_set
from bellm.layer_search.candidates import (
    CandidateScores,
    encoders_of,
    make_layer_sets,
    prepending_depths,
    score_candidates,
)
from bellm.layer_search.halving_rounds import HalvingPlan, HalvingResult, plan_halving
from bellm.layer_search.layer_stats import Degradation, LayerStats, measure_degradation, measure_layers
from bellm.layer_search.layer_text import (
    candidate_table,
    degradation_table,
    halving_table,
    summarize_candidates,
    summarize_training,
    summarize_turning_point,
)
from bellm.metadata import package_versions
from bellm.multiview import MultiViewEncoder
from bellm.report.formatting import Table
from bellm.train import Dataset, Recipe

Method = Literal["degradation", "profile", "search"]
"""Scores with the top layers dropped; statistics of each layer; scores of layer sets."""

_STATS_TEXTS = 200  # Texts of which each layer's statistics are the mean.


@dataclass(frozen=True)
class Finding:
    """Results of `find_layers`; None for what was not asked for."""

    dev: str
    num_layers: int
    degradation: Degradation | None
    layer_stats: LayerStats | None
    search: CandidateScores | None
    seed: int = 0
    """Of the bootstrap."""
    trained: HalvingResult | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the causal encoder; see `Encoder.describe`."""
    seconds: float = 0.0

    @property
    def summary(self) -> str:
        """In plain sentences."""
        said = [
            summarize_candidates(self.search) if self.search else "",
            summarize_turning_point(self.degradation, self.search) if self.degradation else "",
            summarize_training(self.trained) if self.trained else "",
        ]
        return "\n".join(filter(None, said)) or "No layer was opened and none dropped: a profile chooses nothing."

    @property
    def tables(self) -> list[Table]:
        """A table for each kind of measurement."""
        found = (
            degradation_table(self.degradation, self.layer_stats) if self.degradation or self.layer_stats else None,
            candidate_table(self.search) if self.search else None,
            halving_table(self.trained) if self.trained else None,
        )
        return [table for table in found if table]

    def to_json(self) -> dict[str, Any]:
        """All results, settings and package versions."""
        degradation, search = self.degradation, self.search
        parts = {
            "degradation": {**asdict(degradation), "rule": degradation.rule} if degradation else None,
            "layer_stats": asdict(self.layer_stats) if self.layer_stats else None,
            "candidates": [asdict(candidate) for candidate in search.candidates] if search else None,
            "trained": asdict(self.trained) if self.trained else None,
        }
        return {
            "model": self.metadata["source"],
            "metadata": self.metadata,
            "dev": self.dev,
            "seed": self.seed,
            "versions": package_versions(),
            "summary": self.summary,
            **{name: part for name, part in parts.items() if part},
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True, kw_only=True)
class HalvingTraining:
    """How to train the likeliest maps by successive halving."""

    recipe: Recipe
    """`max_steps` is the number of steps of the maps that come to the end."""
    sources: Sequence[tuple[Dataset, float]]
    """Training data, each with its weight."""
    folder: Path
    """Where runs lie, which are resumed."""
    on_plan: Callable[[HalvingPlan], None] = lambda _: None
    """Called before the first step."""


def find_layers(
    encoder: Encoder | MultiViewEncoder | Callable[[], Encoder | MultiViewEncoder],
    dev: str | STSPairs = "STSBenchmark-dev",
    *,
    methods: Collection[Method] = ("degradation", "profile", "search"),
    training: HalvingTraining | None = None,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Finding:
    """Measure the degradation curve and the statistics of each layer, then score maps of open layers.

    The map of the paper's rule is among them, and Token Prepending, backward flow without an open layer, is compared
    too. Cosines and vectors are kept: a second run is quick, an interrupted one resumes.

    Args:
        encoder: Its weights, prompt, pooling and variant are used, whatever layers it opens; or a function that loads
            one, called once everything else is known to be there. Of several views each map opens the layers in all,
            and `search` is the only method.
        dev: Rated pairs that maps are chosen by; or what `read_dev_set` takes.
        methods: What to measure; without the curve the paper's rule is not among the maps.
        training: Also train the likeliest maps.
        data: Folder of data sets; None for `BELLM_DATA`, else the Hub.
        cache: Folder that keeps vectors; None for the one that `bellm evaluate` uses.
        seed: Of the bootstrap.
        progress: Called with the name of a task, how much of it is done, and how much there is.

    Raises:
        BellmError: The development set or the options do not fit, or training fails.
    """
    start = time.monotonic()
    for method in methods:
        check_choice("methods", method, Method)
    if training and "search" not in methods:
        raise BellmError("--train takes its maps from the search: add --method search, or leave --method out.")
    check_encoder(encoder, Encoder | MultiViewEncoder)
    if not isinstance(dev, str | STSPairs):
        raise BellmError(f"dev={dev!r:.60} is neither rated pairs, nor the name of a set or file.")
    dev = read_dev_set(dev, Path(data) if data else None) if isinstance(dev, str) else dev
    cache = Path(cache) if cache else default_cache_folder()
    encoder = encoder() if callable(encoder) else encoder
    if isinstance(encoder, MultiViewEncoder) and (training or {*methods} != {"search"}):
        raise BellmError(
            f"{encoder.source} holds several views: --method search opens the same layers in all of them, and other "
            "methods and --train take one encoder, as in FOLDER/view-1."
        )
    encoder = encoder.replace(bidirectional="none", token_prepending=0)
    metadata, num_layers = {"source": encoder.source, **encoder.describe()}, encoders_of(encoder)[0].num_layers
    degradation = stats = search = trained = None
    if "degradation" in methods:
        num_done = 0

        def count(num_pairs: int) -> None:
            nonlocal num_done
            num_done += num_pairs
            progress("dropping layers", num_done, len(dev.left))

        count(0)
        assert isinstance(encoder, Encoder)
        degradation = measure_degradation(encoder, dev, cache, seed=seed, done=count)
    if "profile" in methods:
        progress("looking at layers", 0, 1)
        texts = list(dict.fromkeys((*dev.left, *dev.right)))
        assert isinstance(encoder, Encoder)
        stats = measure_layers(encoder, texts[:: -(-len(texts) // _STATS_TEXTS)])
    rule = degradation.rule if degradation else None
    if "search" in methods:
        layer_sets, depths = make_layer_sets(encoder, [rule] if rule else []), prepending_depths(encoder)
        search = score_candidates(encoder, dev, layer_sets, cache, depths=depths, seed=seed, progress=progress)
    del encoder  # Training loads its own.
    if training and search:
        from bellm.layer_search.successive_halving import run_halving  # What it imports takes a second.

        plan = plan_halving(search, rule, training.recipe)
        training.on_plan(plan)
        trained = run_halving(plan, training.recipe, training.sources, dev, training.folder, progress=progress)
    seconds = time.monotonic() - start
    return Finding(dev.name, num_layers, degradation, stats, search, seed, trained, metadata, seconds)
