"""Log-likelihoods of answers after prompts under a causal model.

Each distinct beginning of an answer is one row: answers of one token need nothing but the prompt, however many they
are. Packed batches compute what rows begin with once, the beginning of all rows once for all batches.

Shapes: R answers, C positions that take logits, V vocabulary, A tokens of answers.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone.packed_model import PackedModel
from bellm.engine.embedding import Runner, run_batches
from bellm.engine.memory_budget import default_batch_tokens
from bellm.engine.packed import PackedRunner
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.tensors.placement import to_device


def answer_log_likelihoods(
    model: PreTrainedModel,
    tokens: Tokens,
    *,
    packed: PackedModel | None,
    max_batch_tokens: int | None = None,
    pad_id: int,
    done: Callable[[int], object] = lambda _: None,
) -> NDArray[np.float64]:
    """Log-likelihood of each row's span, the end of the row, given what stands before it, in nats, (R,).

    Args:
        model: A causal language model with all layers closed.
        tokens: Prompts with their answers, as `tokenize_answers` gives them.
        packed: The model's packed copy; None for padded batches.
        max_batch_tokens: Most tokens of one forward pass; None for the hardware's default.
        pad_id: Token that fills padding.
        done: Called with the number of further answers whose likelihood is there.
    """
    wanted: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}  # Of each distinct input: position, token, answer.
    for answer, (ids, (start, end)) in enumerate(zip(tokens.ids, tokens.spans, strict=True)):
        aims = wanted.setdefault(tuple(ids[: end - 1]), [])
        aims += [(place - 1, ids[place], answer) for place in range(start, end)]
    found_R = np.zeros(len(tokens))
    if not wanted:
        return found_R
    rows = Tokens([list(ids) for ids in wanted], [(0, len(ids)) for ids in wanted], 0)
    aims_of = list(wanted.values())
    readout = HiddenStateReadout("last", -1)
    runner: Runner = PackedRunner(packed, rows, readout) if packed else PaddedRunner(model, rows, readout, pad_id)

    def compute(group: Sequence[int]) -> Tensor:
        """Log-probabilities of the wanted tokens of a group, row after row."""
        positions = [sorted({place for place, _, _ in aims_of[row]}) for row in group]
        logits_CV = runner.logits(group, positions)
        # A sum over so many tokens rounds to 1e-5 nats in float32, which is more than the rest of the model does.
        logits_CV = logits_CV.to(torch.float32 if logits_CV.is_mps else torch.float64)  # Metal has no float64.
        totals_C = logits_CV.logsumexp(-1)
        starts = np.cumsum([0, *map(len, positions)])
        index = [
            int(start) + places.index(place)
            for row, places, start in zip(group, positions, starts, strict=False)
            for place, _, _ in aims_of[row]
        ]
        token_ids = [token for row in group for _, token, _ in aims_of[row]]
        index_A, token_ids_A = (to_device(np.array(table), logits_CV.device) for table in (index, token_ids))
        return logits_CV[index_A, token_ids_A] - totals_C[index_A]

    def take(group: Sequence[int], log_probs: NDArray[np.floating[Any]]) -> None:
        answers = [answer for row in group for _, _, answer in aims_of[row]]
        np.add.at(found_R, answers, log_probs.astype(np.float64))
        done(len(set(answers)))

    run_batches(model, runner, rows, max_batch_tokens or default_batch_tokens(model), compute, take)
    assert len(set(chain.from_iterable([answer for _, _, answer in aims] for aims in aims_of))) == len(tokens)
    return found_R
