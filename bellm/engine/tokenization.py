"""Tokenize texts within their prompt, truncating the text and never the prompt."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bellm.errors import BellmError, BellmWarning, PromptError, SourceError, TruncationWarning, warn
from bellm.prompts import SLOT, Rendered

if TYPE_CHECKING:  # `GraphEncoder` tokenizes without it.
    from transformers import PreTrainedTokenizerBase


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

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", num_embeddings: int) -> None:
        """Copy a tokenizer; a SourceError where its tokens are more than the model embeds."""
        self._special = special_tokens(tokenizer)
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

    def tokenize_answers(self, prompts: Sequence[Rendered], answers: Sequence[str], max_tokens: int) -> Tokens:
        """Tokenize prompts with answers; see `tokenize_answers`. Special tokens are text."""
        return tokenize_answers(self._literal, prompts, answers, max_tokens)

    @cached_property
    def _marked(self) -> "PreTrainedTokenizerBase":
        tokenizer = copy.deepcopy(self._literal)
        tokenizer.split_special_tokens = False
        return tokenizer


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Texts of the special tokens; a prompt that holds one has them read as such."""
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def tokens_around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Ids of the special tokens that a tokenizer puts before and behind a text."""
    bare, whole = (tokenizer("a", add_special_tokens=each).input_ids for each in (False, True))
    start = next(index for index in range(len(whole)) if whole[index : index + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], template: str, max_tokens: int, *, num_reserved: int = 0
) -> Tokens:
    """Put each text in the template and tokenize it to at most `max_tokens` token ids.

    A row that is too long loses tokens from the end of its text, never from the prompt. A row without any token (an
    empty text, no prompt, no special tokens) becomes the tokenizer's BOS, EOS or PAD token. No chat template is
    applied.

    A template with two slots holds the text twice: both are cut alike, and the span is that of the second.

    Args:
        tokenizer: A fast tokenizer.
        texts: Any number of texts.
        template: Prompt template with its slot or two.
        max_tokens: Longest row; a PromptError where the prompt leaves no room for the text.
        num_reserved: How many of these are for Token Prepending's placeholder.
    """
    frame = template.split(SLOT)
    filled = [_fill(frame, text) for text in texts]
    rows: list[list[int]] = []
    spans: list[tuple[int, int]] = []
    num_truncated = 0
    for ids, offsets, each in _encoded(tokenizer, filled):
        kept, places = _shorten(ids, offsets, each, max_tokens - num_reserved, num_reserved)
        rows.append(kept or [fallback_token_id(tokenizer)])
        spans.append(places[-1])
        num_truncated += len(kept) < len(ids)
    return Tokens(rows, spans, num_truncated)


def _fill(frame: Sequence[str], text: str) -> Rendered:
    """What stands around the slots of a template, with a text in each of them."""
    filled, places = frame[0], list[tuple[int, int]]()
    for behind in frame[1:]:
        places.append((len(filled), len(filled) + len(text)))
        filled += text + behind
    return Rendered(filled, tuple(places))


def tokenize_answers(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Rendered], answers: Sequence[str], max_tokens: int
) -> Tokens:
    """Tokenize every prompt with every answer behind it, prompt after prompt; spans are those of the answers.

    Long parts of a prompt are shortened, each from its end and the longest first, so that it fits in `max_tokens` with
    any of the answers; its frame and the answers never are. A token across the boundary belongs to the answer. A row
    has a token before its answer, if need be BOS, EOS or PAD.

    Raises:
        PromptError: An answer has no tokens, or frame and answer leave no room for the long parts.
    """
    joined = [Rendered(prompt.text + answer, prompt.long) for prompt in prompts for answer in answers]
    rows: list[list[int]] = []
    spans: list[tuple[int, int]] = []
    num_truncated = 0
    encoded = list(_encoded(tokenizer, joined))
    for prompt, first in zip(prompts, range(0, len(encoded), len(answers) or 1), strict=True):
        of_prompt = encoded[first : first + len(answers)]
        ends = [_end(offsets) for _, offsets, _ in of_prompt]
        counts = [
            sum(right > len(prompt.text) for _, right in offsets[:end])
            for (_, offsets, _), end in zip(of_prompt, ends, strict=True)
        ]
        for (ids, offsets, each), end, count, answer in zip(of_prompt, ends, counts, answers, strict=True):
            if not count:
                raise PromptError(f"The answer {answer!r} has no tokens. Give another word.")
            kept, _ = _shorten(ids[:end], offsets[:end], each, max_tokens - (max(counts) - count), 0)
            num_truncated += len(kept) < end
            rows.append([fallback_token_id(tokenizer), *kept] if len(kept) == count else kept)
            spans.append((len(rows[-1]) - count, len(rows[-1])))
    return Tokens(rows, spans, num_truncated)


def _end(offsets: Sequence[tuple[int, int]]) -> int:
    """Tokens up to the last one of the text: special ones that a tokenizer puts behind it are left out."""
    return max((place + 1 for place, (left, right) in enumerate(offsets) if left < right), default=0)


def _encoded(
    tokenizer: "PreTrainedTokenizerBase", rendered: Sequence[Rendered]
) -> Iterator[tuple[list[int], Sequence[tuple[int, int]], Rendered]]:
    """Token ids and the characters of each token."""
    if not rendered:
        return
    encoded = tokenizer(
        [each.text for each in rendered],
        return_offsets_mapping=True,
        return_attention_mask=False,
        truncation=False,
        verbose=False,
    )
    yield from zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True)


def _shorten(
    ids: list[int], offsets: Sequence[tuple[int, int]], rendered: Rendered, max_tokens: int, num_reserved: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """A row of at most so many tokens, and the tokens of its long parts, each of which keeps at least one."""
    spans = [_span(offsets, start, end) for start, end in rendered.long]
    lengths = [end - start for start, end in spans]
    frame = len(ids) - sum(lengths)
    kept = _share(lengths, max_tokens - frame)
    if kept is None:
        what = "the text" if len(spans) == 1 else f"its {len(spans)} texts"
        raise PromptError(
            f"max_tokens={max_tokens + num_reserved} leaves no room for {what}: the prompt alone takes "
            f"{frame} tokens{' and Token Prepending 1' * num_reserved}. Raise max_tokens or shorten the prompt."
        )
    row: list[int] = []
    places: list[tuple[int, int]] = []
    last = 0
    for (start, end), length in zip(spans, kept, strict=True):
        if start == end:  # No token of its own.
            places.append((0, 0))
            continue
        row += ids[last:start]
        places.append((len(row), len(row) + length))
        row += ids[start : start + length]
        last = end
    return row + ids[last:], places


def _share(lengths: Sequence[int], budget: int) -> list[int] | None:
    """Lengths that together are within a budget: the longest are cut to one length, give or take a token.

    >>> _share([10, 3, 8], 15), _share([4, 4], 9), _share([5, 5], 1)
    ([6, 3, 6], [4, 4], None)
    """
    if sum(lengths) <= budget:
        return list(lengths)
    if budget < sum(length > 0 for length in lengths):
        return None
    cap = max(cap for cap in range(budget + 1) if sum(min(length, cap) for length in lengths) <= budget)
    spare = budget - sum(min(length, cap) for length in lengths)
    kept = []
    for length in lengths:
        more = int(length > cap and spare > 0)
        spare -= more
        kept.append(min(length, cap) + more)
    return kept


def fallback_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
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


def deduplicate(tokens: Tokens, *, by_span: bool) -> tuple[Tokens, list[int]]:
    """Each distinct row once, and for every row its index among them; with `by_span`, spans must be equal too."""
    keys = [(tuple(ids), span if by_span else None) for ids, span in zip(tokens.ids, tokens.spans, strict=True)]
    first_row: dict[object, int] = {}
    for row, key in enumerate(keys):
        first_row.setdefault(key, row)
    index_of = {key: index for index, key in enumerate(first_row)}
    return tokens.select(list(first_row.values())), [index_of[key] for key in keys]


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
    from bellm.backbone.token_prepending import PLACEHOLDER

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
