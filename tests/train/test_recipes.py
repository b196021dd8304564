"""The recipes that come with bellm: each is one, and trains."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from bellm import Encoder
from bellm.run_dir import METRICS
from bellm.train.loop import train
from bellm.train.objectives import GRL, AnglE, InfoNCE
from bellm.train.recipe import MNTP, LoRA, Recipe
from tests.train.rows import dataset

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.py"))


def recipe_of(name: str) -> Recipe:
    recipe = runpy.run_path(str(RECIPES / f"{name}.py"))["recipe"]
    assert isinstance(recipe, Recipe)
    return recipe


def test_the_published_recipes_are_there() -> None:
    assert NAMES == ["angle", "bellm", "llm2vec", "mse_amr", "prompteol", "ullme_grl"]
    kinds = {name: type(recipe_of(name).objective) for name in NAMES}
    assert kinds == {
        "angle": AnglE,
        "bellm": InfoNCE,
        "llm2vec": InfoNCE,
        "mse_amr": InfoNCE,
        "prompteol": InfoNCE,
        "ullme_grl": GRL,
    }
    maps = {name: recipe_of(name).encoder_options.get("bidirectional") for name in NAMES}
    opened = {name: layers for name, layers in maps.items() if layers}
    assert opened == {"bellm": "last:8", "llm2vec": "all", "ullme_grl": "all"}
    assert [name for name in NAMES if recipe_of(name).mntp] == ["llm2vec"]


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_a_small_model(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(name)
    settings = {**recipe.encoder_options, "max_tokens": 128}
    if settings.get("bidirectional") == "last:8":
        settings["bidirectional"] = "last:2"
    small = replace(
        recipe,
        model=str(tiny_folder),
        encoder_options=settings,
        tuning=LoRA(rank=2),
        mntp=recipe.mntp and MNTP(steps=1),
        batch_size=4,
        max_steps=3,
    )
    encoder = train(small, [(dataset(16), 1.0)], tmp_path / "out")
    lines = (tmp_path / "out" / METRICS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert all(json.loads(line)["grad_norm"] > 0 for line in lines)
    assert encoder.config.prompt.name == recipe.encoder_options["prompt"]
    assert (encoder.encode(["A heron waits."]) != Encoder.from_pretrained(tiny_folder).encode(["A heron waits."])).any()
