"""Memory of a training, reckoned: against sums by hand, and against what a process takes."""

import json
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig
from typer.testing import CliRunner

from bellm.cli import app
from bellm.errors import BellmError, SourceError
from bellm.train import LoRA, MemoryPlan, Recipe, plan_memory
from tests.processes import run

LLAMA = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
)
"""Llama-3.1-8B."""

MISTRAL = MistralConfig(num_key_value_heads=8)
"""Mistral-7B."""

HEAD = 128256 * 4096
LINEAR = 32 * 4096 * (4096 + 1024 + 1024 + 4096 + 3 * 14336)
ADAPTERS = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
LAYER = LINEAR // 32 + 2 * 4096


def planned(config: PreTrainedConfig, folder: Path, **options: int) -> dict[str, MemoryPlan]:
    config.save_pretrained(folder)
    recipe = Recipe(model=str(folder), batch_size=16, tuning=LoRA(rank=16))
    return {plan.tuning: plan for plan in plan_memory(recipe, device="cuda", memory=24 * 10**9, **options)}


@pytest.mark.parametrize(("config", "size"), [(LLAMA, 8_030_261_248), (MISTRAL, 7_241_732_096)], ids=["8B", "7B"])
def test_weights_are_those_of_the_configuration(config: PreTrainedConfig, size: int, tmp_path: Path) -> None:
    plans = planned(config, tmp_path)
    head = config.vocab_size * 4096  # Nothing learns in it.
    assert plans["all weights"].weights == 4 * size
    assert plans["all weights"].gradients == 4 * (size - head)
    assert plans["all weights"].optimizer == 8 * (size - head)
    assert plans["LoRA, rank 16"].weights == 2 * size + 4 * ADAPTERS
    assert plans["LoRA, rank 16"].optimizer == 2 * plans["LoRA, rank 16"].gradients == 8 * ADAPTERS
    four_bits = round(LINEAR * (0.5 + 1 / 64 + 1 / 4096)) + 2 * (size - LINEAR) + 4 * ADAPTERS
    assert plans["QLoRA, rank 16"].weights == four_bits
    assert [plan.fits for plan in plans.values()] == [False, True, True]


def test_a_shard_is_a_part_and_one_whole_layer(tmp_path: Path) -> None:
    plans = planned(LLAMA, tmp_path, devices=8)
    size, outside = 8_030_261_248, 2 * HEAD + 4096
    sharded = plans["all weights, sharded"]
    assert sharded.weights == 4 * size // 8 + 4 * (LAYER + outside)
    assert (sharded.gradients, sharded.optimizer) == (4 * (size - HEAD) // 8, 8 * (size - HEAD) // 8)
    assert plans["all weights"].weights == 4 * size


def test_activations_grow_with_the_tokens_until_gradients_are_cached(tmp_path: Path) -> None:
    MistralConfig(num_hidden_layers=4, num_key_value_heads=8).save_pretrained(tmp_path)
    two, four, many, more = (
        plan_memory(Recipe(model=str(tmp_path), batch_size=rows), device="cuda", memory=12 * 10**9)[1]
        for rows in (2, 4, 256, 1024)
    )
    assert [plan.cached for plan in (two, four, many, more)] == [False, False, True, True]
    assert four.activations == pytest.approx(2 * two.activations, rel=0.03)
    assert more.activations == many.activations


def test_checkpoints_leave_the_states_between_layers(tmp_path: Path) -> None:
    MistralConfig(num_hidden_layers=32, num_key_value_heads=8).save_pretrained(tmp_path)
    plans = [
        plan_memory(
            Recipe(model=str(tmp_path), batch_size=8, gradient_checkpointing=each), device="cuda", memory=10**12
        )
        for each in (False, True)
    ]
    kept, again = (plan[1].activations for plan in plans)
    states = 8 * 3 * 128 * 32 * 4096 * 2
    assert states < again < states + kept / 30
    assert plans[0][1].weights == plans[1][1].weights


def test_what_cannot_be_planned_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no configuration to plan by"):
        plan_memory(Recipe(model=str(tmp_path)))
    for given, said in (
        (["--devices", "2"], "--devices: it is for --plan"),
        (["--memory", "24"], "--memory: it is for --plan"),
        (["-o", "out"], "Missing option '--data'"),
        (["--data", "x.csv"], "Missing option '--output'"),
    ):
        result = CliRunner().invoke(app, ["train", "smollm2", *given])
        assert result.exit_code == 2
        assert said in result.stderr


def test_the_command_prints_it_and_loads_no_weights(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "bellm.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    command = ["train", str(tmp_path), "--plan", "--max-tokens", "32", "--batch-size", "8", "--devices", "2"]
    found = json.loads(CliRunner().invoke(app, [*command, "--device", "cpu", "--memory", "1", "--json"]).stdout)
    assert (found["rows"], found["tokens_per_text"], found["devices"], found["memory"]) == (8, 32, 2, 10**9)
    assert [plan["tuning"] for plan in found["plans"]] == [
        "all weights",
        "LoRA, rank 16",
        "QLoRA, rank 16",
        "all weights, sharded",
        "LoRA, rank 16, sharded",
    ]
    shown = CliRunner().invoke(app, command)
    assert "8 rows of three texts of 32 tokens over 2 devices" in " ".join(shown.stdout.split())


PEAK = """
import json, random, resource, sys
import torch
from bellm.train import FullFineTuning, LoRA, Recipe, plan_memory
from bellm.train.examples import Example
from bellm.train.train_step import TrainStep
from bellm.train.trainable import load_trainable

words = "river stone bread window garden train letter".split()
texts = [" ".join(random.Random(row).choices(words, k=40)) for row in range(24)]
rows = [Example(texts[at], (texts[at + 1],), (texts[at + 2],)) for at in range(0, 24, 3)]
tuning = FullFineTuning() if sys.argv[1] == "all" else LoRA()
options = {"bidirectional": "last:8", "dtype": sys.argv[2], "prompt": "raw", "device": "cpu"}
recipe = Recipe(model="smollm2", batch_size=8, encoder_options=options, tuning=tuning)
encoder, autocast = load_trainable(recipe)
step = TrainStep(encoder, recipe.objective, autocast=autocast, max_held_tokens=1 << 20)  # Whatever is free now.
optimizer = torch.optim.AdamW(step.parameters.values(), lr=1e-4)
for seed in range(3):
    optimizer.zero_grad()
    done = step.learn(rows, seed)
    optimizer.step()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
plan = plan_memory(recipe, device="cpu", memory=1 << 40, text_tokens=done.num_tokens // 24)[sys.argv[1] != "all"]
print(json.dumps({"peak": peak, "plan": plan.total}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted as Linux counts it")
@pytest.mark.parametrize(("tuning", "dtype"), [("all", "float32"), ("lora", "float32")], ids=lambda value: str(value))
def test_a_process_takes_what_was_planned(tuning: str, dtype: str) -> None:
    done = run([sys.executable, "-c", PEAK, tuning, dtype])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["plan"] == pytest.approx(found["peak"], rel=0.15)


def test_an_encoder_in_memory_is_not_planned(tiny_encoder: object) -> None:
    with pytest.raises(BellmError, match="loaded already"):
        plan_memory(Recipe(model=tiny_encoder))  # type: ignore[arg-type]
