"""Weights that two processes share, against one that has them all: gradients, runs, and a run that is killed."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bellm import Encoder
from bellm.errors import BellmError
from bellm.run_dir import BEST, CHECKPOINT, METRICS, MODEL
from bellm.train.loop import train
from bellm.train.objectives import GRL, InfoNCE
from bellm.train.recipe import MNTP, LoRA, Recipe
from bellm.train.train_step import TrainStep
from tests.train import reference
from tests.train.conftest import Forks
from tests.train.rows import dataset, write
from tests.train.sharing import STEPS, TUNINGS, WAYS, encoder_of, recipe, steps
from tests.train.test_distributed import found, in_two, start

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.

WEIGHTS = (CHECKPOINT, BEST, f"{MODEL}/model.safetensors")


@pytest.fixture(scope="module")
def shared(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What came of two processes."""
    folder = tmp_path_factory.mktemp("shared")
    in_two("tests.train.sharing", tiny_folder, folder)
    return folder


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_step_is_that_of_one_process(shared: Path, tiny_folder: Path, tuning: str) -> None:
    train_step = TrainStep(encoder_of(str(tiny_folder), tuning), InfoNCE(), **WAYS["checkpointed"])
    for name, (learned, gradients) in steps(train_step).items():
        for runner in WAYS:
            facts = [found(shared, rank)[f"{tuning} {runner} {name}"] for rank in (0, 1)]
            assert [each["loss"] for each in facts] == pytest.approx([learned.loss] * 2, rel=1e-6)
            assert sum(each["num_tokens"] for each in facts) == learned.num_tokens
            ours = load_file(shared / f"{tuning} {runner} {name}.safetensors")
            assert reference.distance(ours, gradients) < 1e-6, (runner, name)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_cached_and_held_are_equal_bit_for_bit(shared: Path, tuning: str) -> None:
    for name in STEPS:
        cached, held = (load_file(shared / f"{tuning} {runner} {name}.safetensors") for runner in ("cached", "held"))
        assert all((cached[weight] == held[weight]).all() for weight in held)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_each_process_has_a_half(shared: Path, tuning: str) -> None:
    shares = [[found(shared, rank)[f"{tuning} {runner} share"] for runner in WAYS] for rank in (0, 1)]
    assert shares[0] == pytest.approx([0.5] * 3, abs=0.02)
    assert [sum(both) for both in zip(*shares, strict=True)] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_only_the_layer_that_computes_is_whole(shared: Path, tuning: str) -> None:
    for rank in (0, 1):
        assert [found(shared, rank)[f"{tuning} {runner} whole layers"] for runner in ("cached", "held")] == [[1, 1]] * 2


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_run_comes_to_the_weights_of_one_process(
    shared: Path, tiny_folder: Path, tmp_path: Path, tuning: str
) -> None:
    alone = train(recipe(str(tiny_folder), tuning), [(dataset(14), 1.0)], tmp_path / "out", checkpoint_every=2)
    for name in WEIGHTS:
        ours, theirs = (load_file(out / name) for out in (shared / tuning, tmp_path / "out"))
        assert reference.distance(ours, theirs) < (1e-6 if MODEL in name else 3e-5), name
    facts, wanted = records(shared / tuning), records(tmp_path / "out")
    for name in ("step", "loss", "grad_norm", "learning_rate"):
        assert [record[name] for record in facts] == pytest.approx([record[name] for record in wanted], rel=1e-5)
    assert [record["dev"] is None for record in facts] == [True, False, False]
    assert facts[-1]["dev"] == pytest.approx(wanted[-1]["dev"], abs=1e-4)
    for rank in (0, 1):
        vector = alone.encode(["Snow"])[0].tolist()
        assert found(shared, rank)[f"{tuning} vector"] == pytest.approx(vector, rel=1e-5, abs=1e-5)
    names = [
        sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (shared / tuning, tmp_path / "out")
    ]
    assert names[0] == names[1]


# Runs that are killed

RECIPE = """
from bellm.train.recipe import MNTP, LoRA, Recipe

recipe = Recipe(
    model={model!r},
    tuning=LoRA(rank=3, dropout={dropout}),
    mntp=MNTP(2),
    batch_size=4,
    max_steps=6,
    learning_rate=5e-3,
    sharded=True,
)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_any_number_of_processes(forks: Forks, tiny_folder: Path, tmp_path: Path) -> None:
    plan, data = tmp_path / "recipe.py", write(tmp_path / "rows.jsonl", 40)
    plan.write_text(RECIPE.format(model=str(tiny_folder), dropout=0.0), encoding="utf-8")
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ("train", plan, "--data", data, "--checkpoint-every=2")
    assert [forks.wait(process) for process in start(forks, tmp_path, *arguments, "-o", whole)] == [0, 0]
    # Killed once the first checkpoint is there, after two other files, each of them three calls.
    both = start(forks, tmp_path, *arguments, "-o", out, blow={"step": 18})
    assert [forks.wait(process) for process in both] == [-signal.SIGKILL, 1]
    assert len(records(out)) < 6
    (line,) = (tmp_path / "1.log").read_text(encoding="utf-8").splitlines()
    assert line.startswith("bellm: Process 1 of 2 ends because another one did")
    alone = tmp_path / "alone"
    forks.shell(f"cp -r {out} {alone}")
    assert [forks.wait(process) for process in start(forks, tmp_path, *arguments, "-o", out)] == [0, 0]
    assert forks.wait(forks.start(*arguments, "-o", alone, log=tmp_path / "alone.log")) == 0
    for name in (CHECKPOINT, f"{MODEL}/model.safetensors"):
        wanted = load_file(whole / name)
        ours = load_file(out / name)
        assert all((ours[weight] == wanted[weight]).all() for weight in wanted), name
        assert reference.distance(load_file(alone / name), wanted) < (1e-6 if MODEL in name else 3e-5), name


# What cannot be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": GRL()}, "the objective GRL"),
        ({"mntp": MNTP(3, gradual=True)}, r"MNTP\(gradual=True\)"),
        ({"tuning": LoRA(four_bit=True)}, r"LoRA\(four_bit=True\)"),
    ],
)
def test_what_takes_more_than_shared_weights_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BellmError, match=rf"sharded=True does not go with {said}\. Leave one of them out\."):
        Recipe(sharded=True, **changes)


def test_one_process_shares_with_nobody(tiny_folder: Path, tmp_path: Path) -> None:
    plan = Recipe(model=str(tiny_folder), tuning=LoRA(rank=2), max_steps=1, sharded=True)
    assert isinstance(train(plan, [(dataset(6), 1.0)], tmp_path / "out"), Encoder)
