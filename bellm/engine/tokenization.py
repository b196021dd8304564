"""Texts to token ids, with the prompt whole and the text cut where it must be."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bellm.errors import PromptError, TruncationWarning
from bellm.prompts import SLOT


@dataclass(frozen=True)
class Tokens:
    """Token ids of a list of texts, each with the span that belongs to the text and not to the prompt."""

    ids: list[list[int]]
    spans: list[tuple[int, int]]
    """First and past-the-last token of the text itself, per row."""
    num_truncated: int
    """How many texts were cut."""

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], template: str, max_tokens: int) -> Tokens:
    """Put each text in the template and turn it into at most `max_tokens` token ids.

    A row that is too long loses tokens from the end of its text, never from the prompt. A row without any token (an
    empty text, no prompt, no special tokens) becomes the tokenizer's BOS, EOS or PAD token. No chat template is
    applied.

    Raises:
        PromptError: The prompt leaves no room for the text.
    """
    prefix, suffix = template.split(SLOT)
    if not texts:
        return Tokens([], [], 0)
    encoded = tokenizer(
        [prefix + text + suffix for text in texts],
        return_offsets_mapping=True,
        return_attention_mask=False,
        truncation=False,
        verbose=False,
    )
    rows: list[list[int]] = []
    spans: list[tuple[int, int]] = []
    num_truncated = 0
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        start, end = _span(offsets, len(prefix), len(prefix) + len(text))
        surplus = len(ids) - max_tokens
        if surplus > 0:
            if surplus >= end - start:
                raise PromptError(
                    f"max_tokens={max_tokens} leaves no room for the text: the prompt alone takes "
                    f"{len(ids) - (end - start)} tokens. Raise max_tokens or shorten the prompt."
                )
            ids = ids[: end - surplus] + ids[end:]
            end -= surplus
            num_truncated += 1
        rows.append(ids or [fallback_token_id(tokenizer)])
        spans.append((start, end))
    return Tokens(rows, spans, num_truncated)


def fallback_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token id that stands for an empty text and fills padding: BOS, EOS, PAD, or 0."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def warn_truncated(num_truncated: int, num_texts: int, max_tokens: int) -> None:
    """Say how many texts were cut, if any, to the caller of bellm.

    Warns:
        TruncationWarning: Texts were cut.
    """
    if num_truncated:
        message = f"{num_truncated} of {num_texts} texts were cut to {max_tokens} tokens."
        warnings.warn(message, TruncationWarning, stacklevel=4)


def text_mask(mask_BL: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Keep the tokens of the text and drop the prompt's; a row without text keeps its whole prompt."""
    kept_BL = mask_BL.clone()
    for number, (start, end) in enumerate(spans):
        if start < end:
            kept_BL[number, :start] = 0
            kept_BL[number, end:] = 0
    return kept_BL


def _span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Tokens of the text: from the first that reaches into it to the last that does not reach past it.

    A token that joins the text's last character to the prompt belongs to the prompt, which is never cut.
    """
    inside = [index for index, (left, right) in enumerate(offsets) if left < right and start < right <= end]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
