"""The layer finder: which layers of a model to open, by what can be measured without training or after a little."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from bellm.data import sts
from bellm.data.sts import STSPairs
from bellm.encoder import Encoder
from bellm.errors import BellmError, SourceError
from bellm.layer_search.candidates import CandidateScores, layer_sets, prepending_depths, score_candidates
from bellm.layer_search.degradation import Degradation, measure_degradation
from bellm.layer_search.layer_stats import LayerStats, measure_layers
from bellm.layer_search.summary import summarize_candidates, summarize_training, summarize_turning_point
from bellm.metadata import package_versions
from bellm.train.dataset_files import load_dataset

if TYPE_CHECKING:
    from bellm.layer_search.successive_halving import HalvingResult

Method = Literal["degradation", "profile", "search"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Scores with the top layers dropped; what each layer's states share and where it would look; scores of maps."""

DEVELOPMENT = ("STSBenchmark-dev", "STSBenchmark-train")
"""Sets of rated pairs by which layers may be chosen. All other tasks are what a choice is judged by."""

_FEWEST_PAIRS = 3

PROFILED = 200
"""Texts of which each layer's profile is the mean."""


@dataclass(frozen=True)
class Finding:
    """What the finder found; None for what it was not asked for."""

    dev: str
    """What layers are judged by."""
    num_layers: int
    degradation: Degradation | None
    profile: LayerStats | None
    search: CandidateScores | None
    seed: int = 0
    """Of the bootstrap."""
    trained: "HalvingResult | None" = None
    """What came of training some of the maps, if that was asked for."""

    @property
    def summary(self) -> str:
        """In plain sentences."""
        said = [
            summarize_candidates(self.search) if self.search else "",
            summarize_turning_point(self.degradation, self.search) if self.degradation else "",
            summarize_training(self.trained) if self.trained else "",
        ]
        return "\n".join(filter(None, said)) or "No layer was opened and none dropped: a profile chooses nothing."


def read_dev_set(name: str, data: Path | None = None) -> STSPairs:
    """Read a set of rated pairs by which layers may be chosen.

    Args:
        name: One of `DEVELOPMENT`, or a file of rated pairs as `bellm.train.dataset_files` reads them.
        data: Folder of data sets; None for `BELLM_DATA`, else the Hub.

    Raises:
        BellmError: It is neither: a test set, or unknown.
        SourceError: It is not there, or a row of the file is no rated pair.
    """
    known = {one.lower(): one for one in DEVELOPMENT}
    if name.lower() in known:
        return sts.read_sts(known[name.lower()], data)
    if not Path(name).is_file():
        raise BellmError(
            f"{name!r} is neither a file of rated pairs nor a development set: layers that are chosen by a test set "
            f"leave nothing to test them with. Choose by {' or '.join(DEVELOPMENT)}, or by a file of your own."
        )
    return _own_pairs(name)


def _own_pairs(file: str) -> STSPairs:
    """All rows of a file: a score on fewer pairs than somebody rated would be another score."""
    rows = load_dataset(file)
    if rows.rejections:
        first = rows.rejections[0]
        raise SourceError(f"{first.place}: {first.reason} Layers are judged by every row or by none.")
    examples = [rows[number] for number in range(len(rows))]
    if len(examples) < _FEWEST_PAIRS or any(one.score is None for one in examples):
        raise SourceError(
            f"{file} has {len(examples)} rows. Layers are judged by {_FEWEST_PAIRS} pairs or more, each with a score: "
            "columns sentence1, sentence2 and score."
        )
    return STSPairs(
        rows.name,
        tuple(one.anchor for one in examples),
        tuple(one.positives[0] for one in examples),
        np.array([one.score for one in examples], dtype=np.float64),
        (rows.name,) * len(examples),
    )


def find_layers(
    encoder: Encoder,
    dev: STSPairs,
    cache: Path,
    *,
    methods: Collection[Method] = METHODS,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Finding:
    """Draw the degradation curve and each layer's profile, then try maps of open layers, the paper's rule among them.

    Token Prepending, backward flow without an open layer, is judged beside the maps.

    The cosines of the curve and the vectors of the maps are kept, so that a second run is quick and an interrupted one
    goes on.

    Args:
        encoder: Whose weights, prompt, pooling and reading are used.
        dev: What maps are chosen by.
        cache: Folder that keeps vectors; `bellm evaluate` shares it.
        methods: What to do; without the curve the paper's rule is not among the maps.
        seed: Of the bootstrap.
        progress: Told what is next, how much of it is done, and how much there is.
    """
    done = 0

    def dropped(count: int) -> None:
        nonlocal done
        done += count
        progress("dropping layers", done, len(dev.left))

    degradation = layers = found = None
    if "degradation" in methods:
        degradation = measure_degradation(encoder, dev, cache, seed=seed, done=dropped)
    if "profile" in methods:
        progress("looking at layers", 0, 1)
        texts = list(dict.fromkeys((*dev.left, *dev.right)))
        layers = measure_layers(encoder, texts[:: -(-len(texts) // PROFILED)])
    if "search" in methods:
        maps = layer_sets(encoder, [degradation.rule] if degradation and degradation.rule else [])
        found = score_candidates(
            encoder, dev, maps, cache, depths=prepending_depths(encoder), seed=seed, progress=progress
        )
    return Finding(dev.name, encoder.num_layers, degradation, layers, found, seed)


def finding_to_json(finding: Finding, known: Mapping[str, Any]) -> dict[str, Any]:
    """All of a finding for JSON.

    Args:
        finding: What was found.
        known: `bellm.metadata.encoder_metadata` of the encoder.
    """
    curve, profile, search, trained = finding.degradation, finding.profile, finding.search, finding.trained
    found = {
        "degradation": {**asdict(curve), "rule": curve.rule} if curve else None,
        "profile": asdict(profile) if profile else None,
        "candidates": [asdict(one) for one in search.candidates] if search else None,
        "trained": asdict(trained) if trained else None,
    }
    return {
        "model": known["source"],
        "facts": known,
        "dev": finding.dev,
        "seed": finding.seed,
        "versions": package_versions(),
        "verdict": finding.summary,
        **{name: part for name, part in found.items() if part},
    }
