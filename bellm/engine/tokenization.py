"""Tokenize texts within their prompt, truncating the text and never the prompt."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from bellm.backbone.token_prepending import PLACEHOLDER
from bellm.errors import BellmError, BellmWarning, PromptError, SourceError, TruncationWarning, warn
from bellm.prompts import SLOT


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts in their prompts, with the span of the text in each."""

    ids: list[list[int]]
    spans: list[tuple[int, int]]
    """First and past-the-last token of the text itself, per row."""
    num_truncated: int
    """How many texts were cut."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> "Tokens":
        """Some of the rows, in this order."""
        return Tokens([self.ids[row] for row in rows], [self.spans[row] for row in rows], 0)


def list_texts(texts: Iterable[str]) -> list[str]:
    """The strings of any iterable (list, generator, set, array, column) in its order; a BellmError for all else."""
    if isinstance(texts, str):
        raise BellmError("A list of texts is asked for, and got one string. Write [text].")
    if isinstance(texts, Mapping | bytes) or hasattr(texts, "columns") or getattr(texts, "ndim", 1) != 1:
        raise BellmError(f"encode takes texts one after the other, and got a {type(texts).__name__}. Give one column.")
    if not isinstance(texts, Iterable):
        raise BellmError(f"encode takes a list of texts, and got {type(texts).__name__}.")
    # Columns of pyarrow give objects of their own when they are gone through.
    rows = texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts)
    for index, text in enumerate(rows):
        if not isinstance(text, str):
            raise BellmError(f"texts[{index}] is {type(text).__name__}, not a string.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BellmError(f"texts[{index}] holds half a character at {error.start}. Repair its decoding.") from error
    return [str(text) for text in rows]  # Strings of numpy are of a class of their own.


class OwnTokenizers:
    """Copies of a tokenizer that nobody else can change, for an encoder and those that `replace` makes of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
        """Copy a tokenizer; a SourceError where its tokens are more than the model embeds."""
        self._special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        ids = [token_id for token, token_id in tokenizer.get_vocab().items() if token not in self._special]
        largest = max([*ids, *tokenizer("").input_ids, fallback_token_id(tokenizer)])
        if largest >= num_embeddings:
            raise SourceError(
                f"The tokenizer has token ids up to {largest}, and the model embeds {num_embeddings} tokens: they do "
                "not belong together. Give the model's own tokenizer, or call "
                f"model.resize_token_embeddings({largest + 1})."
            )
        self._literal = copy.deepcopy(tokenizer)
        self._literal.split_special_tokens = True

    def tokenize(self, texts: Sequence[str], template: str, max_tokens: int, *, prepends: bool = False) -> Tokens:
        """Tokenize; see `tokenize`. Special tokens are such in the template, and text in a text.

        With `prepends` each text gets Token Prepending's placeholder, which counts as one of its tokens.

        Warns:
            BellmWarning: The template has special tokens, so that those in texts are read as such too.
        """
        tokenizer = self._literal
        if any(token in template for token in self._special):
            tokenizer = self._marked
            if count := sum(any(token in text for token in self._special) for text in texts):
                warn(
                    f"{count} of {len(texts)} texts hold special tokens of the tokenizer, such as those of the prompt, "
                    "and they act as such. Remove them, or take a prompt without special tokens.",
                    BellmWarning,
                )
        tokens = tokenize(tokenizer, texts, template, max_tokens, num_reserved=int(prepends))
        return with_placeholders(tokens) if prepends else tokens

    @cached_property
    def _marked(self) -> PreTrainedTokenizerBase:
        tokenizer = copy.deepcopy(self._literal)
        tokenizer.split_special_tokens = False
        return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], template: str, max_tokens: int, *, num_reserved: int = 0
) -> Tokens:
    """Put each text in the template and tokenize it to at most `max_tokens` token ids.

    A row that is too long loses tokens from the end of its text, never from the prompt. A row without any token (an
    empty text, no prompt, no special tokens) becomes the tokenizer's BOS, EOS or PAD token. No chat template is
    applied.

    Args:
        tokenizer: A fast tokenizer.
        texts: Any number of texts.
        template: Prompt template with its slot.
        max_tokens: Longest row; a PromptError where the prompt leaves no room for the text.
        num_reserved: How many of these are for Token Prepending's placeholder.
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
        surplus = len(ids) + num_reserved - max_tokens
        if surplus > 0:
            if surplus >= end - start:
                raise PromptError(
                    f"max_tokens={max_tokens} leaves no room for the text: the prompt alone takes "
                    f"{len(ids) - (end - start)} tokens{' and Token Prepending 1' * num_reserved}. Raise max_tokens or "
                    "shorten the prompt."
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
    """Say how many texts were cut, if any, to the caller of bellm."""
    if num_truncated:
        advice = "split them, or raise max_tokens if the model takes more"
        message = f"{num_truncated} of {num_texts} texts were cut to {max_tokens} tokens: {advice}."
        warn(message, TruncationWarning)


def chunk_texts(
    texts: Sequence[str], *, max_texts: int = 8192, max_characters: int = 4_000_000
) -> Iterator[Sequence[str]]:
    """Split a long list of texts into chunks whose tokens fit in memory easily."""
    start = characters = 0
    for end, text in enumerate(texts):
        if end - start == max_texts or (characters > max_characters and end > start):
            yield texts[start:end]
            start, characters = end, 0
        characters += len(text)
    if start < len(texts):
        yield texts[start:]


def with_placeholders(tokens: Tokens) -> Tokens:
    """Insert Token Prepending's placeholder before the first token of each text that has any."""
    rows, spans = [], []
    for ids, (start, end) in zip(tokens.ids, tokens.spans, strict=True):
        has_text = start < end
        rows.append([*ids[:start], PLACEHOLDER, *ids[start:]] if has_text else ids)
        spans.append((start + has_text, end + has_text))
    return Tokens(rows, spans, tokens.num_truncated)


def _span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Tokens of the text: from the first that overlaps it to the last that ends within it.

    A token that spans the text's last character and the prompt belongs to the prompt, which is never truncated.
    """
    inside = [index for index, (left, right) in enumerate(offsets) if left < right and start < right <= end]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
