"""Planted scorers: the arm whose side information carries the label wins, its cause is found, and noise wins not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bellm import BellmError
from bellm.augment.arm_comparison import ArmComparison, compare_arms
from bellm.augment.arm_names import ArmName, parse_arms
from bellm.augment.arms import ArmSources, arm_prompts, content_free_prompts, drop_words, fixed_shots, nearest_items
from bellm.augment.task_prompts import TASK_PROMPTS
from bellm.augment.tasks import LabeledTask
from bellm.data import Graphs, LabeledTexts
from bellm.prompts import Rendered
from bellm.report.statistics import Difference

WORDS = ["heron", "water", "bread", "street", "train", "snow", "bank", "fish", "kitchen", "mat"]


def texts_of(number: int, seed: int, first: str) -> LabeledTexts:
    draw = np.random.default_rng(seed)
    columns = tuple(
        f"{first} {row} " + " ".join(draw.choice(WORDS, size=draw.integers(2, 12))) for row in range(number)
    )
    return LabeledTexts(first, (columns,), draw.integers(2, size=number))


def planted_task(number: int = 120, seed: int = 0) -> LabeledTask:
    train, test = texts_of(60, seed + 1, "Trained"), texts_of(number, seed, "Item")
    return LabeledTask("planted", TASK_PROMPTS["sentiment"], train, test)


def confident(labels: np.ndarray, confidence: np.ndarray | float = 0.8) -> np.ndarray:
    """Probabilities that give a label a confidence."""
    first = np.where(labels == 0, confidence, 1 - np.asarray(confidence))
    return np.column_stack([first, 1 - first])


Rule = Callable[[str, str], float]
"""How far an arm's prompt speaks for the second label, in nats."""


def scorer(rule: Rule, seed: int = 0) -> Callable[[str, Sequence[Rendered]], np.ndarray]:
    """Scores of a rule, with noise that depends on the prompt alone."""

    def score(name: str, prompts: Sequence[Rendered]) -> np.ndarray:
        rows = []
        for prompt in prompts:
            noise = np.random.default_rng([seed, *prompt.text.encode()]).normal()
            second = rule(name, prompt.text) + noise
            rows.append([0.0, second])
        return np.array(rows)

    return score


def compare(
    task: LabeledTask, arms: Sequence[ArmName], rule: Rule, sources: ArmSources, **options: Any
) -> ArmComparison:
    return compare_arms(task, arms, sources, scorer(rule), resamples=1000, **options)


def noisy_sources(task: LabeledTask, seed: int = 5) -> ArmSources:
    """Receipts, graphs and neighbors that know nothing of the labels."""
    draw = np.random.default_rng(seed)
    count, learned = len(task.test.labels_N), len(task.train.labels_N)
    graphs = {
        " ".join(text.split()): f"({draw.choice(WORDS)} :mod ({draw.choice(WORDS)}))"
        for text in (*task.test.columns[0], *task.train.columns[0])
    }
    return ArmSources(
        introduction="Use the prediction.",
        train_probabilities_NK=confident(draw.integers(2, size=learned)),
        test_probabilities_MK=confident(draw.integers(2, size=count), draw.uniform(0.5, 1, size=count)),
        graphs=Graphs(graphs, "planted"),
        neighbors_MR=draw.integers(learned, size=(count, 3)),
    )


def test_a_receipt_that_carries_the_label_wins_and_its_rightness_is_the_cause() -> None:
    task = planted_task()
    right = np.random.default_rng(2).random(120) < 0.85
    said = np.where(right, task.test.labels_N, 1 - task.test.labels_N)
    confidence = np.random.default_rng(3).uniform(0.55, 1, size=120)
    sources = replace(noisy_sources(task), test_probabilities_MK=confident(said, confidence))

    def rule(name: str, text: str) -> float:
        last = text.rpartition("Model's Prediction: ")[2] if "Model's Prediction" in text else ""
        return 3.0 if last.startswith("positive") else -3.0 if last else 0.0

    found = compare(task, ["receipt", "hint"], rule, sources)
    receipt, hint = found.arms["receipt"], found.arms["hint"]
    assert receipt.to_plain
    assert receipt.to_plain.low > 15
    assert receipt.to_plain.p_value < 0.01
    assert hint.to_plain
    assert hint.to_plain.p_value > 0.05
    assert found.helpfulness["receipt"].found[0] == "receipt is right"
    assert not found.helpfulness["hint"].found
    assert all(each.follows > 0.9 for each in found.by_confidence)
    assert sum(each.n for each in found.by_confidence) == 120
    assert {item.label for item in found.helped["receipt"]} <= {"negative", "positive"}
    assert all(item.with_arm < item.plain for item in found.hurt["receipt"])


def test_graphs_that_carry_the_label_win_where_there_are_graphs_and_the_curve_falls() -> None:
    task = planted_task()
    labels = dict(zip(task.test.columns[0], task.test.labels_N, strict=True))
    some = list(labels)[::2]
    graphs = {text: f"(say :ARG1 ({'bright' if labels[text] else 'dark'}) :mod (a) :mod (b))" for text in some}
    sources = replace(noisy_sources(task), graphs=Graphs(graphs, "planted"))

    def rule(name: str, text: str) -> float:
        item = text.rpartition("AMR:")[2]
        return 4.0 * (("bright" in item) - ("dark" in item)) if "AMR:" in text else 0.0

    found = compare(task, ["amr", "sp-input"], rule, sources, ablation=True)
    arm = found.arms["amr"]
    assert arm.to_plain
    assert arm.to_plain.low > 5
    assert set(found.helpfulness["amr"].found) == {"words of the graph (log)"}  # All graphs are of one size here.
    curve = {(each.part, each.share): each.score.value for each in found.ablation}
    assert curve["amr", 1.0] == curve["text", 1.0] == pytest.approx(arm.score.value)
    assert curve["amr", 0.0] < curve["amr", 0.5] < curve["amr", 1.0]
    assert curve["text", 0.0] > curve["amr", 0.0] + 10  # The label is in the graph.


def test_demonstrations_that_carry_the_label_win_and_their_class_is_the_cause() -> None:
    task = planted_task()
    draw = np.random.default_rng(0)
    by_class = [np.flatnonzero(task.train.labels_N == label) for label in (0, 1)]
    share = draw.integers(4, size=120)
    near = np.array(
        [
            [*draw.choice(by_class[label], size=count), *draw.choice(by_class[1 - label], size=3 - count)]
            for label, count in zip(task.test.labels_N, share, strict=True)
        ]
    )
    sources = replace(noisy_sources(task), neighbors_MR=near)

    def rule(name: str, text: str) -> float:
        return 1.5 * (text.count("Sentiment: positive\n") - text.count("Sentiment: negative\n"))

    found = compare(task, ["retrieval"], rule, sources)
    assert found.helpfulness["retrieval"].found == ("neighbors of its class",)
    effect = found.helpfulness["retrieval"].effects["neighbors of its class"]
    assert effect.low > 10


@pytest.mark.slow
def test_noise_wins_rarely() -> None:
    """Of 60 comparisons of five arms of noise, about 5 % have an arm that differs from the plain prompt."""
    alarms = causes = 0
    arms: tuple[ArmName, ...] = ("hint", "amr", "sp-input", "receipt", "retrieval")
    for seed in range(60):
        task = planted_task(80, seed=100 * seed)
        found = compare_arms(task, arms, noisy_sources(task, seed), scorer(lambda *_: 0.0, seed), resamples=500)
        compared = [found.arms[name].to_plain for name in arms]
        alarms += any(each and each.p_value < 0.05 for each in compared)
        causes += sum(bool(found.helpfulness[name].found) for name in arms)
    assert alarms <= 9  # 5 % of 60 are 3; 9 or fewer in 99.7 % of such runs.
    assert causes <= 30  # Of 300.


def test_calibration_takes_a_bias_away() -> None:
    task = planted_task()
    mood = {text: 1.5 * label - 0.75 for text, label in zip(task.test.columns[0], task.test.labels_N, strict=True)}

    def rule(name: str, text: str) -> float:
        item = text.rpartition('Sentence: "')[2].partition('"')[0]
        return 5.0 + 2 * mood.get(item, 0.0)

    accuracies = {
        kind: compare(task, ["hint"], rule, noisy_sources(task), calibration=kind).arms["plain"]
        for kind in ("none", "contextual", "batch")
    }
    assert accuracies["none"].most_frequent == ("positive", 1.0)
    assert accuracies["contextual"].score.value > 75
    assert accuracies["batch"].score.value > 75


def test_arms_differ_from_the_plain_prompt_by_their_side_information_alone() -> None:
    task = planted_task(3)
    sources = noisy_sources(task)
    plain = arm_prompts("plain", task, sources)
    receipts = arm_prompts("receipt", task, sources)
    assert "Model's Prediction" not in plain[0].text
    without = receipts[0].text.replace(" Use the prediction.", "")
    without = "\n".join(line for line in without.split("\n") if not line.startswith("Model's"))
    assert without == plain[0].text
    near = arm_prompts("retrieval", task, sources)
    assert near[0].text.count("Sentence: ") == 4
    shown = arm_prompts("receipt", task, replace(sources, shots=(0, 1)))
    assert shown[0].text.count("Model's Prediction: ") == 3
    assert len(content_free_prompts("retrieval", task, sources)) == 3
    [free] = content_free_prompts("receipt", task, sources)
    assert [each.text.count("Model's Prediction") for each in free] == [0, 0]
    passages = arm_prompts("retrieval", task, replace(sources, passages=[("One.", "Two.")] * 3))
    assert "\nPassage: One.\nPassage: Two.\nSentence: " in passages[0].text


def test_neighbors_are_those_of_the_highest_cosine_the_nearest_last() -> None:
    train = np.array([[0, 1], [2, 0], [0.9, 0.1]], dtype=np.float32)
    assert nearest_items(train, np.array([[1, 0], [0, 3]], dtype=np.float32), 2).tolist() == [[2, 1], [2, 0]]


def test_f1_is_that_of_scikit_learn_and_paired() -> None:
    for name, number in (("sentiment", 2), ("question", 6), ("paraphrase", 2)):
        prompt, draw = TASK_PROMPTS[name], np.random.default_rng(number)
        labels, answers = draw.integers(min(number, 4), size=(2, 40))  # Two classes of questions never come.
        columns = tuple(tuple(f"{side} {row}" for row in range(40)) for side in range(1 + prompt.is_pair))
        train = LabeledTexts("a", tuple(tuple(f"{text}!" for text in each) for each in columns), labels)
        task = LabeledTask(name, prompt, train, LabeledTexts("b", columns, labels))
        chances = np.eye(number)[answers]
        sources = ArmSources(test_probabilities_MK=np.eye(number)[labels])
        found = compare_arms(task, ["hint"], sources, lambda *_, chances=chances: np.log(chances + 1e-9), resamples=200)
        average = "binary" if prompt.is_pair else "macro"
        wanted = 100 * f1_score(labels, answers, average=average)
        plain, probe = found.arms["plain"], found.arms["probe"]
        assert plain.f1.value == pytest.approx(wanted)
        assert plain.f1.low < wanted < plain.f1.high
        assert probe.f1.value == 100
        assert probe.f1_to_plain
        assert probe.f1_to_plain.value == pytest.approx(100 - wanted)
        assert found.arms["hint"].f1_to_plain == Difference(0.0, 0.0, 0.0, 1.0)


def test_shots_are_of_all_classes_and_words_are_dropped_to_the_word() -> None:
    train = LabeledTexts("a", (tuple("abcdefgh"),), np.array([0, 0, 0, 0, 0, 1, 1, 2]))
    rows = fixed_shots(train, 6, 0)
    assert sorted(train.labels_N[list(rows)].tolist()) == [0, 0, 0, 1, 1, 2]
    assert rows == fixed_shots(train, 6, 0) != fixed_shots(train, 6, 1)
    with pytest.raises(BellmError, match="shots=9 is more than the 8"):
        fixed_shots(train, 9, 0)
    words = " ".join(map(str, range(17)))
    for share in (0, 0.25, 0.5, 0.75, 1):
        kept = [int(word) for word in drop_words(words, share, 3).split()]
        assert len(kept) == round(share * 17)
        assert kept == sorted(kept)


def test_names_of_arms() -> None:
    assert parse_arms("hint, amr,hint") == ("hint", "amr")
    for given, said in (("hnt", "Did you mean hint"), ("", "'' is no side information"), ([], "No side information")):
        with pytest.raises(BellmError, match=said):
            parse_arms(given)
