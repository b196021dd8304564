"""Golden renderings of the prompts, and what is refused."""

from dataclasses import replace

import pytest

from bellm.config import EncoderConfig
from bellm.errors import PromptError
from bellm.prompts import PROMPTS, SLOT, Prompt, Rendered, join_rendered, render, resolve_prompt

GOLDEN = {
    "raw": "Snow fell.",
    "bellm": 'The representative word for sentence Snow fell. is:"',
    "prompteol": 'This sentence : "Snow fell." means in one word:"',
    "angle": 'Summarize sentence "Snow fell." in one word:"',
    "pretended-cot": 'After thinking step by step , this sentence : "Snow fell." means in one word:"',
    "knowledge": (
        "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
        "additional but less central details. With this in mind , this sentence : "
        '"Snow fell." means in one word:"'
    ),
    "meta-topic": 'A librarian sorts sentences by their subject. The subject of this sentence : "Snow fell." is:"',
    "meta-mood": 'A listener hears the feeling behind a sentence. The mood of this sentence : "Snow fell." is:"',
    "meta-fact": 'A reporter notes who did what, and where. The event of this sentence : "Snow fell." is:"',
    "meta-sense": 'A teacher asks for the same with other words. The sense of this sentence : "Snow fell." is:"',
    "echo": "Rewrite the following sentence: Snow fell.\nThe rewritten sentence: Snow fell.",
    "instruct": "Snow fell.",
}


def test_every_prompt_has_a_golden_rendering() -> None:
    assert set(GOLDEN) == set(PROMPTS)


@pytest.mark.parametrize("name", GOLDEN)
def test_rendering(name: str) -> None:
    assert resolve_prompt(name).template.replace(SLOT, "Snow fell.") == GOLDEN[name]


def test_instructions_stand_before_queries_only() -> None:
    prompt = resolve_prompt("instruct:Find the claim")
    assert prompt.query == "Instruct: Find the claim\nQuery: {text}"
    assert prompt.document is None
    assert PROMPTS["instruct"].query == (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: {text}"
    )


def test_a_template_of_ones_own_keeps_its_braces() -> None:
    assert resolve_prompt('{"json": "{text}"}') == Prompt("custom", '{"json": "{text}"}')


@pytest.mark.parametrize("template", ["no slot", "{text} and {text} and {text}"])
def test_a_template_needs_a_slot_or_two(template: str) -> None:
    with pytest.raises(PromptError, match="it needs one"):
        Prompt("custom", template)


def test_an_unknown_prompt_lists_the_known_ones() -> None:
    with pytest.raises(PromptError) as caught:
        resolve_prompt("promteol")
    assert all(name in str(caught.value) for name in PROMPTS)


# Hints


def test_the_hint_of_sense_stands_before_the_prompt_of_every_input_type() -> None:
    sense = (
        "Please use semantic parsing result which can enhance comprehension of the sentence's structure and semantics."
    )
    config = EncoderConfig(prompt=PROMPTS["prompteol"], hint="sense", pooling="last", max_tokens=99)
    assert config.template_for("text") == f'{sense} This sentence : "{{text}}" means in one word:"'
    instruct = replace(config, prompt=resolve_prompt("instruct:Find the claim"))
    assert instruct.template_for("query") == f"{sense} Instruct: Find the claim\nQuery: {{text}}"
    assert instruct.template_for("document") == f"{sense} {{text}}"
    assert replace(config, hint="none").template_for("text") == PROMPTS["prompteol"].template
    own = replace(config, hint="Mind the negations.")
    assert own.template_for("text").startswith('Mind the negations. This sentence : "')
    assert EncoderConfig.from_dict(own.to_dict()) == own
    assert (own.to_dict()["hint"], replace(own, hint="").to_dict()["hint"]) == ("Mind the negations.", "none")


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("sens", r"hint='sens' is neither none, sense nor a sentence of your own\. Did you mean sense\?"),
        (" ", "nor a sentence"),
        (5, "hint=5 is neither"),
        ("Mind {text} well.", r"holds \{text\}"),
    ],
)
def test_a_hint_that_is_none_is_refused(hint: str, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        EncoderConfig(prompt=PROMPTS["raw"], hint=hint, pooling="last", max_tokens=99)


# Several slots


def test_slots_are_filled_once_and_braces_of_values_are_text() -> None:
    found = render("{hint} {x} {text}|{text_b}", {"hint": "Think.", "text": "{text_b}{hint}", "text_b": ""})
    assert found.text == "Think. {x} {text_b}{hint}|"
    assert [found.text[start:end] for start, end in found.long] == ["{text_b}{hint}"]


def test_what_is_rendered_keeps_its_own_frame() -> None:
    demonstration = join_rendered([render("Q: {text}", {"text": "Why?"}), Rendered(" A: so\n")])
    found = render("{demonstrations}Q: {text}", {"demonstrations": demonstration, "text": "How?"})
    assert found.text == "Q: Why? A: so\nQ: How?"
    assert [found.text[start:end] for start, end in found.long] == ["Why?", "How?"]
    assert render("{receipt}", {"receipt": "Yes."}).long == ()


@pytest.mark.parametrize(
    ("template", "values", "lost"),
    [("{text} {amr}", {"text": "a"}, "{amr}"), ("{text}", {"text": "a", "receipt": "b"}, "{receipt}")],
)
def test_a_slot_without_a_value_and_a_value_without_a_slot_are_refused(
    template: str, values: dict[str, str], lost: str
) -> None:
    with pytest.raises(PromptError, match=f"do not fit: {lost} is in one of them alone"):
        render(template, values)
