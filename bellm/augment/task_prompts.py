"""Prompts of tasks, with and without side information, as the papers spell them.

SENSE (arXiv 2409.14469), AMRCoT (arXiv 2405.01502) and SuperContext (arXiv 2312.15918) let the model write, and read
its answer. Here the model writes nothing: label words are scored where the answer stands, so that prompts end there.
What AMRCoT asks to explain first stays in its prompt, and `Answer:` follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bellm.prompts import Rendered, join_rendered, render

SP_INPUT = "Semantic parsing result: {amr}\n"
"""SENSE's rival SP-Input: what a parser gives, behind the text."""

SP_INPUT_PAIR = "Semantic parsing result 1: {amr}\nSemantic parsing result 2: {amr_b}\n"

SP_OUTPUT_HINT = "Please first give the semantic parsing result of the sentence, and then the answer."
"""SENSE's rival SP-Output: the model writes a parse first, which then stands behind the text."""

RECEIPT_INTRODUCTION = (
    "Use the prediction from the pre-trained model ({size}) fine-tuned on a {domain} dataset as a reference to aid "
    "your judgment."
)
"""SuperContext's instruction; `size` and `domain` are filled in, as in "334M Parameters" and "sentiment analysis"."""

RECEIPT = "Model's Prediction: {label}\nModel's Confidence: {confidence:.3g}\n"

PASSAGE = "Passage: {passage}\n"


@dataclass(frozen=True)
class TaskPrompt:
    """The words of a task: an instruction, the item with its texts, and where the answer stands."""

    instruction: str
    item: str
    """With slots `{text}`, and `{text_b}` for pairs; ends with a new line."""
    answer: str
    """What stands before the label word."""
    words: tuple[str, ...]
    """A word for each class, in the order of the classes."""
    domain: str = "text classification"
    """What a data set of this kind is called in a receipt."""
    with_graphs: Mapping[str, str] = field(default_factory=dict)
    """Instruction, item and answer where AMR graphs stand beside the texts."""

    @property
    def is_pair(self) -> bool:
        """Whether an item has two texts."""
        return "{text_b}" in self.item

    def beside_graphs(self) -> "TaskPrompt":
        """The same task with slots `{amr}`, and `{amr_b}` for pairs."""
        instruction, item, answer = (self.with_graphs[name] for name in ("instruction", "item", "answer"))
        return replace(self, instruction=instruction, item=item, answer=answer)


@dataclass(frozen=True)
class SideInformation:
    """What stands in a prompt besides the texts of one item."""

    hint: str = ""
    """Behind the instruction."""
    receipt: str = ""
    """Behind the texts."""
    passages: tuple[str, ...] = ()
    """Before the texts."""
    graphs: tuple[str, ...] = ()
    """AMR graphs, one for each text."""
    parses: bool = False
    """Whether the graphs stand behind the texts as results of a parser (SP-Input), not as AMRCoT has them."""


def make_prompt(
    task: TaskPrompt,
    texts: Sequence[str],
    side: SideInformation | None = None,
    demonstrations: Sequence[tuple[Sequence[str], SideInformation, int]] = (),
) -> Rendered:
    """The prompt of one item, which ends where the label word is to stand.

    Args:
        task: Its words.
        texts: Of the item, one or two.
        side: What stands beside them.
        demonstrations: Texts, side information and class of solved items, the last nearest to the item.
    """
    side = side or SideInformation()
    words = task.beside_graphs() if side.graphs and not side.parses else task
    shown = [
        join_rendered(
            [_item(words, other, beside), Rendered(f"{words.answer} {words.words[label]}\n\n")],
        )
        for other, beside, label in demonstrations
    ]
    template = words.instruction + (" {hint}" if side.hint else "") + "\n"
    head = render(template, {"hint": side.hint} if side.hint else {})
    passages = [render(PASSAGE, {"passage": each}) for each in side.passages]
    return join_rendered([head, *shown, *passages, _item(words, texts, side), Rendered(words.answer)])


def _item(words: TaskPrompt, texts: Sequence[str], side: SideInformation) -> Rendered:
    template = words.item
    if side.parses:
        template += SP_INPUT_PAIR if words.is_pair else SP_INPUT
    values: dict[str, str | Rendered] = dict(zip(("text", "text_b"), texts, strict=False))
    values |= dict(zip(("amr", "amr_b"), side.graphs, strict=False))
    if side.receipt:
        template, values["receipt"] = f"{template}{{receipt}}", side.receipt
    return render(template, values)


def write_receipt(label: str, confidence: float) -> str:
    """A small model's verdict, as SuperContext shows it.

    >>> print(write_receipt("Positive", 0.967), end="")
    Model's Prediction: Positive
    Model's Confidence: 0.967
    """
    return RECEIPT.format(label=label, confidence=confidence)


def receipt_introduction(num_parameters: int, domain: str) -> str:
    """SuperContext's instruction for a model of so many parameters.

    >>> receipt_introduction(334_000_000, "sentiment analysis")[:72]
    'Use the prediction from the pre-trained model (334M Parameters) fine-tun'
    """
    size = f"{num_parameters / 1e6:.0f}M Parameters" if num_parameters else "of unknown size"
    return RECEIPT_INTRODUCTION.format(size=size, domain=domain)


def _amr_of_texts(instruction: str, item: str, answer: str, *, pair: bool) -> dict[str, str]:
    """A task beside graphs, in the manner of AMRCoT."""
    given = (
        "two texts and the abstract meaning representation (AMR) of each"
        if pair
        else ("a text and its abstract meaning representation (AMR)")
    )
    graphs = "AMR 1:\n{amr}\nAMR 2:\n{amr_b}\n" if pair else "AMR:\n{amr}\n"
    return {
        "instruction": f"You are given {given}. {instruction}",
        "item": item + graphs,
        "answer": f"You can refer to the provided AMR if it helps you.\n{answer}",
    }


_SENTIMENT = TaskPrompt(
    "Decide whether the sentiment of the sentence is negative or positive.",
    'Sentence: "{text}"\n',
    "Sentiment:",
    ("negative", "positive"),
    "sentiment analysis",
    _amr_of_texts(
        "Decide whether the sentiment of the text is negative or positive.", "Text: {text}\n", "Sentiment:", pair=False
    ),
)

_PARAPHRASE = TaskPrompt(
    "Paraphrase Detection: Determine if the following two sentences are exact paraphrases (rewritten versions with the "
    "same meaning) of each other.",
    "Sentence 1:{text}\nSentence 2:{text_b}\n",
    "Answer [Yes/No] and then provide a brief explanation of why you think the sentences are paraphrases or not.\n"
    "Paraphrase:",
    ("No", "Yes"),
    "paraphrase identification",
    {
        "instruction": "Paraphrase Detection: You are given two sentences and the abstract meaning representation "
        "(AMR) of each.",
        "item": "Sentence 1:{text}\nAMR 1:\n{amr}\nSentence 2:{text_b}\nAMR 2:\n{amr_b}\n",
        "answer": "Explain what are the commonalities and differences between the two AMRs. Then determine if the two "
        "sentences are exact paraphrases (rewritten versions with the same meaning) of each other and provide a brief "
        "explanation of why you think the sentences are paraphrases or not. Use the following format: "
        "Answer: [Yes/No]\nAnswer:",
    },
)

_QUESTION = TaskPrompt(
    "Say what kind of answer the question asks for: abbreviation, description, entity, person, location or number.",
    "Question: {text}\n",
    "Kind:",
    ("abbreviation", "description", "entity", "person", "location", "number"),
    "question classification",
)

_ENTAILMENT = TaskPrompt(
    "Say how the second sentence relates to the first: contradiction, entailment or neutral.",
    "Sentence 1: {text}\nSentence 2: {text_b}\n",
    "Relation:",
    ("contradiction", "entailment", "neutral"),
    "natural language inference",
)

_CLAIM = TaskPrompt(
    "Decide whether the scientific claim is false or true.",
    "Claim: {text}\n",
    "Answer:",
    ("false", "true"),
    "claim verification",
)

TRANSLATION = TaskPrompt(
    "Please translate the following text from English to German.",
    "Text: {text}\n",
    "Translation:",
    (),
    "translation",
    {
        "instruction": "You are given a text and its abstract meaning representation (AMR).",
        "item": "Text: {text}\nAMR:\n{amr}\n",
        "answer": "Please translate the text from English to German. You can refer to the provided AMR if it helps you "
        "in creating the translation.\nTranslation:",
    },
)
"""AMRCoT's translation prompts: their answer is a text, whose likelihood `LabelScorer` gives among others."""


def _with_usual_graphs(task: TaskPrompt) -> TaskPrompt:
    if task.with_graphs:
        return task
    graphs = _amr_of_texts(task.instruction, task.item, task.answer, pair=task.is_pair)
    return replace(task, with_graphs=graphs)


TASK_PROMPTS = {
    name: _with_usual_graphs(task)
    for name, task in {
        "sentiment": _SENTIMENT,
        "paraphrase": _PARAPHRASE,
        "question": _QUESTION,
        "entailment": _ENTAILMENT,
        "claim": _CLAIM,
    }.items()
}


def own_task_prompt(label_names: Sequence[str], *, pair: bool) -> TaskPrompt:
    """Words for a task of a user's own: its labels are the words."""
    item = "Text 1: {text}\nText 2: {text_b}\n" if pair else "Text: {text}\n"
    labels = ", ".join(label_names)
    instruction = f"Choose the label of the {'two texts' if pair else 'text'} from: {labels}."
    return _with_usual_graphs(TaskPrompt(instruction, item, "Label:", tuple(label_names)))
