"""The prompt stays whole, the text is cut and counted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bellm.engine.readout import text_mask
from bellm.engine.tokenization import tokenize, tokenize_answers
from bellm.errors import PromptError
from bellm.prompts import render

TEMPLATE = 'This sentence : "{text}" means in one word:"'
LONG = "Snow fell all night and the street was white and quiet in the morning. " * 4


def test_a_text_that_fits_is_the_tokenizers_own_ids(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(tiny_tokenizer, ["A heron.", LONG], "{text}", 10_000)
    assert tokens.ids == tiny_tokenizer(["A heron.", LONG])["input_ids"]
    assert tokens.num_truncated == 0


def test_the_prompt_survives_truncation(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    whole = tokenize(tiny_tokenizer, [LONG], TEMPLATE, 10_000)
    cut = tokenize(tiny_tokenizer, [LONG, "Snow"], TEMPLATE, 40)
    assert len(cut.ids[0]) == 40
    assert cut.num_truncated == 1
    (start, end), (_, whole_end) = cut.spans[0], whole.spans[0]
    assert cut.ids[0][:end] == whole.ids[0][:end]
    assert cut.ids[0][end:] == whole.ids[0][whole_end:]
    assert tiny_tokenizer.decode(cut.ids[0]).endswith('" means in one word:"')
    assert (
        tiny_tokenizer.decode(cut.ids[0][start:end]).strip() == tiny_tokenizer.decode(whole.ids[0][start:end]).strip()
    )


def test_a_text_may_fill_the_limit_and_keeps_a_token_at_least(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    whole = tokenize(tiny_tokenizer, [LONG], TEMPLATE, 10_000)
    [ids], [(start, end)] = whole.ids, whole.spans
    assert tokenize(tiny_tokenizer, [LONG], TEMPLATE, len(ids)) == whole
    prompt = len(ids) - (end - start)
    assert tokenize(tiny_tokenizer, [LONG], TEMPLATE, prompt + 1).spans == [(start, start + 1)]
    with pytest.raises(PromptError, match="leaves no room for the text"):
        tokenize(tiny_tokenizer, [LONG], TEMPLATE, prompt)


@settings(max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), limit=st.integers(30, 60))
def test_any_text_keeps_its_prompt_and_its_limit(
    tiny_tokenizer: PreTrainedTokenizerFast, text: str, limit: int
) -> None:
    tokens = tokenize(tiny_tokenizer, [text], TEMPLATE, limit)
    assert len(tokens.ids[0]) <= limit
    decoded = tiny_tokenizer.decode(tokens.ids[0], skip_special_tokens=True)
    assert decoded.startswith("This sentence : ")
    assert decoded.endswith('means in one word:"')


def test_a_span_is_the_text_alone(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(tiny_tokenizer, ["heron"], 'Say "{text}" now', 50)
    start, end = tokens.spans[0]
    assert tiny_tokenizer.decode(tokens.ids[0][start:end]) == "heron"


@pytest.mark.parametrize("max_tokens", [40, 41, 500])
def test_a_text_that_stands_twice_is_cut_alike(tiny_tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
    template = "Say: {text}\nAgain: {text} end"
    tokens = tokenize(tiny_tokenizer, ["heron", LONG, ""], template, max_tokens)
    short, long, empty = tokens.ids
    start, end = tokens.spans[0]
    assert tiny_tokenizer.decode(short[start:end]).strip() == "heron"
    assert "".join(tiny_tokenizer.decode(short, skip_special_tokens=True).split()) == "Say:heronAgain:heronend"
    assert tokens.spans[2] == (0, 0)
    assert len(long) <= max_tokens
    frame = len(empty)
    start, end = tokens.spans[1]
    assert abs((len(long) - frame) - 2 * (end - start)) <= 3  # Where a text meets its frame a token may differ.
    assert tokens.num_truncated == (max_tokens < 500)
    if tokens.num_truncated:
        assert end - start < len(tiny_tokenizer(LONG).input_ids)
        assert tiny_tokenizer.decode(long, skip_special_tokens=True).rstrip().endswith("end")


def test_a_prompt_without_room_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(PromptError, match="max_tokens=5 leaves no room for the text: the prompt alone takes"):
        tokenize(tiny_tokenizer, [LONG], TEMPLATE, 5)


def test_an_empty_text_is_its_prompt_and_without_one_the_bos(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenize(tiny_tokenizer, [""], "{text}", 10).ids == [[tiny_tokenizer.bos_token_id]]
    assert tokenize(tiny_tokenizer, [""], "word: {text}", 50).spans == [(0, 0)]


def test_a_tokenizer_that_adds_nothing_still_gives_a_token() -> None:
    from ..conftest import train_tokenizer

    bare = train_tokenizer()
    bare.backend_tokenizer.post_processor = None
    assert bare("")["input_ids"] == []
    assert tokenize(bare, [""], "{text}", 10).ids == [[bare.bos_token_id]]


def test_no_chat_template_is_put_around_a_text() -> None:
    from ..conftest import train_tokenizer

    chatty = train_tokenizer()
    chatty.chat_template = "{% for m in messages %}User: {{ m['content'] }}{% endfor %}"
    assert tokenize(chatty, ["A heron."], "{text}", 50).ids == [chatty("A heron.")["input_ids"]]


def test_no_text_is_no_row(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenize(tiny_tokenizer, [], TEMPLATE, 50).ids == []


def test_the_texts_mask_leaves_the_prompt_out_unless_there_is_no_text() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert text_mask(mask, [(1, 3), (0, 0)]).tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]


# Prompts with several long parts, and answers


TWO = "First: {text}\nGraph: {amr}\nSecond: {text_b}\nAnswer:"
PARTS = {"text": LONG, "amr": "(s / snow)", "text_b": LONG + LONG}


@settings(max_examples=50)
@given(limit=st.integers(40, 300), short=st.text(st.characters(codec="utf-8"), max_size=20))
def test_the_longest_parts_are_cut_to_the_token_and_the_frame_stays(
    tiny_tokenizer: PreTrainedTokenizerFast, limit: int, short: str
) -> None:
    prompt = render(TWO, {**PARTS, "amr": short})
    answers = [" yes", " no, it was quiet"]
    whole = tokenize_answers(tiny_tokenizer, [prompt], answers, 10_000)
    try:
        cut = tokenize_answers(tiny_tokenizer, [prompt], answers, limit)
    except PromptError:
        assert limit < 80
        return
    longest = max(map(len, whole.ids))
    assert max(map(len, cut.ids)) == min(limit, longest)
    assert cut.num_truncated == 2 * (limit < longest)
    for ids, (start, end), (first, last), all_ids in zip(cut.ids, cut.spans, whole.spans, whole.ids, strict=True):
        assert ids[start:end] == all_ids[first:last]
        shown = tiny_tokenizer.decode(ids[:start], skip_special_tokens=True)
        assert shown.startswith("First: Snow")
        assert "\nGraph: " in shown
        assert "\nSecond: Snow" in shown
        assert shown.endswith("\nAnswer:")


def test_a_short_part_stays_whole_beside_long_ones(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize_answers(tiny_tokenizer, [render(TWO, PARTS)], [" yes"], 90)
    assert "\nGraph: (s / snow)\nSecond:" in tiny_tokenizer.decode(tokens.ids[0])
    frame = tokenize_answers(tiny_tokenizer, [render(TWO, dict.fromkeys(PARTS, ""))], [" yes"], 10_000)
    with pytest.raises(PromptError, match="leaves no room for its 3 texts: the prompt alone takes"):
        tokenize_answers(tiny_tokenizer, [render(TWO, PARTS)], [" yes"], len(frame.ids[0]) + 2)


def test_an_answer_without_a_prompt_has_a_token_before_it(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize_answers(tiny_tokenizer, [render("", {})], ["Snow"], 50)
    assert tokens.spans == [(1, len(tokens.ids[0]))]
    assert tokens.ids[0] == tiny_tokenizer("Snow").input_ids
    with pytest.raises(PromptError, match="has no tokens"):
        tokenize_answers(tiny_tokenizer, [render("Say", {})], [""], 50)
