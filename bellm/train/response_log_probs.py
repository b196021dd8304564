"""Log-probabilities of responses under a causal model, differentiable, for SFT, DPO, KTO and GRL (arXiv 2408.03402).

Shapes: R rows (a prompt with one response), B rows of a batch, L tokens, M chosen positions of a batch.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm.backbone.adapters import disable_adapters
from bellm.backbone.states import input_device, logits_at
from bellm.engine.padded import PaddedRunner, pad_rows
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens, fallback_token_id
from bellm.errors import BellmError

_PAD = 0  # Any id does: padding follows the tokens and is masked.


def tokenize_turns(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], max_tokens: int
) -> Tokens:
    """Tokenize prompts concatenated with their responses into rows whose span is the response.

    A token across the boundary belongs to the response. The end-of-text token, where the tokenizer has one, is the
    response's last. A row without a prompt begins with the tokenizer's BOS, EOS or PAD token: its first token needs
    one to be predicted from. Rows of more than `max_tokens` lose the start of the prompt, but not its BOS, and the
    end of the response; each is kept whole while it takes no more than half of the row.

    Args:
        tokenizer: A fast tokenizer. Its chat template is not applied.
        prompts: One for each response; a query with several candidates comes several times.
        responses: The texts to be predicted.
        max_tokens: Longest row, 2 or more.

    Raises:
        BellmError: `max_tokens` has no room for a prompt and a response, or a response has no tokens.
    """
    if max_tokens < 2:
        raise BellmError(f"max_tokens={max_tokens} has no room for a prompt and a response. Give 2 or more.")
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    encoded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    rows: list[list[int]] = []
    spans: list[tuple[int, int]] = []
    num_truncated = 0
    for row, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        head, tail = _split(ids, offsets, len(prompts[row]), tokenizer)
        if not tail:
            raise BellmError(f"Response {row} is {responses[row]!r}: it has no tokens. Leave it out.")
        kept_head, kept_tail = _fit(head, tail, max_tokens, tokenizer.bos_token_id)
        rows.append(kept_head + kept_tail)
        spans.append((len(kept_head), len(rows[-1])))
        num_truncated += len(rows[-1]) < len(head) + len(tail)
    return Tokens(rows, spans, num_truncated)


def response_log_probs(model: PreTrainedModel, turns: Tokens, *, max_batch_tokens: int = 2048) -> Tensor:
    """Log-probability of each response given its prompt, in nats, summed over its tokens: float32 (R,), differentiable.

    Rows of similar length share a batch, and only states that predict a token of a response go through the head.

    Args:
        model: A causal language model, all layers closed: `with encoder.causal() as model`. That copy shares the
            weights of adapters too, so that gradients reach them.
        turns: Rows of `tokenize_turns`.
        max_batch_tokens: Most tokens in one forward pass, padding included. A response token takes the vocabulary's
            width in float32, 0.2 MB of 49 152 words, until the gradient is computed.

    Raises:
        BellmError: The model has no language-model head.
    """
    order: list[int] = []
    sums: list[Tensor] = []
    runner = PaddedRunner(model, turns, HiddenStateReadout("last", -1), _PAD)
    for group in runner.batches(range(len(turns)), max_batch_tokens):
        sums.append(_batch_log_probs(model, [turns.ids[row] for row in group], [turns.spans[row] for row in group]))
        order += group
    return torch.cat(sums)[torch.tensor(order).argsort()]


def reference_log_probs(model: PreTrainedModel, turns: Tokens, *, max_batch_tokens: int = 2048) -> Tensor:
    """`response_log_probs` of the model without adapters and without a gradient: the reference of DPO and KTO, (R,).

    Raises:
        BellmError: The model has no adapter, or no language-model head.
    """
    with torch.no_grad(), disable_adapters(model):
        return response_log_probs(model, turns, max_batch_tokens=max_batch_tokens)


def _batch_log_probs(model: PreTrainedModel, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> Tensor:
    """Log-probability of each row's span, (B,)."""
    ids_BL, mask_BL = pad_rows(rows, _PAD, input_device(model))
    predicts_BL = torch.zeros_like(mask_BL, dtype=torch.bool)
    for row, (start, end) in enumerate(spans):
        predicts_BL[row, start - 1 : end - 1] = True  # A token is predicted from the state before it.
    targets = chain.from_iterable(row[start:end] for row, (start, end) in zip(rows, spans, strict=True))
    targets_M = torch.tensor(list(targets), device=ids_BL.device)
    losses_M = cross_entropy(logits_at(model, ids_BL, mask_BL, predicts_BL).float(), targets_M, reduction="none")
    return -torch.stack([part.sum() for part in torch.split(losses_M, [end - start for start, end in spans])])


def _split(
    ids: list[int], offsets: Sequence[tuple[int, int]], prompt_end: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, at least one, and of the response with its end."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    last = len(ids) - (len(ids) > 0 and ids[-1:] == end)  # Some tokenizers append it themselves.
    seam = next((index for index in range(last) if offsets[index][1] > prompt_end), last)
    return ids[:seam] or [fallback_token_id(tokenizer)], ids[seam:last] + end


def _fit(head: list[int], tail: list[int], max_tokens: int, bos_id: int | None) -> tuple[list[int], list[int]]:
    """Prompt and response, truncated where both do not fit."""
    tail = tail[: max(max_tokens // 2, max_tokens - len(head))]
    surplus = max(0, len(head) + len(tail) - max_tokens)
    first = 1 if head[0] == bos_id else 0
    return head[:first] + head[first + surplus :], tail
