"""Prompts: templates with slots, those with `{text}` slots for embedding, and those of published papers by name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from bellm.errors import PromptError, did_you_mean
from bellm.types import InputType

SLOT = "{text}"

SLOTS = {
    "text": True,
    "text_b": True,
    "amr": True,
    "amr_b": True,
    "passage": True,
    "hint": False,
    "receipt": False,
    "demonstrations": False,
}
"""Slots of templates that `render` fills, and whether what stands there may be shortened to fit the model."""

_SLOT = re.compile(rf"{{({'|'.join(SLOTS)})}}")


@dataclass(frozen=True)
class Rendered:
    """A template whose slots are filled."""

    text: str
    long: tuple[tuple[int, int], ...] = ()
    """First and past-the-last character of each part that may be shortened, in order; the rest is the frame."""

    def __str__(self) -> str:
        return self.text


def render(template: str, values: Mapping[str, str | Rendered]) -> Rendered:
    """Fill the slots of a template, see `SLOTS`; any other brace is literal, and so are all braces of values.

    What is itself rendered keeps its own frame: of demonstrations the texts may be shortened, their answers never.

    >>> render("{hint} Review: {text}", {"hint": "Think.", "text": "A {fine} film."})
    Rendered(text='Think. Review: A {fine} film.', long=((15, 29),))

    Raises:
        PromptError: A slot has no value, or a value has no slot.
    """
    named = set(_SLOT.findall(template))
    if named != set(values):
        lost = ", ".join(f"{{{name}}}" for name in sorted(named ^ set(values)))
        raise PromptError(
            f"The prompt {template[:60]!r} and the values for it do not fit: {lost} is in one of them alone."
        )
    parts = []
    for index, piece in enumerate(_SLOT.split(template)):
        value = values[piece] if index % 2 else piece
        if isinstance(value, str):
            value = Rendered(value, ((0, len(value)),) if index % 2 and SLOTS[piece] and value else ())
        parts.append(value)
    return join_rendered(parts)


def join_rendered(parts: Iterable[Rendered]) -> Rendered:
    """Put rendered texts one behind the other."""
    text, long = "", list[tuple[int, int]]()
    for part in parts:
        long += [(len(text) + start, len(text) + end) for start, end in part.long]
        text += part.text
    return Rendered(text, tuple(long))


@dataclass(frozen=True)
class Prompt:
    """Templates with a slot `{text}`, or two that read the text twice; any other brace is literal."""

    name: str
    template: str
    """What `encode` uses."""
    query: str | None = None
    """What `encode_query` uses; the template where None."""
    document: str | None = None
    """What `encode_document` uses; the template where None."""

    def template_for(self, input_type: InputType) -> str:
        """The template of an input type."""
        if input_type not in get_args(InputType):
            raise PromptError(f"input_type={input_type!r} is not one of {', '.join(get_args(InputType))}.")
        own = {"text": None, "query": self.query, "document": self.document}[input_type]
        return self.template if own is None else own

    def __post_init__(self) -> None:
        """Refuse a template without a slot, or with more than two."""
        for template in (self.template, self.query, self.document):
            if template is not None and template.count(SLOT) not in (1, 2):
                raise PromptError(
                    f"Prompt template {template!r} holds {template.count(SLOT)} {SLOT} slots; it needs one, or two "
                    "where the text is to be read twice."
                )

    @property
    def repeats(self) -> bool:
        """Whether the text stands twice in every template."""
        templates = (self.template, self.query, self.document)
        return all(template.count(SLOT) == 2 for template in templates if template is not None)


_TASK = "Given a web search query, retrieve relevant passages that answer the query"


def instruct_prompt(task: str = _TASK) -> Prompt:
    """Instruction style of E5-Mistral (arXiv 2401.00368): the task before a query, documents bare."""
    return Prompt("instruct", SLOT, query=f"Instruct: {task}\nQuery: {SLOT}")


META_PROMPTS = (
    Prompt("meta-topic", 'A librarian sorts sentences by their subject. The subject of this sentence : "{text}" is:"'),
    Prompt("meta-mood", 'A listener hears the feeling behind a sentence. The mood of this sentence : "{text}" is:"'),
    Prompt("meta-fact", 'A reporter notes who did what, and where. The event of this sentence : "{text}" is:"'),
    Prompt("meta-sense", 'A teacher asks for the same with other words. The sense of this sentence : "{text}" is:"'),
)
"""One question each after topic, mood, event and meaning, as MetaEOL asks (arXiv 2402.18458), in words of our own.

What stands before the text is the same for all texts: packed batches compute it once."""

PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt("raw", SLOT),
        # BeLLM, arXiv 2311.05296: no quotes around the text.
        Prompt("bellm", 'The representative word for sentence {text} is:"'),
        # PromptEOL, arXiv 2307.16645, as its code writes it.
        Prompt("prompteol", 'This sentence : "{text}" means in one word:"'),
        # AnglE, arXiv 2309.12871.
        Prompt("angle", 'Summarize sentence "{text}" in one word:"'),
        # Pretended chain of thought and knowledge enhancement, arXiv 2404.03921.
        Prompt("pretended-cot", 'After thinking step by step , this sentence : "{text}" means in one word:"'),
        Prompt(
            "knowledge",
            "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms "
            'provide additional but less central details. With this in mind , this sentence : "{text}" means in one '
            'word:"',
        ),
        *META_PROMPTS,
        # Echo embeddings, arXiv 2402.15449: the second time a causal model has seen the whole text.
        Prompt("echo", "Rewrite the following sentence: {text}\nThe rewritten sentence: {text}"),
        instruct_prompt(),
    )
}


SENSE_HINT = (
    "Please use semantic parsing result which can enhance comprehension of the sentence's structure and semantics."
)
"""The hint of SENSE (arXiv 2409.14469): nothing is parsed."""

HINTS = {"none": "", "sense": SENSE_HINT}


def resolve_hint(hint: str) -> str:
    """Turn the name of a hint into its sentence; a sentence of one's own stays.

    >>> resolve_hint("none"), resolve_hint("Mind the negations.")
    ('', 'Mind the negations.')

    Raises:
        PromptError: Neither a known name nor a sentence, or it holds the slot of the text.
    """
    is_name = isinstance(hint, str) and hint.isascii() and " " not in hint.strip()
    if not isinstance(hint, str) or (is_name and hint not in ("", *HINTS)):
        near = did_you_mean(str(hint), HINTS)
        raise PromptError(f"hint={hint!r} is neither {', '.join(HINTS)} nor a sentence of your own.{near}")
    if SLOT in hint:
        raise PromptError(f"hint={hint[:60]!r} holds {SLOT}: that is the prompt's. Write prompt=... instead.")
    return HINTS.get(hint, hint)


def resolve_prompt(prompt: str | Prompt) -> Prompt:
    """Turn a name, `instruct:TASK` or a template with a `{text}` slot into a Prompt.

    Raises:
        PromptError: Neither a known name nor a template with one slot.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if not isinstance(prompt, str):
        raise PromptError(f"prompt={prompt!r} is neither a name nor a template. Give one of these, or a bellm.Prompt.")
    if prompt in PROMPTS:
        return PROMPTS[prompt]
    if prompt.startswith("instruct:"):
        return instruct_prompt(prompt.removeprefix("instruct:").strip())
    if SLOT in prompt:
        return Prompt("custom", prompt)
    raise PromptError(
        f"Prompt {prompt!r} is not known.{did_you_mean(prompt, PROMPTS)} Give {', '.join(PROMPTS)}, instruct:TASK, "
        "chat, or a template of your own "
        f"with a {SLOT} slot, such as {prompt + SLOT!r}."
    )
