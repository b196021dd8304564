"""What the layers of a causal model do, measured one by one.

The degradation experiment of BeLLM (arXiv 2311.05296) scores the model with its layers dropped from the top. Its pilot
study's sentence dependency, and attention to later tokens if a layer were open, are means over texts.

Shapes: N texts or pairs, K layers, L tokens, D width.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from bellm import saved_encoder
from bellm.backbone.leakage import FutureAttention
from bellm.backbone.states import all_layer_states, with_early_exits
from bellm.data import STSPairs
from bellm.encoder import Encoder
from bellm.engine.embedding import embed_layers
from bellm.engine.readout import refuse_other_readouts
from bellm.engine.tokenization import fallback_token_id
from bellm.errors import BellmError
from bellm.evaluate import open_cache
from bellm.evaluate.sts_task import SPEARMAN
from bellm.layer_search.turning import TurningPoint, find_turning_point
from bellm.report import statistics
from bellm.report.statistics import Score
from bellm.tensors.geometry import sentence_dependency
from bellm.tensors.similarity import paired_cosine_similarity
from bellm.types import Vectors

_PART = 256  # Pairs whose states after every layer are in memory at once.


@dataclass(frozen=True)
class Degradation:
    """Scores of a causal model truncated to its first layers."""

    scores: tuple[Score, ...]
    """With the first 1, 2, ... layers, and at last all of them."""
    turning: TurningPoint

    @property
    def rule(self) -> str | None:
        """Layers that the paper's rule opens, those after the turning point; None without one."""
        return None if self.turning.depth is None else f"last:{len(self.scores) - self.turning.depth}"


def measure_degradation(
    encoder: Encoder,
    pairs: STSPairs,
    cache: Path,
    *,
    resamples: int = 1000,
    seed: int = 0,
    done: Callable[[int], None] = lambda _: None,
) -> Degradation:
    """Score the first layers alone, for every number of them, from one pass over the texts.

    The model is causal. Its final norm stays where layers are dropped, as in the paper; the state that `layer` of an
    encoder pools has not gone through it.

    Args:
        encoder: Whose weights, prompt and pooling are used; that layers are open does not matter.
        pairs: What to score on.
        cache: Folder that keeps cosines that were computed before.
        resamples: Bootstrap replicates of each score, on the same pairs for all numbers of layers.
        seed: Of the bootstrap.
        done: Called with the number of different pairs embedded since the last call.
    """
    refuse_other_readouts(encoder.config, "The curve of dropped layers scores")
    cosines_NK = _cached_cosines(encoder, pairs, cache, done).astype(np.float64)
    estimates = [
        statistics.bootstrap_estimate(item_scores_N, pairs.gold_N, resamples=resamples, seed=seed)
        for item_scores_N in cosines_NK.T
    ]
    scores = tuple(Score(SPEARMAN, one.value, one.low, one.high, len(pairs.left)) for one in estimates)
    resamples_RK = np.stack([one.resamples_R for one in estimates], axis=1)
    return Degradation(scores, find_turning_point(np.array([one.value for one in estimates]), resamples_RK))


def _cached_cosines(encoder: Encoder, pairs: STSPairs, folder: Path, done: Callable[[int], None]) -> Vectors:
    """Cosines by depth, (N, K), from the vector cache: the K cosines of a pair are kept as its vector."""

    def embed(names: Sequence[str]) -> Vectors:
        parts = []
        for start in range(0, len(names), _PART):
            part = [json.loads(name) for name in names[start : start + _PART]]
            parts.append(_cosines_by_depth(encoder, part))
            done(len(part))
        return np.concatenate(parts)

    fingerprint = _cosines_by_depth(encoder, list(pairwise(saved_encoder.FINGERPRINT_TEXTS)))
    cache = open_cache(encoder, folder, fingerprint, "cosines after each layer")
    names = [json.dumps(pair) for pair in zip(pairs.left, pairs.right, strict=True)]
    return cache.vectors(names, "text", embed)


def _cosines_by_depth(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> Vectors:
    """Cosine of each pair with the first 1, 2, ..., K layers of the causal model alone, (N, K)."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    rows = {text: row for row, text in enumerate(texts)}
    left, right = ([rows[text] for text in side] for side in zip(*pairs, strict=True))
    vectors_KND = _vectors_by_depth(encoder, texts).swapaxes(0, 1)
    return np.stack([paired_cosine_similarity(one_ND[left], one_ND[right]) for one_ND in vectors_KND], axis=1)


def _vectors_by_depth(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    model, tokens = with_early_exits(encoder.model), encoder.tokenize(texts)
    vectors_NKD = embed_layers(model, tokens, encoder.config.pooling, fallback_token_id(encoder.tokenizer))
    return vectors_NKD[:, 1:, : encoder.embedding_dim]


@dataclass(frozen=True)
class LayerStats:
    """Statistics of each layer of a causal model, first to last, in percent; means over texts."""

    num_texts: int
    dependency: tuple[float, ...]
    """Sentence-level dependency of BeLLM's pilot study after the layer: what the last token, the pivot, has in common
    with the others."""
    looks_ahead: tuple[float | None, ...]
    """Share of its attention that the layer, opened alone, pays to later tokens; None where it cannot be measured."""


def measure_layers(encoder: Encoder, texts: Sequence[str]) -> LayerStats:
    """Measure every layer on a few hundred texts in the encoder's prompt; texts of one token are left out.

    States are those that the first layers alone would give, through the final norm, as in the degradation curve.

    Raises:
        BellmError: No text has two tokens.
    """
    rows = [ids for ids in encoder.tokenize(texts).ids if len(ids) > 1]
    if not rows:
        raise BellmError(f"None of {len(texts)} texts has 2 tokens, a pivot and another.")
    model, ahead = with_early_exits(encoder.model), FutureAttention(encoder.model)
    dependency_NK, ahead_NK = [], []
    for ids in rows:
        ids_1L = torch.tensor([ids], device=encoder.device)
        with torch.inference_mode():
            states = all_layer_states(model, ids_1L, torch.ones_like(ids_1L))[1:]
        dependency_NK.append([sentence_dependency(hidden[0].float().cpu().numpy()) for hidden in states])
        ahead_NK.append(ahead.future_attention_mass(ids_1L))
    dependency_K, ahead_K = (100 * np.array(table, np.float64).mean(axis=0) for table in (dependency_NK, ahead_NK))
    looks_ahead = tuple(None if np.isnan(share) else float(share) for share in ahead_K)
    return LayerStats(len(rows), tuple(map(float, dependency_K)), looks_ahead)
