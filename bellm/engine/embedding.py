"""Embed rows of token ids batch by batch, packed where the model allows it, else padded."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone.architecture import count_layers
from bellm.backbone.packed_model import PackedModel
from bellm.backbone.states import input_device, refuse_non_finite, without_autocast
from bellm.engine.activation_cache import active_cache
from bellm.engine.concurrency import num_concurrent_batches, one_ahead, parallel_map
from bellm.engine.memory_budget import default_batch_tokens
from bellm.engine.packed import PackedRunner
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import Readout, all_states_readout
from bellm.engine.tokenization import Tokens, deduplicate
from bellm.errors import MemoryLimitError, MemoryWarning, NoOpWarning, warn
from bellm.tensors.placement import HostCopy
from bellm.tensors.similarity import is_constant, tolerances
from bellm.types import PoolingName, Vectors

Runner = PackedRunner | PaddedRunner

_FEWEST_TOKENS = 256  # Of a batch of which the states of all layers are in memory.


@dataclass(frozen=True)
class EncodeResult:
    """Vectors of texts, with counts of their tokens."""

    vectors: Vectors
    num_tokens: int
    """Tokens of all texts, prompts included."""
    num_truncated: int
    """How many texts were cut."""
    num_missing_graphs: int = 0
    """How many texts have no AMR graph, of an encoder that reads graphs."""


def embed_tokens(
    model: PreTrainedModel,
    tokens: Tokens,
    *,
    packed: PackedModel | None,
    readout: Readout,
    max_batch_tokens: int | None,
    batch_size: int | None = None,
    pad_id: int,
    done: Callable[[int], object] = lambda _: None,
) -> Vectors:
    """Embed every row of tokens, in order, as float32 of shape (rows, width).

    Duplicate rows are computed once. A batch that does not fit in memory is halved, and so are those that follow. NaN
    or infinity is an error, and a surrounding autocast does not matter.

    Args:
        model: A decoder, open or not.
        tokens: Rows of token ids.
        packed: The model's packed copy; None for padded batches.
        readout: What turns token states into vectors.
        max_batch_tokens: Most tokens of one forward pass; None for the hardware's default.
        batch_size: A second limit: no more tokens than so many padded rows have.
        pad_id: Token that fills padding.
        done: Called with the number of rows embedded, after each batch.
    """
    rows, inverse = deduplicate(tokens, by_span=readout.needs_spans)
    copies = np.bincount(inverse, minlength=len(rows))
    vectors = np.empty((len(rows), readout.width(model)), dtype=np.float32)
    if not len(rows):
        return vectors
    budget = max_batch_tokens or default_batch_tokens(model)
    if batch_size:
        budget = min(budget, batch_size * max(map(len, rows.ids)))
    with torch.inference_mode(), without_autocast(model):
        if packed:
            runner: Runner = PackedRunner(packed, rows, readout, cache=active_cache.get())
        else:
            runner = PaddedRunner(model, rows, readout, pad_id)

        def take(group: Sequence[int], result: NDArray[np.floating[Any]]) -> None:
            vectors[group] = result
            done(int(copies[group].sum()))

        run_batches(model, runner, rows, budget, runner.vectors, take)
    return vectors[inverse]


def run_batches(
    model: PreTrainedModel,
    runner: Runner,
    rows: Tokens,
    budget: int,
    compute: Callable[[Sequence[int]], Tensor],
    take: Callable[[Sequence[int], NDArray[np.floating[Any]]], None],
) -> None:
    """Compute something of all rows of a runner batch by batch, and hand it on with the rows that it is of.

    A batch that does not fit in memory is halved, and so are those that follow. NaN or infinity is an error. An
    accelerator runs the next batch while the host takes this one.

    Args:
        model: That of the runner.
        runner: Groups the rows to batches.
        rows: Of the runner.
        budget: Most tokens of a batch.
        compute: What is computed of a batch.
        take: Gets the rows of a batch and what was computed, batch after batch.
    """
    with torch.inference_mode(), without_autocast(model):
        groups = runner.batches(range(len(rows)), budget)
        concurrent = num_concurrent_batches(model) if isinstance(runner, PackedRunner) and len(groups) > 1 else 1
        while groups:
            num_done = 0
            with parallel_map(min(concurrent, len(groups))) as map_groups:
                results = map_groups(partial(_attempt, compute), groups)
                if input_device(model).type != "cpu":
                    results = one_ahead(results)
                for group, copied in zip(groups, results, strict=False):
                    if copied is None:
                        budget = _halve([len(rows.ids[row]) for row in group])
                        break
                    result = copied.numpy()
                    if not np.isfinite(result).all():
                        refuse_non_finite(model)
                    take(group, result)
                    num_done += 1
            groups = runner.batches(list(chain.from_iterable(groups[num_done:])), budget)


def embed_layers(model: PreTrainedModel, tokens: Tokens, pooling: PoolingName, pad_id: int) -> Vectors:
    """Pool the token embeddings and the states after every layer of each row, float32 (rows, layers + 1, width).

    Batches are padded, and small: the states of all layers are in memory at once. `pad_id` fills the padding.
    """
    num_layers = count_layers(model)
    readout = all_states_readout(pooling, num_layers)
    runner = PaddedRunner(model, tokens, readout, pad_id)
    vectors = np.empty((len(tokens), num_layers + 1, readout.width(model)), dtype=np.float32)
    budget = max(default_batch_tokens(model) // num_layers, _FEWEST_TOKENS)
    with torch.inference_mode(), without_autocast(model):
        for group in runner.batches(range(len(tokens)), budget):
            vectors[group] = runner.vectors(group).cpu().numpy()
    if not np.isfinite(vectors).all():
        refuse_non_finite(model)
    return vectors


def embed_chunks(chunks: Iterable[Tokens], embed: Callable[[Tokens], Vectors], width: int) -> EncodeResult:
    """Embed chunk after chunk of a long list; `width` is that of a vector."""
    vectors: list[Vectors] = [np.empty((0, width), dtype=np.float32)]
    num_tokens = num_truncated = 0
    for tokens in chunks:
        vectors.append(embed(tokens))
        num_tokens += sum(map(len, tokens.ids))
        num_truncated += tokens.num_truncated
    return EncodeResult(np.concatenate(vectors), num_tokens, num_truncated)


def warn_degenerate(texts: Sequence[str], vectors_ND: Vectors, dtype: str) -> None:
    """Say to the caller of bellm where vectors of different texts are all the same, or some are zeros.

    Long texts that differ in a word are close to each other: only rounding counts as the same.
    """
    problem = ""
    if len(texts) and not vectors_ND.any(axis=1).all():
        problem = "Some texts have vectors of zeros, which have no cosines"
    elif len(set(texts)) > 1 and is_constant(vectors_ND, min(tolerances(dtype).states, 1e-3)):
        problem = "All texts have the same vector, although they differ"
    if problem:
        advice = "Take another model if its weights are broken (bellm doctor), or pool another token or layer."
        warn(f"{problem}. {advice}", NoOpWarning)


def _attempt(compute: Callable[[Sequence[int]], Tensor], group: Sequence[int]) -> HostCopy | None:
    """What is computed of a group; None where it does not fit in memory."""
    try:
        return HostCopy(compute(group))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    except RuntimeError as error:
        if "not enough memory" not in str(error):  # From the allocator of the CPU.
            raise
        return None


def _halve(lengths: Sequence[int]) -> int:
    if len(lengths) == 1:
        raise MemoryLimitError(
            f"A text of {lengths[0]} tokens does not fit in memory. Lower max_tokens, or use a smaller model or dtype."
        )
    budget = sum(lengths) // 2
    message = f"Memory does not hold {sum(lengths)} tokens at once: going on with {budget}; max_batch_tokens={budget} "
    warn(f"{message}begins with so many.", MemoryWarning)
    return budget
