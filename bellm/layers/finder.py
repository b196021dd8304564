"""The layer finder: which layers of a model to open, by what can be measured without training or after a little."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellm.encoder import Encoder
from bellm.errors import BellmError
from bellm.evaluate.sets import pairs
from bellm.evaluate.sets.pairs import Pairs
from bellm.facts import versions
from bellm.layers.degradation import Degradation, degrade
from bellm.layers.profile import Profile, profile
from bellm.layers.search import Search, depths_of, maps_of, search
from bellm.layers.verdict import trained, turn, verdict

if TYPE_CHECKING:
    from bellm.layers.halving import Halving

DEVELOPMENT = ("STSBenchmark-dev", "STSBenchmark-train")
"""Sets of rated pairs by which layers may be chosen. All other tasks are what a choice is judged by."""

PROFILED = 200
"""Texts of which each layer's profile is the mean."""


@dataclass(frozen=True)
class Finding:
    """What the finder found."""

    degradation: Degradation
    profile: Profile
    search: Search
    seed: int = 0
    """Of the bootstrap."""
    trained: "Halving | None" = None
    """What came of training some of the maps, if that was asked for."""

    @property
    def verdict(self) -> str:
        """In plain sentences."""
        untrained = f"{verdict(self.search)}\n{turn(self.degradation, self.search)}"
        return f"{untrained}\n{trained(self.trained)}" if self.trained else untrained


def development_set(name: str, data: Path | None = None) -> Pairs:
    """Read a set of rated pairs by which layers may be chosen.

    Args:
        name: One of `DEVELOPMENT`.
        data: Folder of data sets; None for `BELLM_DATA`, else the Hub.

    Raises:
        BellmError: It is none of them: a test set, or unknown.
        SourceError: It is not there.
    """
    known = {one.lower(): one for one in DEVELOPMENT}
    if name.lower() not in known:
        raise BellmError(
            f"{name!r} is not a development set: layers that are chosen by a test set leave nothing to test them "
            f"with. Choose by {' or '.join(DEVELOPMENT)}."
        )
    return pairs.read(known[name.lower()], data)


def find(
    encoder: Encoder,
    dev: Pairs,
    cache: Path,
    *,
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
        seed: Of the bootstrap.
        progress: Told what is next, how much of it is done, and how much there is.
    """
    done = 0

    def dropped(count: int) -> None:
        nonlocal done
        done += count
        progress("dropping layers", done, len(dev.left))

    texts = list(dict.fromkeys((*dev.left, *dev.right)))
    degradation = degrade(encoder, dev, cache, seed=seed, done=dropped)
    more = [degradation.rule] if degradation.rule else []
    progress("looking at layers", 0, 1)
    layers = profile(encoder, texts[:: -(-len(texts) // PROFILED)])
    maps, depths = maps_of(encoder, more), depths_of(encoder)
    found = search(encoder, dev, maps, cache, depths=depths, seed=seed, progress=progress)
    return Finding(degradation, layers, found, seed)


def record(finding: Finding, known: Mapping[str, Any]) -> dict[str, Any]:
    """All of a finding for JSON.

    Args:
        finding: What was found.
        known: `bellm.facts.facts` of the encoder.
    """
    return {
        "model": known["source"],
        "facts": known,
        "dev": finding.search.task,
        "seed": finding.seed,
        "versions": versions(),
        "verdict": finding.verdict,
        "degradation": {**asdict(finding.degradation), "rule": finding.degradation.rule},
        "profile": asdict(finding.profile),
        "candidates": [asdict(one) for one in finding.search.candidates],
        **({"trained": asdict(finding.trained)} if finding.trained else {}),
    }
