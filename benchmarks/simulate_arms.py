"""How often arms of noise win, and how often arms that help are found, counted in tasks where the truth is planted.

`compare_arms` compares the plain prompt with five arms as `bellm augment` does; a planted scorer stands for the model.
An arm of noise is right as often as the plain prompt, on items of its own. No model is loaded.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest, norm
from tqdm.auto import tqdm

from bellm.augment.arm_comparison import ArmComparison, compare_arms
from bellm.augment.arm_names import ArmName
from bellm.augment.arms import ArmSources
from bellm.augment.task_prompts import TASK_PROMPTS
from bellm.augment.tasks import LabeledTask
from bellm.data import Graphs, LabeledTexts
from bellm.prompts import Rendered

ARMS: tuple[ArmName, ...] = ("hint", "amr", "sp-input", "receipt", "retrieval")
WORDS = ("heron", "water", "bread", "street", "train", "snow", "bank", "fish", "kitchen", "mat")
PLAIN_ACCURACY = 0.65
SHARED = 0.5  # Of the variance of an arm's scores, what it has in common with the plain prompt's.
GAINS = (0.05, 0.1, 0.15)
RESAMPLES = 1000


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 trials with 80 items")
    parser.add_argument("--trials", type=int, default=400, help="tasks of each row")
    parser.add_argument("--items", type=int, nargs="+", default=[80, 150, 400], help="test items of a task")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.items = 20, [80]
    table, rows = Table("items", "question", "aim", "found", "95 %"), []
    for number in options.items:
        counts: dict[str, int] = {}
        for trial in tqdm(range(options.trials), desc=f"{number} items", leave=False):
            for what, happened in simulate(number, trial).items():
                counts[what] = counts.get(what, 0) + happened
        for what, count in counts.items():
            trials = options.trials * (len(ARMS) if what == "a cause of an arm of noise" else 1)
            low, high = binomtest(count, trials).proportion_ci(method="wilson")
            aim = "" if what.startswith("one arm") else "5 %"
            table.add_row(
                str(number), what, aim, f"{100 * count / trials:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"
            )
            rows.append({"items": number, "question": what, "count": count, "trials": trials})
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def simulate(number: int, seed: int) -> dict[str, int]:
    """What is found in one task without any truth, and in tasks where the arm receipt helps."""
    noise = compare(number, seed, {})
    differences = [noise.arms[name].to_plain for name in ARMS]
    found = {
        "any of five arms of noise differs": int(any(each and each.p_value < 0.05 for each in differences)),
        "a cause of an arm of noise": sum(bool(noise.helpfulness[name].found) for name in ARMS),
    }
    for gain in GAINS:
        better = compare(number, seed, {"receipt": gain}).arms["receipt"].to_plain
        assert better
        found[f"one arm is better by {100 * gain:.0f} points"] = int(better.p_value < 0.05 and better.value > 0)
    return found


def compare(number: int, seed: int, gains: Mapping[str, float]) -> ArmComparison:
    """Arms of a task whose scorer is right as often as planted."""
    draw = np.random.default_rng([seed, number])
    train, test = texts(30, draw, "Trained"), texts(number, draw, "Item")
    task = LabeledTask("planted", TASK_PROMPTS["sentiment"], train, test)
    signs_M, common_M = 2 * test.labels_N - 1, draw.normal(size=number)

    def score(name: str, prompts: Sequence[Rendered]) -> NDArray[np.float64]:
        own_M = np.random.default_rng([seed, number, *name.encode()]).normal(size=number)
        noise_M = np.sqrt(SHARED) * common_M + np.sqrt(1 - SHARED) * own_M
        second_M = signs_M * norm.ppf(PLAIN_ACCURACY + gains.get(name, 0.0)) + noise_M
        assert len(prompts) == number
        return np.column_stack([np.zeros(number), second_M])

    return compare_arms(task, ARMS, sources(task, draw), score, resamples=RESAMPLES, seed=seed)


def texts(number: int, draw: Generator, first: str) -> LabeledTexts:
    """Sentences of random words, with random labels."""
    column = tuple(f"{first} {row} {' '.join(draw.choice(WORDS, size=draw.integers(2, 12)))}" for row in range(number))
    return LabeledTexts(first, (column,), draw.integers(2, size=number))


def sources(task: LabeledTask, draw: Generator) -> ArmSources:
    """Receipts, graphs and neighbors that know nothing of the labels."""
    number, num_trained = len(task.test.labels_N), len(task.train.labels_N)
    graphs = {text: f"({draw.choice(WORDS)} :mod ({draw.choice(WORDS)}))" for text in task.test.columns[0]}

    def chances(rows: int) -> NDArray[np.float64]:
        first = draw.uniform(size=rows)
        return np.column_stack([first, 1 - first])

    return ArmSources(
        introduction="Use the prediction.",
        train_probabilities_NK=chances(num_trained),
        test_probabilities_MK=chances(number),
        graphs=Graphs(graphs, "planted"),
        neighbors_MR=draw.integers(num_trained, size=(number, 3)),
    )


if __name__ == "__main__":
    main()
