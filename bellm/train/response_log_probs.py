"""How likely a causal model finds a response to a prompt, with gradients, for SFT, DPO, KTO and GRL (arXiv 2408.03402).

Shapes: R rows (a prompt with one response), B rows of a batch, L tokens, M chosen positions of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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

_PAD = 0  # Any id does: padding stands behind the tokens and is masked.


@dataclass(frozen=True)
class TokenLogProbs:
    """Log-probabilities of responses in nats, float32, differentiable; prompts have no part in them."""

    sum_R: Tensor
    """Of the whole response, as DPO and KTO take it."""
    num_tokens_R: Tensor
    """Tokens of the response, its end-of-text token among them."""

    @property
    def mean_R(self) -> Tensor:
        """Of a token of the response on average, as SFT and GRL take it."""
        return self.sum_R / self.num_tokens_R


def tokenize_turns(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], max_tokens: int
) -> Tokens:
    """Turn prompts and their responses, joined as they are, into rows whose span is the response.

    A token over the seam belongs to the response. The end-of-text token, where the tokenizer has one, follows as the
    response's last. A row without a prompt begins with the tokenizer's BOS, EOS or PAD token: its first token needs
    one to be predicted from. Rows of more than `max_tokens` lose the beginning of the prompt, but not its BOS, and the
    end of the response; each loses nothing while it has no more than half of the row.

    Args:
        tokenizer: A fast tokenizer. Its chat template is not applied.
        prompts: One for each response; a query with several candidates comes several times.
        responses: What is to be predicted.
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
    for number, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        head, tail = _split(ids, offsets, len(prompts[number]), tokenizer)
        if not tail:
            raise BellmError(f"Response {number} is {responses[number]!r}: it has no tokens. Leave it out.")
        kept_head, kept_tail = _fit(head, tail, max_tokens, tokenizer.bos_token_id)
        rows.append(kept_head + kept_tail)
        spans.append((len(kept_head), len(rows[-1])))
        num_truncated += len(rows[-1]) < len(head) + len(tail)
    return Tokens(rows, spans, num_truncated)


def response_token_log_probs(model: PreTrainedModel, turns: Tokens, *, max_batch_tokens: int = 2048) -> TokenLogProbs:
    """Log-probability of each response after its prompt, in the order of the rows.

    Rows of similar length share a batch, and only states that predict a token of a response go through the head.

    Args:
        model: A causal language model, all layers closed: `with encoder.causal() as model`. That twin shares the
            weights of adapters too, so that gradients reach them.
        turns: Rows of `tokenise_turns`.
        max_batch_tokens: Most tokens in one forward pass, padding included. A response token takes the vocabulary's
            width in float32, 0.2 MB of 49 152 words, until the gradient is computed.

    Raises:
        BellmError: The model has no language-model head.
    """
    order: list[int] = []
    sums: list[Tensor] = []
    for numbers in PaddedRunner(model, turns, HiddenStateReadout("last", -1), _PAD).batches(
        range(len(turns)), max_batch_tokens
    ):
        sums.append(_sums(model, [turns.ids[n] for n in numbers], [turns.spans[n] for n in numbers]))
        order += numbers
    sum_R = torch.cat(sums)
    counts = [end - start for start, end in turns.spans]
    return TokenLogProbs(sum_R[torch.tensor(order).argsort()], torch.tensor(counts, device=sum_R.device))


def reference_log_probs(model: PreTrainedModel, turns: Tokens, *, max_batch_tokens: int = 2048) -> TokenLogProbs:
    """What the model gave before it was adapted, the reference of DPO and KTO: no adapters, no gradient.

    Arguments are those of `response_log_probs`.

    Raises:
        BellmError: The model has no adapter, or no language-model head.
    """
    with torch.no_grad(), disable_adapters(model):
        return response_token_log_probs(model, turns, max_batch_tokens=max_batch_tokens)


def _sums(model: PreTrainedModel, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> Tensor:
    """Log-probability of each row's span, (B,)."""
    ids_BL, mask_BL = pad_rows(rows, _PAD, input_device(model))
    predicts_BL = torch.zeros_like(mask_BL, dtype=torch.bool)
    for number, (start, end) in enumerate(spans):
        predicts_BL[number, start - 1 : end - 1] = True
    targets = chain.from_iterable(row[start:end] for row, (start, end) in zip(rows, spans, strict=True))
    targets_M = torch.tensor(list(targets), device=ids_BL.device)
    losses_M = cross_entropy(logits_at(model, ids_BL, mask_BL, predicts_BL).float(), targets_M, reduction="none")
    return -torch.stack([part.sum() for part in torch.split(losses_M, [end - start for start, end in spans])])


def _split(
    ids: list[int], offsets: Sequence[tuple[int, int]], prompt_end: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, at least one, and of the response with its end."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    inside = len(ids) - (len(ids) > 0 and ids[-1:] == end)  # Some tokenizers put the end there themselves.
    seam = next((index for index in range(inside) if offsets[index][1] > prompt_end), inside)
    return ids[:seam] or [fallback_token_id(tokenizer)], ids[seam:inside] + end


def _fit(head: list[int], tail: list[int], room: int, bos_id: int | None) -> tuple[list[int], list[int]]:
    """Prompt and response, cut where both do not fit."""
    tail = tail[: max(room // 2, room - len(head))]
    surplus = max(0, len(head) + len(tail) - room)
    first = 1 if head[0] == bos_id else 0
    return head[:first] + head[first + surplus :], tail
