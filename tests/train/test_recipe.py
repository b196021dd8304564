"""What a recipe refuses, what it says of itself, and its learning rates."""

import json
import math
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bellm.errors import BellmError, SourceError
from bellm.prompts import Prompt
from bellm.train.embedded_batch import EmbeddedBatch
from bellm.train.objectives import GRL, AnglE, CoSENT, InfoNCE
from bellm.train.recipe import MNTP, FullFineTuning, LoRA, Recipe, Schedule, load_recipe


def score(_encoder: object) -> float:
    return 0.5


def quiet(batch: EmbeddedBatch) -> Any:
    return 0 * batch.anchors_BD.sum()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"batch_size": 0}, "batch_size=0 is too small: give at least 1."),
        ({"dev_every": 0}, "dev_every=0 is too small: give at least 1."),
        ({"max_steps": 0}, "max_steps=0 is too small: give at least 1."),
        ({"patience": 0, "dev": score}, "patience=0 is too small: give at least 1."),
        ({"patience": 3}, "patience counts dev scores: give dev too."),
        ({"epochs": 0}, "epochs=0 must be more than 0."),
        ({"epochs": math.inf}, "epochs=inf must be finite; max_steps ends a run early."),
        ({"learning_rate": math.inf}, "learning_rate=inf must be finite; max_steps ends a run early."),
        ({"epochs": float("nan")}, "epochs=nan must be more than 0."),
        ({"learning_rate": -1e-3}, "learning_rate=-0.001 must be more than 0."),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 must be more than 0."),
        ({"warmup": 1.5}, "warmup=1.5 is a share of the steps: give 0 to 1."),
        ({"warmup": -0.1}, "warmup=-0.1 is a share of the steps: give 0 to 1."),
        ({"seed": "42"}, "seed='42' is not of type int."),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(BellmError) as refusal:
        Recipe(**choices)
    assert str(refusal.value) == said


def test_a_recipe_says_all_of_itself_in_plain_values() -> None:
    recipe = Recipe(
        encoder_options={"prompt": Prompt("own", "{text}!"), "bidirectional": [2, 3], "max_tokens": 64},
        tuning=LoRA(targets=("q_proj",)),
        objective=GRL(contrastive=InfoNCE(dims=(8, 16))),
        mntp=MNTP(5),
        dev=score,
    )
    described = recipe.described()
    assert set(described) == {each.name for each in fields(Recipe)} - {"sharded", "graphs"}
    assert json.loads(json.dumps(described)) == described
    assert described["dev"] == "tests.train.test_recipe.score"
    assert "dims=(8, 16)" in described["objective"]
    assert described == replace(recipe).described()


@pytest.mark.parametrize(
    "change",
    [
        {"tuning": LoRA(rank=8)},
        {"tuning": FullFineTuning()},
        {"objective": InfoNCE(temperature=0.1)},
        {"objective": CoSENT()},
        {"objective": AnglE(angle=0.5)},
        {"objective": quiet},
        {"encoder_options": {"pooling": "mean"}},
        {"mntp": MNTP(3)},
        {"seed": 7},
    ],
)
def test_another_recipe_describes_itself_otherwise(change: dict[str, Any]) -> None:
    assert replace(Recipe(), **change).described() != Recipe().described()


@dataclass(frozen=True)
class Weighted:
    weight: float

    def __call__(self, _encoder: object) -> float:
        return self.weight


class Plain:
    def __call__(self, _encoder: object) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("dev", "said"),
    [
        (partial(score, weight=Path("data")), ["tests.train.test_recipe.score", [], {"weight": "data"}]),
        (Weighted(0.5), "Weighted(weight=0.5)"),
        (Plain(), "tests.train.test_recipe.Plain"),
    ],
)
def test_whatever_scores_says_what_it_is(dev: Any, said: Any) -> None:
    described = Recipe(dev=dev, encoder_options={"cache": Path("here")}).described()
    assert described["dev"] == said
    assert described["encoder_options"] == {"cache": "here"}
    assert json.loads(json.dumps(described)) == described


def test_the_order_of_settings_is_of_no_account() -> None:
    first, second = (Recipe(encoder_options=dict(pairs)) for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert json.dumps(first.described()) == json.dumps(second.described())


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0.0, 10), (0.2, 10), (0.1, 1), (1.0, 4), (0.0, 1)])
def test_heights_begin_low_and_end_as_scheduled(schedule: Schedule, warmup: float, total: int) -> None:
    recipe = Recipe(schedule=schedule, warmup=warmup)
    heights = [recipe.lr_factor(step, total) for step in range(total)]
    warm = math.ceil(warmup * total)
    assert heights[:warm] == [(step + 1) / warm for step in range(warm)]
    assert max(heights) == 1.0
    shares = [(step - warm) / (total - warm) for step in range(warm, total)]  # Of the way down.
    if schedule == "constant":
        wanted = [1.0] * len(shares)
    elif schedule == "linear":
        wanted = [1 - share for share in shares]
    else:
        wanted = [(1 + math.cos(math.pi * share)) / 2 for share in shares]
    assert heights[warm:] == pytest.approx(wanted)
    if warm < total and schedule != "constant":
        assert recipe.lr_factor(total, total) == pytest.approx(0)


HEAD = "from bellm.train import LoRA, Recipe\n\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "recipe = Recipe(model='x'\n", ", line 3: '(' was never closed"),
        ("import not_installed\n", ", line 1: ModuleNotFoundError: No module named 'not_installed'"),
        (HEAD + "rate = 1 / 0\n", ", line 3: ZeroDivisionError: division by zero"),
        (
            HEAD + "recipe = Recipe(\n    learning_rat=1e-3,\n)\n",
            ", line 3: TypeError: Recipe.__init__() got an unexpected keyword argument 'learning_rat'. Did you mean "
            "learning_rate?",
        ),
        (HEAD + "def tuned():\n    return LoRA(rnk=3)\n\n\nrecipe = Recipe(tuning=tuned())\n", ", line 4: TypeError"),
        (HEAD + "recipe = Recipe(batch_size=0)\n", ", line 3: batch_size=0 is too small: give at least 1."),
        (HEAD + "raise ValueError('one\\ntwo')\n", ", line 3: ValueError: one two"),
        ("recipe = 3\n", " names no `recipe`. It should end with: recipe = Recipe(...)."),
        ("\0", ": "),
    ],
)
def test_a_recipe_that_cannot_be_run_is_one_line_with_its_number(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.py").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError) as refusal:
        load_recipe(tmp_path / "recipe.py")
    assert str(refusal.value).startswith(f"{tmp_path / 'recipe.py'}{said}")
    assert "\n" not in str(refusal.value)


def test_a_recipe_is_found(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(HEAD + "recipe = Recipe(seed=7)\n", encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.py") == Recipe(seed=7)
    with pytest.raises(SourceError, match=r"There is no recipe .*none\.py"):
        load_recipe(tmp_path / "none.py")
