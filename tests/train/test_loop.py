"""Training that is stopped in every way and resumes, and what decides when it ends."""

import copy
import json
import math
import random
import re
import signal
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bellm import Encoder
from bellm.errors import BellmError, BellmWarning, NoOpWarning, SourceError
from bellm.report.statistics import Score
from bellm.run_dir import BEST, CHECKPOINT, METRICS, MODEL, Interrupted
from bellm.train.dataset import Dataset
from bellm.train.examples import Example
from bellm.train.loop import train
from bellm.train.objectives import GRL, AnglE, CoSENT, Espresso, InfoNCE, Objective
from bellm.train.recipe import MNTP, FullFineTuning, LoRA, Recipe
from tests.train.conftest import Forks
from tests.train.rows import dataset, triplets, write

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.

STEPS = 19  # Three of adaptation, then one epoch and a half of eleven batches.
SAME = ("step", "loss", "learning_rate", "grad_norm", "dev")

RECIPE = """
from bellm.train import MNTP, LoRA, Recipe


def spread(encoder):
    first, second = encoder.encode(["A heron waits.", "The invoice was paid."])
    return -float(first @ second / ((first @ first) * (second @ second)) ** 0.5)


recipe = Recipe(
    model={model!r},
    encoder_options={{"pooling": "mean"}},
    tuning=LoRA(rank=2, dropout=0.1),
    mntp=MNTP(3, gradual=True),
    batch_size=4,
    epochs=1.5,
    learning_rate=5e-3,
    weight_decay=0.01,
    dev=spread,
    dev_every=4,
)
"""


@dataclass
class Command:
    """`bellm train` on one recipe and one file, in a process of its own."""

    forks: Forks
    recipe: Path
    data: Path

    def start(self, out: Path, *options: str, **how: Any) -> int:
        log = out.with_suffix(".log")
        log.unlink(missing_ok=True)
        arguments = ("train", self.recipe, "--data", self.data, "-o", out, "--checkpoint-every=3", *options)
        return self.forks.start(*arguments, log=log, **how)

    def run(self, out: Path, *options: str, **how: Any) -> int:
        return self.forks.wait(self.start(out, *options, **how))


@pytest.fixture(scope="module")
def command(forks: Forks, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("command")
    recipe = folder / "recipe.py"
    recipe.write_text(RECIPE.format(model=str(tiny_folder)), encoding="utf-8")
    return Command(forks, recipe, write(folder / "rows.jsonl", 42))


@pytest.fixture(scope="module")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert command.run(out) == 0, out.with_suffix(".log").read_text()
    return out


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]


def step_of(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["progress"])["step"])


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, moments and vectors bit by bit, every step once, nothing left over."""
    assert [record["step"] for record in records(found)] == list(range(1, STEPS + 1))
    ours, theirs = ([[record[name] for name in SAME] for record in records(out)] for out in (found, expected))
    assert ours == theirs
    names = [sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (found, expected)]
    assert names[0] == names[1]
    for name in (CHECKPOINT, BEST, f"{MODEL}/model.safetensors", f"{MODEL}/fingerprint.safetensors"):
        left, right = (load_file(out / name) for out in (found, expected))
        assert left.keys() == right.keys()
        assert all((left[key] == right[key]).all() for key in left), name


# Interruptions


def test_killed_at_random_moments_it_comes_to_the_same_weights(
    command: Command, undisturbed: Path, tmp_path: Path
) -> None:
    out, moments, deaths = tmp_path / "out", random.Random(1), set()
    while not (out / MODEL).exists():
        # Some way on, which no machine is too slow for, and then any moment of about a step.
        end = command.run(out, blow={"step": moments.randint(0, 30), "after": moments.uniform(0, 0.05)})
        assert end in (-signal.SIGALRM, 0)
        deaths.add(step_of(out / CHECKPOINT) if (out / CHECKPOINT).exists() else 0)
    assert command.run(out) == 0
    assert_same_run(out, undisturbed)
    assert len(deaths) >= 3  # At so many different steps.


def test_killed_around_every_call_that_makes_files_last(command: Command, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (1, 3, 8, 10, 11, 13, 15, 20, 23):
        assert command.run(out, blow={"step": step}) == -signal.SIGKILL
    (out / ".model-abandoned").mkdir()  # As a kill leaves it while the encoder is saved.
    assert command.run(out) == 0
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_keeps_the_step_and_goes_on(
    command: Command, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    # Asked after the first checkpoint's last call: two files were written before, in three calls each.
    assert command.run(out, blow={"step": 18, "signal": number}) == 130
    step = len(records(out))
    assert 2 <= step < STEPS
    assert step_of(out / CHECKPOINT) == step
    score, said = out.with_suffix(".log").read_text().splitlines()
    assert score.startswith("note: step 4: ")
    assert said == f"bellm: interrupted; step {step} of {STEPS} is kept in {out}; the same command resumes."
    assert command.run(out) == 0
    assert_same_run(out, undisturbed)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    command: Command, undisturbed: Path, tmp_path: Path
) -> None:
    mount, log = tmp_path / "disk", tmp_path / "out.log"
    mount.mkdir()
    if command.forks.shell(f"mount -t tmpfs -o size=1m none {mount} 2>/dev/null"):
        pytest.skip("needs the right to mount a small disk")
    out, said = mount / "out", []
    for kilobytes in (0, 60, 130, 200):  # That are free.
        command.forks.shell(f"rm -f {mount}/ballast; cat /dev/zero > {mount}/ballast")
        command.forks.shell(f"truncate -s -{kilobytes}k {mount}/ballast")
        code = command.forks.wait(command.forks.start(*_arguments(command, out), log=log))
        *scores, line = log.read_text().splitlines()
        log.unlink()
        assert code == 1, line
        assert all(score.startswith("note: step ") for score in scores)
        place, what = line.removeprefix("bellm: ").split(" cannot be written: ")
        assert "No space left on device" in what
        assert place.startswith(f"{out}/")
        said.append(place.removeprefix(f"{out}/"))
    assert {CHECKPOINT, MODEL} <= set(said)
    command.forks.shell(f"rm {mount}/ballast; cp -r {out} {tmp_path}/before")
    assert step_of(tmp_path / "before" / CHECKPOINT) == STEPS
    assert not list((tmp_path / "before").glob(".*part"))
    assert command.forks.wait(command.forks.start(*_arguments(command, out), log=log)) == 0
    command.forks.shell(f"cp -r {out} {tmp_path}/out; umount {mount}")
    assert_same_run(tmp_path / "out", undisturbed)


def _arguments(command: Command, out: Path) -> tuple[object, ...]:
    return "train", command.recipe, "--data", command.data, "-o", out, "--checkpoint-every=3"


# One run after another, in this process


class Dev:
    """Scores that were laid down beforehand, told apart by what the recipe's record says of them."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.given: list[tuple[float, list[float]]] = []
        self.__qualname__ = f"Dev{scores}"

    def __call__(self, encoder: Encoder) -> float:
        score = self.scores[len(self.given)]
        self.given.append((score, encoder.encode(["A heron waits."])[0].tolist()))
        return score


@pytest.fixture
def recipe(tiny_folder: Path) -> Recipe:
    return Recipe(model=str(tiny_folder), tuning=LoRA(rank=2), batch_size=4, learning_rate=5e-3)


def run(recipe: Recipe, out: Path, rows: int = 12, **options: Any) -> Encoder:
    return train(recipe, [(dataset(rows), 1.0)], out, **options)


def test_the_best_weights_are_kept(recipe: Recipe, tmp_path: Path) -> None:
    dev = Dev(0.2, 0.9, 0.3)
    encoder = run(replace(recipe, dev=dev, dev_every=2, max_steps=6, epochs=9), tmp_path / "out")
    np.testing.assert_allclose(encoder.encode(["A heron waits."])[0], dev.given[1][1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(dev.given[1][1], dev.given[2][1], rtol=1e-3)
    assert [record["dev"] for record in records(tmp_path / "out")] == [None, 0.2, None, 0.9, None, 0.3]
    card = (tmp_path / "out" / MODEL / "README.md").read_text(encoding="utf-8")
    assert "Best dev score: 0.9000 at step 4" in card


def test_a_score_with_an_interval_has_it_in_the_card(recipe: Recipe, tmp_path: Path) -> None:
    def dev(_encoder: Encoder) -> Score:
        return Score("accuracy", 71.5, 70.25, 72.0, 9)

    run(replace(recipe, dev=dev, dev_every=2, max_steps=4), tmp_path / "out")
    card = (tmp_path / "out" / MODEL / "README.md").read_text(encoding="utf-8")
    assert "Best dev score: 71.5000 (95 % interval 70.2500 to 72.0000) at step 2" in card


def test_a_run_that_kept_nothing_gives_way_to_a_corrected_one(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BellmError, match="score"):
        run(replace(recipe, objective=CoSENT()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / BEST).write_bytes(b"of that run")
    corrected = run(replace(recipe, learning_rate=1e-3, max_steps=2), tmp_path / "out")
    np.testing.assert_array_equal(
        corrected.encode(["A heron waits."]),
        run(replace(recipe, learning_rate=1e-3, max_steps=2), tmp_path / "other").encode(["A heron waits."]),
    )


def test_the_last_step_is_scored_too(recipe: Recipe, tmp_path: Path) -> None:
    dev = Dev(0.2, 0.9)
    encoder = run(replace(recipe, dev=dev, dev_every=2, max_steps=3), tmp_path / "out")
    np.testing.assert_allclose(encoder.encode(["A heron waits."])[0], dev.given[1][1], rtol=1e-4, atol=1e-5)
    assert [record["dev"] for record in records(tmp_path / "out")] == [None, 0.2, 0.9]


def test_patience_ends_early_and_what_ended_is_finished(recipe: Recipe, tmp_path: Path) -> None:
    patient = replace(recipe, dev=Dev(0.5, 0.7, 0.6, 0.7, 1.0), dev_every=1, epochs=9, patience=2)
    encoder = run(patient, tmp_path / "out")
    assert [record["dev"] for record in records(tmp_path / "out")] == [0.5, 0.7, 0.6, 0.7]
    again = run(patient, tmp_path / "out")  # The folder is finished: nothing is scored, nothing is trained.
    assert (again.encode(["A heron waits."]) == encoder.encode(["A heron waits."])).all()


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 3),
        ({"epochs": 2.0}, 6),
        ({"epochs": 0.4}, 1),
        ({"epochs": 0.01}, 1),
        ({"max_steps": 2}, 2),
        ({"max_steps": 5}, 3),
        ({"mntp": MNTP(2)}, 5),
        ({"mntp": MNTP(2), "max_steps": 1}, 1),
    ],
)
def test_steps_are_those_of_epochs_and_adaptation_up_to_the_most(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], steps: int
) -> None:
    shown: list[tuple[int, int]] = []
    run(replace(recipe, **changes), tmp_path / "out", progress=lambda step, total, _: shown.append((step, total)))
    assert shown == [(step, steps) for step in range(1, steps + 1)]
    assert [record["step"] for record in records(tmp_path / "out")] == list(range(1, steps + 1))


def test_learning_rates_of_both_stages(recipe: Recipe, tmp_path: Path) -> None:
    run(replace(recipe, mntp=MNTP(2, learning_rate=1e-3), epochs=1, warmup=0), tmp_path / "out")
    rates = [record["learning_rate"] for record in records(tmp_path / "out")]
    assert rates == pytest.approx([1e-3, 0.5e-3, 5e-3, 5e-3 * 2 / 3, 5e-3 / 3])


def test_another_run_in_the_same_folder_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "out")
    for other in (
        replace(recipe, seed=7),
        replace(recipe, learning_rate=1e-4),
        replace(recipe, tuning=FullFineTuning()),
    ):
        with pytest.raises(SourceError, match=r"holds a run with other (seed|learning_rate|tuning)") as refusal:
            run(other, tmp_path / "out")
        assert "\n" not in str(refusal.value)
    with pytest.raises(SourceError, match="holds a run with other data"):
        changed = Dataset("ours", [*triplets(11), Example("A heron waits.", ("It waits.",))])
        train(recipe, [(changed, 1.0)], tmp_path / "out")


def test_a_second_run_is_kept_out(recipe: Recipe, tmp_path: Path) -> None:
    refusals: list[str] = []

    def intrude(*_: object) -> None:
        with pytest.raises(SourceError) as refusal:
            run(recipe, tmp_path / "out")
        refusals.append(str(refusal.value))

    run(recipe, tmp_path / "out", progress=intrude)
    assert refusals == [f"Another run is training in {tmp_path / 'out'}."] * 3


def test_a_damaged_checkpoint_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"what .*out holds is kept; the same command resumes"):
        run(recipe, tmp_path / "out", checkpoint_every=1, progress=stop)
    path = tmp_path / "out" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        SourceError, match=r"checkpoint\.safetensors cannot be read .* Remove it to begin anew"
    ) as refusal:
        run(recipe, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    path.unlink()
    run(recipe, tmp_path / "out")
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 2, 3]


def test_a_line_that_was_torn_is_written_again(recipe: Recipe, tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    run(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "out", checkpoint_every=2, progress=stop)
    path = tmp_path / "out" / METRICS
    path.write_bytes(path.read_bytes()[:-20])
    run(recipe, tmp_path / "out", checkpoint_every=2)
    ours, theirs = ([[record[name] for name in SAME] for record in records(tmp_path / out)] for out in ("out", "whole"))
    assert ours == theirs


def test_what_is_no_number_ends_training(recipe: Recipe, tmp_path: Path) -> None:
    wild = replace(recipe, objective=lambda batch: batch.anchors_BD.sum() * math.nan)
    with pytest.raises(BellmError, match="Step 1 has a loss of nan and a gradient of length nan"):
        run(wild, tmp_path / "out")
    assert not (tmp_path / "out" / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("rate", "steps", "said"),
    [
        (1e6, 9, "step 2 begins with the same vector for all texts"),
        (1e6, 1, "after step 1 the open layers no longer see what follows a token"),
        (1e30, 1, "after step 1 the weights give NaN or infinity"),
    ],
)
@pytest.mark.parametrize("tuning", [LoRA(rank=2), FullFineTuning()])
def test_a_training_that_diverges_ends_in_one_line_without_an_encoder(
    recipe: Recipe, tmp_path: Path, rate: float, steps: int, said: str, tuning: LoRA | FullFineTuning
) -> None:
    wild = replace(recipe, learning_rate=rate, max_steps=steps, epochs=9, tuning=tuning)
    with pytest.raises(BellmError, match=rf"Training diverged: {said}\. No encoder .* below 1e\+") as refusal:
        run(wild, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / MODEL).exists()
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_a_training_that_diverges_later_keeps_the_checkpoint_before(recipe: Recipe, tmp_path: Path) -> None:
    wild = replace(recipe, learning_rate=1e3, warmup=1.0, max_steps=50, epochs=50)
    said = set()
    for _ in range(2):
        with pytest.raises(BellmError, match="Training diverged") as refusal:
            run(wild, tmp_path / "out", checkpoint_every=1)
        said.add(str(refusal.value))
    assert len(said) == 1
    assert (tmp_path / "out" / CHECKPOINT).exists()
    assert len(records(tmp_path / "out")) > 1


def test_a_paused_run_goes_on_as_if_there_had_been_no_pause(recipe: Recipe, tmp_path: Path) -> None:
    longer, texts = replace(recipe, max_steps=6, epochs=9), ["A heron waits."]
    whole = run(longer, tmp_path / "whole").encode(texts)
    paused = [run(longer, tmp_path / "out", until=step).encode(texts) for step in (2, 2, 5)]
    assert step_of(tmp_path / "out" / CHECKPOINT) == 5
    np.testing.assert_array_equal(paused[0], paused[1])
    assert len(records(tmp_path / "out")) == 5
    assert not (tmp_path / "out" / MODEL).exists()
    with pytest.raises(SourceError, match="out is at step 5, past the pause after 2"):
        run(longer, tmp_path / "out", until=2)
    np.testing.assert_array_equal(run(longer, tmp_path / "out", until=6).encode(texts), whole)
    assert (tmp_path / "out" / MODEL).exists()
    with pytest.raises(SourceError, match="out is at step 6, past the pause after 5"):
        run(longer, tmp_path / "out", until=5)


def test_weights_that_are_shared_cannot_pause(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(world_size=2, report_lost_process=nullcontext)
    monkeypatch.setattr("bellm.train.loop.Distributed", lambda: alone)
    with pytest.raises(BellmError, match="until=2 does not go with sharded=True"):
        run(replace(recipe, sharded=True), tmp_path / "out", until=2)


def test_a_paused_encoder_has_the_weights_of_a_saved_one(recipe: Recipe, tmp_path: Path) -> None:
    constant, texts = replace(recipe, schedule="constant", warmup=0, epochs=9), ["A heron waits."]
    for tuning in (LoRA(rank=2), LoRA(rank=2, merged=False), FullFineTuning()):
        out = tmp_path / repr(tuning)
        saved = run(replace(constant, tuning=tuning, max_steps=2), out / "short").encode(texts)
        paused = run(replace(constant, tuning=tuning, max_steps=4), out / "long", until=2).encode(texts)
        np.testing.assert_array_equal(paused, saved)


def test_a_folder_that_cannot_be_made(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="file/out cannot be written: Not a directory"):
        run(recipe, tmp_path / "file" / "out")


def test_signals_are_as_they_were(recipe: Recipe, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    during: list[Any] = []
    run(recipe, tmp_path / "out", progress=lambda *_: during.append(signal.getsignal(signal.SIGINT)))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert before[0] not in during


# What would look finished, or crash at the end


def rated(scores: list[float]) -> Dataset:
    return Dataset("rated", [Example(f"text {at}", (f"other {at}",), score=score) for at, score in enumerate(scores)])


@pytest.mark.parametrize(
    ("rows", "batch_size"),
    [
        (rated([1.0] * 40), 4),
        (Dataset("pairs", [replace(row, negatives=()) for row in triplets(40)]), 1),
        (Dataset("one", [Example("the anchor", (f"positive {at}",)) for at in range(40)]), 4),
    ],
    ids=["equal ratings", "batch size 1", "one anchor"],
)
@pytest.mark.filterwarnings("ignore:the 40 rows of one make 40 batches")
def test_where_nothing_can_be_learned_no_encoder_comes_out(
    recipe: Recipe, tmp_path: Path, rows: Dataset, batch_size: int
) -> None:
    wanted = replace(recipe, batch_size=batch_size)
    with (
        pytest.warns(BellmWarning, match="Step 1 teaches nothing: the gradient of its loss is 0"),
        pytest.raises(BellmError, match="So it was with all steps before") as refusal,
    ):
        train(wanted, [(rows, 1.0)], tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert len(records(tmp_path / "out")) == 9
    assert not (tmp_path / "out" / MODEL).exists()


@pytest.mark.parametrize("options", [{"pooling": "first", "bidirectional": "none"}, {"layer": 0, "pooling": "mean"}])
@pytest.mark.filterwarnings("ignore::bellm.errors.NoOpWarning")
def test_vectors_that_nothing_changes_are_not_trained(recipe: Recipe, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BellmError, match=r"othing can be learned"):
        run(replace(recipe, encoder_options=options), tmp_path / "out")
    assert not (tmp_path / "out" / METRICS).exists()


def test_equal_vectors_teach_nothing(recipe: Recipe, tmp_path: Path, tiny_encoder: Encoder) -> None:
    constant = Encoder.from_pretrained(
        copy.deepcopy(tiny_encoder.model), tokenizer=tiny_encoder.tokenizer, config=tiny_encoder.config
    )
    with torch.no_grad():
        constant.model.get_input_embeddings().weight[:] = constant.model.get_input_embeddings().weight[9]
    with (
        pytest.warns(BellmWarning, match="Step 1 teaches nothing: "),
        pytest.raises(BellmError, match="So it was with all steps before"),
    ):
        run(replace(recipe, model=constant, encoder_options={}, batch_size=2), tmp_path / "out", rows=40)
    assert not (tmp_path / "out" / MODEL).exists()


def test_some_steps_without_a_gradient_are_said_once(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.warns(BellmWarning) as caught:
        train(replace(recipe, batch_size=2), [(rated([1.0] * 9 + [0.0] * 9), 1.0)], tmp_path / "out")
    assert len([warning for warning in caught if "teaches nothing" in str(warning.message)]) == 1
    assert (tmp_path / "out" / MODEL).exists()


def test_a_layer_whose_opening_changes_nothing_is_said_once(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.warns(NoOpWarning) as caught:
        run(replace(recipe, encoder_options={"bidirectional": "last:1", "pooling": "last"}), tmp_path / "out")
    assert [warning.category for warning in caught] == [NoOpWarning]


def test_junk_in_the_metrics_costs_no_model(recipe: Recipe, tmp_path: Path) -> None:
    whole = run(recipe, tmp_path / "whole").encode(["Snow"])
    run(recipe, tmp_path / "out", until=2)
    with (tmp_path / "out" / METRICS).open("ab") as file:
        file.write(b"\xff not a record\n[]\n")
    assert (run(recipe, tmp_path / "out").encode(["Snow"]) == whole).all()
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 2, 3]


def test_an_encoder_that_cannot_be_saved_costs_no_step(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise NotImplementedError("No such\nconversion.")

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "save_pretrained", fails)
        with pytest.raises(
            BellmError, match=r"All steps are taken and kept .*NotImplementedError: No such conversion\."
        ):
            run(recipe, tmp_path / "out")
    assert step_of(tmp_path / "out" / CHECKPOINT) == 3
    steps: list[int] = []
    run(recipe, tmp_path / "out", progress=lambda step, *_: steps.append(step))
    assert steps == []


def test_a_folder_of_something_else_is_refused_and_left_as_it_was(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SourceError, match=r"is no run directory: it holds 'notes\.txt'"):
        run(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("objective", "rows", "said"),
    [
        (CoSENT(), dataset(6), "needs pairs with a score"),
        (InfoNCE(), rated([1.0, 2.0]), "and the data has scores"),
        (AnglE(), Dataset("pairs", [replace(row, negatives=()) for row in triplets(6)]), "rated pairs or triplets"),
        (GRL(), Dataset("pairs", [replace(row, negatives=()) for row in triplets(6)]), "each row needs one positive"),
        (Espresso(dims=64), rated([1.0, 2.0]), "and the data has scores"),
    ],
)
def test_rows_that_an_objective_cannot_take_show_before_a_model_is_loaded(
    recipe: Recipe, tmp_path: Path, objective: Objective, rows: Dataset, said: str
) -> None:
    with pytest.raises(BellmError, match=said):
        train(replace(recipe, model="not/there", objective=objective), [(rows, 1.0)], tmp_path / "out")


def returns_none(_batch: object) -> None: ...


def fails(batch: Any) -> Any:
    return batch.anchors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"objective": returns_none},
            "an objective gives a tensor of one number, with a gradient; this one gave None.",
        ),
        ({"objective": lambda batch: batch.anchors_BD}, "this one gave one of shape (4, 32), with a gradient."),
        (
            {"objective": lambda batch: batch.anchors_BD.sum().detach()},
            "this one gave one of shape (), without a gradient.",
        ),
        ({"objective": fails}, "AttributeError: 'EmbeddedBatch' object has no attribute 'anchors'"),
        ({"dev": lambda encoder: encoder.nothing, "dev_every": 1}, "An Encoder has no 'nothing'."),
        ({"dev": lambda _: None, "dev_every": 1}, "TypeError: float() argument"),
        ({"dev": lambda _: math.nan, "dev_every": 1}, "The dev score is nan"),
    ],
)
def test_a_function_of_the_user_that_fails_is_one_line_with_its_place(
    recipe: Recipe, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(BellmError) as refusal:
        run(replace(recipe, **change), tmp_path / "out")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    if "dev score" not in said:
        assert re.match(rf"{re.escape(__file__)}, line \d+: ", str(refusal.value))


def test_data_and_model_as_one_would_write_them(tiny_folder: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    rows = dataset(6)
    wanted = train(Recipe(model=str(tiny_folder)), [(rows, 1.0)], tmp_path / "long").encode(["Snow"])
    for number, data in enumerate((rows, [rows], [(rows, 1)])):
        found = train(str(tiny_folder), data, str(tmp_path / f"{number}")).encode(["Snow"])
        assert (found == wanted).all()
    for nothing in ([], "pairs.csv", [("pairs.csv", 1.0)], [(rows, "much")], None):
        with pytest.raises(BellmError, match=r"is no data: give load_dataset\(FILE\)"):
            train(tiny_encoder, nothing, tmp_path / "none")  # type: ignore[arg-type]
    with pytest.raises(BellmError, match="model=3 is not of type"):
        train(3, rows, tmp_path / "none")  # type: ignore[arg-type]


# An encoder in place of its source


def test_an_encoder_is_trained_as_its_source_is_and_stays_as_it_was(
    recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    texts = ["A heron waits.", "Snow fell all night."]
    options: dict[str, Any] = {"pooling": "mean", "bidirectional": "last:2", "dtype": "float32"}
    encoder = Encoder.from_pretrained(tiny_folder, **options)
    before = encoder.encode(texts)
    for tuning in (LoRA(rank=2), FullFineTuning()):
        out = tmp_path / repr(tuning)
        by_source = run(replace(recipe, encoder_options=options, tuning=tuning), out / "source").encode(texts)
        by_encoder = run(replace(recipe, model=encoder, tuning=tuning), out / "encoder")
        np.testing.assert_array_equal(by_encoder.encode(texts), by_source)
        assert by_encoder.config == encoder.config
        assert not np.allclose(by_source, before, rtol=1e-3)
        np.testing.assert_array_equal(encoder.encode(texts), before)
    other = run(replace(recipe, model=encoder, encoder_options={"bidirectional": "none"}), tmp_path / "other")
    assert other.config.bidirectional == ()
    assert other.config.pooling == "mean"


def test_a_run_of_an_encoder_goes_on_with_the_same_weights_alone(
    recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    encoder = Encoder.from_pretrained(tiny_folder)
    whole = run(replace(recipe, model=encoder), tmp_path / "whole").encode(["Snow"])
    run(replace(recipe, model=encoder), tmp_path / "out", until=1)
    again = run(replace(recipe, model=Encoder.from_pretrained(tiny_folder)), tmp_path / "out").encode(["Snow"])
    np.testing.assert_array_equal(again, whole)
    for other in (encoder.replace(pooling="mean"), run(recipe, tmp_path / "trained")):
        with pytest.raises(SourceError, match="holds a run with other model"):
            run(replace(recipe, model=other), tmp_path / "out")


def test_an_encoder_in_memory_is_no_base_for_adapters_alone(recipe: Recipe, tiny_folder: Path) -> None:
    with pytest.raises(BellmError, match=r"LoRA\(merged=False\) saves adapters .* Give model= as a source, or merge"):
        replace(recipe, model=Encoder.from_pretrained(tiny_folder), tuning=LoRA(merged=False))
