"""Golden renderings of every task's prompt, with each kind of side information."""

import pytest

from bellm.augment.task_prompts import (
    SP_OUTPUT_HINT,
    TASK_PROMPTS,
    TRANSLATION,
    SideInformation,
    make_prompt,
    own_task_prompt,
    receipt_introduction,
    write_receipt,
)
from bellm.prompts import SENSE_HINT

ONE, TWO = ("Snow fell.",), ("Snow fell.", "It snowed.")
GRAPH, GRAPHS = ("(fall-01 :ARG1 (snow))",), ("(fall-01 :ARG1 (snow))", "(snow-01)")

PLAIN = {
    "sentiment": (
        'Decide whether the sentiment of the sentence is negative or positive.\nSentence: "Snow fell."\nSentiment:'
    ),
    "paraphrase": (
        "Paraphrase Detection: Determine if the following two sentences are exact paraphrases (rewritten versions with "
        "the same meaning) of each other.\n"
        "Sentence 1:Snow fell.\n"
        "Sentence 2:It snowed.\n"
        "Answer [Yes/No] and then provide a brief explanation of why you think the sentences are paraphrases or not.\n"
        "Paraphrase:"
    ),
    "question": (
        "Say what kind of answer the question asks for: abbreviation, description, entity, person, location or "
        "number.\nQuestion: Snow fell.\n"
        "Kind:"
    ),
    "entailment": (
        "Say how the second sentence relates to the first: contradiction, entailment or neutral.\n"
        "Sentence 1: Snow fell.\n"
        "Sentence 2: It snowed.\n"
        "Relation:"
    ),
    "claim": "Decide whether the scientific claim is false or true.\nClaim: Snow fell.\nAnswer:",
}

BESIDE_GRAPHS = {
    "sentiment": (
        "You are given a text and its abstract meaning representation (AMR). Decide whether the sentiment of the text "
        "is negative or positive.\n"
        "Text: Snow fell.\n"
        "AMR:\n(fall-01 :ARG1 (snow))\n"
        "You can refer to the provided AMR if it helps you.\n"
        "Sentiment:"
    ),
    "paraphrase": (
        "Paraphrase Detection: You are given two sentences and the abstract meaning representation (AMR) of each.\n"
        "Sentence 1:Snow fell.\n"
        "AMR 1:\n(fall-01 :ARG1 (snow))\n"
        "Sentence 2:It snowed.\n"
        "AMR 2:\n(snow-01)\n"
        "Explain what are the commonalities and differences between the two AMRs. Then determine if the two sentences "
        "are exact paraphrases (rewritten versions with the same meaning) of each other and provide a brief "
        "explanation of why you think the sentences are paraphrases or not. Use the following format: "
        "Answer: [Yes/No]\nAnswer:"
    ),
    "question": (
        "You are given a text and its abstract meaning representation (AMR). Say what kind of answer the question asks "
        "for: abbreviation, description, entity, person, location or number.\n"
        "Question: Snow fell.\n"
        "AMR:\n(fall-01 :ARG1 (snow))\n"
        "You can refer to the provided AMR if it helps you.\n"
        "Kind:"
    ),
    "entailment": (
        "You are given two texts and the abstract meaning representation (AMR) of each. Say how the second sentence "
        "relates to the first: contradiction, entailment or neutral.\n"
        "Sentence 1: Snow fell.\n"
        "Sentence 2: It snowed.\n"
        "AMR 1:\n(fall-01 :ARG1 (snow))\nAMR 2:\n(snow-01)\n"
        "You can refer to the provided AMR if it helps you.\n"
        "Relation:"
    ),
    "claim": (
        "You are given a text and its abstract meaning representation (AMR). Decide whether the scientific claim is "
        "false or true.\n"
        "Claim: Snow fell.\n"
        "AMR:\n(fall-01 :ARG1 (snow))\n"
        "You can refer to the provided AMR if it helps you.\n"
        "Answer:"
    ),
}


def test_every_task_has_its_golden_renderings() -> None:
    assert set(PLAIN) == set(BESIDE_GRAPHS) == set(TASK_PROMPTS)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_and_beside_graphs(name: str) -> None:
    task = TASK_PROMPTS[name]
    texts, graphs = (TWO, GRAPHS) if task.is_pair else (ONE, GRAPH)
    assert make_prompt(task, texts).text == PLAIN[name]
    beside = make_prompt(task, texts, SideInformation(graphs=graphs))
    assert beside.text == BESIDE_GRAPHS[name]
    assert sorted(beside.text[start:end] for start, end in beside.long) == sorted([*texts, *graphs])


def test_the_hint_of_sense_stands_behind_the_instruction() -> None:
    assert make_prompt(TASK_PROMPTS["sentiment"], ONE, SideInformation(hint=SENSE_HINT)).text == (
        "Decide whether the sentiment of the sentence is negative or positive. Please use semantic parsing result "
        "which can enhance comprehension of the sentence's structure and semantics.\n"
        'Sentence: "Snow fell."\nSentiment:'
    )


def test_its_rivals_show_a_parse() -> None:
    side = SideInformation(graphs=GRAPH, parses=True)
    assert make_prompt(TASK_PROMPTS["sentiment"], ONE, side).text == (
        "Decide whether the sentiment of the sentence is negative or positive.\n"
        'Sentence: "Snow fell."\nSemantic parsing result: (fall-01 :ARG1 (snow))\nSentiment:'
    )
    side = SideInformation(hint=SP_OUTPUT_HINT, graphs=GRAPHS, parses=True)
    assert make_prompt(TASK_PROMPTS["entailment"], TWO, side).text == (
        "Say how the second sentence relates to the first: contradiction, entailment or neutral. Please first give the "
        "semantic parsing result of the sentence, and then the answer.\n"
        "Sentence 1: Snow fell.\nSentence 2: It snowed.\n"
        "Semantic parsing result 1: (fall-01 :ARG1 (snow))\nSemantic parsing result 2: (snow-01)\nRelation:"
    )


def test_a_receipt_is_spelled_as_in_the_paper() -> None:
    introduction = receipt_introduction(334_000_000, "sentiment analysis")
    assert introduction == (
        "Use the prediction from the pre-trained model (334M Parameters) fine-tuned on a sentiment analysis dataset as "
        "a reference to aid your judgment."
    )
    side = SideInformation(hint=introduction, receipt=write_receipt("Positive", 0.967))
    assert make_prompt(TASK_PROMPTS["sentiment"], ("Rich in funny moments.",), side).text.partition("\n")[2] == (
        "Sentence: \"Rich in funny moments.\"\nModel's Prediction: Positive\nModel's Confidence: 0.967\nSentiment:"
    )


def test_demonstrations_and_passages_stand_before_the_item() -> None:
    task = TASK_PROMPTS["claim"]
    shown = [(("Ice melts.",), SideInformation(receipt=write_receipt("true", 0.9)), 1)]
    side = SideInformation(passages=("Snow is ice.", "It is cold."), receipt=write_receipt("false", 0.5))
    prompt = make_prompt(task, ONE, side, shown)
    assert prompt.text == (
        "Decide whether the scientific claim is false or true.\n"
        "Claim: Ice melts.\nModel's Prediction: true\nModel's Confidence: 0.9\nAnswer: true\n\n"
        "Passage: Snow is ice.\nPassage: It is cold.\n"
        "Claim: Snow fell.\nModel's Prediction: false\nModel's Confidence: 0.5\nAnswer:"
    )
    assert [prompt.text[start:end] for start, end in prompt.long] == [
        "Ice melts.",
        "Snow is ice.",
        "It is cold.",
        "Snow fell.",
    ]


def test_translation_is_that_of_amrcot() -> None:
    assert make_prompt(TRANSLATION, ONE).text == (
        "Please translate the following text from English to German.\nText: Snow fell.\nTranslation:"
    )
    assert make_prompt(TRANSLATION, ONE, SideInformation(graphs=GRAPH)).text == (
        "You are given a text and its abstract meaning representation (AMR).\nText: Snow fell.\nAMR:\n"
        "(fall-01 :ARG1 (snow))\nPlease translate the text from English to German. You can refer to the provided AMR "
        "if it helps you in creating the translation.\nTranslation:"
    )


def test_a_task_of_ones_own_has_its_labels_as_words() -> None:
    task = own_task_prompt(["bird", "weather"], pair=False)
    assert make_prompt(task, ONE).text == "Choose the label of the text from: bird, weather.\nText: Snow fell.\nLabel:"
    pair = own_task_prompt(["no", "yes"], pair=True)
    assert make_prompt(pair, TWO, SideInformation(graphs=GRAPHS)).text == (
        "You are given two texts and the abstract meaning representation (AMR) of each. Choose the label of the two "
        "texts from: no, yes.\nText 1: Snow fell.\nText 2: It snowed.\nAMR 1:\n(fall-01 :ARG1 (snow))\nAMR 2:\n"
        "(snow-01)\nYou can refer to the provided AMR if it helps you.\nLabel:"
    )
