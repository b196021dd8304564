"""Findings of planted numbers, in the shape that the finder gives."""

from dataclasses import replace

from bellm.layer_search.candidates import Candidate, CandidateScores
from bellm.layer_search.finder import Finding
from bellm.layer_search.halving_rounds import HalvingResult, HalvingRound, RoundResult, TrainedCandidate
from bellm.layer_search.layer_stats import Degradation, LayerStats
from bellm.layer_search.turning import TurningPoint
from bellm.report.statistics import Difference, Score

LAYERS = 12
TURNING = TurningPoint(8, 7, 10, 0.004)


def finding(*, turning: TurningPoint = TURNING, task: str = "STSBenchmark-dev") -> Finding:
    """What might be found of 12 layers, of which layer 3 has no attention and that of layer 5 cannot be measured.

    Opening layer 2 alone is better than causal, layer 0 alone and all layers worse; `last:1` is a no-op.
    """
    scores = tuple(score(20 + 5 * min(kept, 8)) for kept in range(1, LAYERS + 1))
    ahead = tuple(None if layer in {3, 5} else 40 - 2.5 * layer for layer in range(LAYERS))
    profile = LayerStats(200, tuple(10.0 + layer**1.5 for layer in range(LAYERS)), ahead)
    singles = [
        candidate("first:1", (0,), -6, 0.002),
        candidate("2", (2,), 2.5, 0.01),
        *(candidate(str(layer), (layer,), 0.2 * (6 - layer), 0.7) for layer in (1, *range(4, LAYERS - 1))),
    ]
    openable = tuple(layer for layer in range(LAYERS) if layer != 3)
    others = [
        candidate("none", (), 0, 1),
        candidate("last:1", (LAYERS - 1,), 0, 1, no_op="The last token sees all of them already."),
        candidate("last:2", (10, 11), 0.6, 0.3),
        candidate("last:4", (8, 9, 10, 11), 1.0, 0.2),
        candidate("first:2", (0, 1), -14, 0.0004),
        candidate("every:2", openable[1::2], -4, 0.03),
        candidate("all", openable, -30, 0.0004),
        replace(candidate("none", (), 1.5, 0.2), prepending=8),
    ]
    candidates = sorted([*singles, *others], key=lambda one: -one.score.value)
    search = CandidateScores(task, LAYERS, tuple(candidates))
    return Finding(task, LAYERS, Degradation(scores, turning), profile, search)


def trained(*, data: str = "triplets.jsonl") -> Finding:
    """The same after two rounds of training, in which last:4 became better than causal and layer 2 went no further."""
    found = finding()
    candidates = (
        trained_candidate("last:4", (8, 9, 10, 11), (1.0, 4.0), 0.01),
        trained_candidate("none", (), (0.0, 0.0), 1),
        trained_candidate("all", tuple(range(LAYERS)), (-20.0, -12.0), 0.001),
        trained_candidate("2", (2,), (0.2,), 1, left=1),
    )
    budget = "4 maps to step 8, 3 to 16 (causal and all open stay to the end): 56 steps of 64 rows"
    rounds = (HalvingRound(4, 8), HalvingRound(3, 16))
    halving = HalvingResult(found.search.task, (data,), budget, rounds, batch_size=64, seed=42, candidates=candidates)
    return replace(found, trained=halving)


def trained_candidate(
    bidirectional: str, layers: tuple[int, ...], gains: tuple[float, ...], p_value: float, left: int | None = None
) -> TrainedCandidate:
    """A map that is better than causal, which comes to 70 points, by some points at the end of each round."""
    rounds_done = tuple(
        RoundResult(
            8 * number, score(70 + gain), Difference(gain, gain - 1, gain + 1, p_value), Difference(20, 18, 22, 0.001)
        )
        for number, gain in enumerate(gains, 1)
    )
    name = {"none": "causal", "2": "layer 2"}.get(bidirectional, bidirectional)
    return TrainedCandidate(name, bidirectional, layers, rounds_done, left)


def score(value: float) -> Score:
    """A score on 400 pairs, with an interval that is a little longer below."""
    return Score("Spearman of cosine", value, value - 3, value + 2, 400)


def candidate(
    bidirectional: str, layers: tuple[int, ...], gain: float, p_value: float, no_op: str | None = None
) -> Candidate:
    """A candidate that is better than causal, which reaches 60 points, by some points."""
    half = 0 if gain == 0 else 0.5 + abs(gain) / 4
    over_causal = Difference(gain, gain - half, gain + half, p_value)
    over_all = Difference(gain + 30, gain + 27, gain + 33, 0.001)
    moved = 0.0 if gain == 0 else 10 ** (abs(gain) / 8 - 4)
    return Candidate(bidirectional, layers, score(60 + gain), over_causal, over_all, moved, no_op)


def record_of(found: Finding, source: str = "models/heron") -> dict[str, object]:
    """A record as `bellm layers` writes it, but for what the page does not read."""
    metadata = {
        "source": source,
        "prompt": "prompteol",
        "template": 'This sentence : "{text}" means:"',
        "pooling": "last",
    }
    return {
        "model": source,
        "metadata": metadata,
        "dev": found.dev,
        "seed": 0,
        "versions": {"bellm": "0.4.0", "torch": "2.9.0"},
        "summary": found.summary,
        "candidates": [
            {"bidirectional": one.bidirectional} for one in (found.search.candidates if found.search else ())
        ],
        "seconds": 61.5,
    }
