"""Two processes against one, for real: gradients of the same batch, weights of the same run, one that is stopped."""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bellm import Encoder
from bellm.run_dir import CHECKPOINT, METRICS, MODEL
from bellm.train.loop import train
from bellm.train.objectives import InfoNCE
from bellm.train.train_step import TrainStep
from tests.processes import run
from tests.train import reference
from tests.train.conftest import Forks
from tests.train.rows import dataset, write
from tests.train.together import ADAPTED, CASES, recipe, short

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.


def in_two(module: str, *arguments: object) -> None:
    """Run a module in two processes, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = run([*command, "-m", module, *arguments], env=environment, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def together(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What came of two processes."""
    folder = tmp_path_factory.mktemp("together")
    in_two("tests.train.together", tiny_folder, folder)
    return folder


@pytest.fixture(scope="module")
def adapted(tiny_folder: Path) -> Encoder:
    return short(reference.exact(reference.with_lora(Encoder.from_pretrained(tiny_folder))))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def found(folder: Path, rank: int) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / f"found {rank}.json").read_text(encoding="utf-8"))
    return facts


@pytest.mark.parametrize("name", [*CASES, *ADAPTED])
def test_a_step_is_that_of_one_process(together: Path, adapted: Encoder, name: str) -> None:
    if name in CASES:
        objective, examples = CASES[name]
        wanted = TrainStep(adapted, objective).learn(examples, 0)
    else:
        wanted = TrainStep(adapted, InfoNCE()).adapt(ADAPTED[name], 0, mask_probability=0.3, layers=(2, 3))
    gradients = reference.gradients(adapted.model)
    facts = [found(together, rank) for rank in (0, 1)]
    for rank, each in enumerate(facts):
        assert each["world"] == 2
        assert each["learned"][name]["loss"] == pytest.approx(wanted.loss, rel=1e-6)
        assert reference.distance(load_file(together / f"{name} {rank}.safetensors"), gradients) < 1e-5
    for count in ("num_tokens", "num_truncated"):
        assert sum(each["learned"][name][count] for each in facts) == getattr(wanted, count)
    assert wanted.num_truncated or name in ("one row", *ADAPTED)


def test_what_one_process_alone_has_to_refuse_all_refuse(together: Path) -> None:
    for rank in (0, 1):
        assert "each row needs one positive and as many negatives" in found(together, rank)["refusal"]


def test_what_no_process_uses_has_no_gradient(together: Path) -> None:
    assert [found(together, rank)["without"] for rank in (0, 1)] == [["lm_head.weight"]] * 2


def test_distributed_leave_out_different_inputs(together: Path) -> None:
    ours, theirs = found(together, 0)["dropped out"]
    assert ours != pytest.approx(theirs, rel=0.01)
    assert found(together, 1)["dropped out"] == [ours, theirs]


def test_a_run_comes_to_the_weights_of_one_process(together: Path, tiny_folder: Path, tmp_path: Path) -> None:
    alone = train(recipe(str(tiny_folder)), [(dataset(14), 1.0)], tmp_path / "out")
    for name in (CHECKPOINT, f"{MODEL}/model.safetensors"):
        wanted = load_file(tmp_path / "out" / name)
        assert reference.distance(load_file(together / "out" / name), wanted) < 1e-4, name
    ours, theirs = (
        [json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]
        for out in (together / "out", tmp_path / "out")
    )
    for name in ("step", "loss", "grad_norm", "learning_rate"):
        assert [record[name] for record in ours] == pytest.approx([record[name] for record in theirs], rel=1e-4)
    assert ours[-1]["dev"] == pytest.approx(theirs[-1]["dev"], rel=1e-4)
    assert [found(together, rank)["shown"] for rank in (0, 1)] == [[1, 2, 3], []]
    for rank in (0, 1):
        assert found(together, rank)["vector"] == pytest.approx(alone.encode(["Snow"])[0].tolist(), rel=1e-3, abs=1e-4)
    names = [
        sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (together / "out", tmp_path / "out")
    ]
    assert names[0] == names[1]


# Two processes that are stopped or refused


def start(forks: Forks, folder: Path, *arguments: object, blow: Mapping[str, object] | None = None) -> list[int]:
    """Begin two processes that know of each other; their process ids. A blow strikes the first, which writes files.

    Where the blow has a signal, the first sends it to the second.
    """
    port = str(free_port())
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    both: list[int] = []
    for rank in (1, 0):
        ours = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        struck = None if rank or not blow else {**blow, "to": both[0] if "signal" in blow else None}
        both.insert(0, forks.start(*arguments, log=folder / f"{rank}.log", environment=ours, blow=struck))
    return both


def test_one_that_is_asked_to_stop_stops_all(forks: Forks, tiny_folder: Path, tmp_path: Path) -> None:
    data, out = write(tmp_path / "rows.jsonl", 40), tmp_path / "out"
    arguments = ("train", tiny_folder, "--data", data, "-o", out, "--batch-size=2", "--max-steps=15")
    # The call is the first of the checkpoint of step 2: two files were written before, in three calls each.
    both = start(forks, tmp_path, *arguments, "--checkpoint-every=2", blow={"step": 13, "signal": signal.SIGTERM})
    assert [forks.wait(process) for process in both] == [130, 130]
    steps = len((out / METRICS).read_bytes().splitlines())
    assert steps < 15
    assert f"step {steps} of 15 is kept in {out}; the same command resumes." in (tmp_path / "0.log").read_text()
    assert [forks.wait(process) for process in start(forks, tmp_path, *arguments)] == [0, 0]
    assert len((out / METRICS).read_bytes().splitlines()) == 15
    assert [forks.wait(process) for process in start(forks, tmp_path, *arguments, "--seed=3")] == [1, 1]
    for each in (0, 1):
        assert "holds a run with other seed" in (tmp_path / f"{each}.log").read_text().splitlines()[-1]


FAILING = """
import os

from bellm.errors import BellmError
from bellm.train.objectives import InfoNCE
from bellm.train.recipe import LoRA, Recipe

seen = []


def objective(batch):
    seen.append(batch)
    if os.environ["RANK"] == {rank!r} and len(seen) == 3:
        raise BellmError("This batch is not to my taste.")
    return InfoNCE()(batch)


recipe = Recipe(model={model!r}, tuning=LoRA(rank=2), batch_size=4, objective=objective)
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_that_fails_ends_all_with_a_line_each(forks: Forks, tiny_folder: Path, tmp_path: Path, rank: str) -> None:
    recipe, data, out = tmp_path / "recipe.py", write(tmp_path / "rows.jsonl", 40), tmp_path / "out"
    recipe.write_text(FAILING.format(rank=rank, model=str(tiny_folder)), encoding="utf-8")
    both = start(forks, tmp_path, "train", recipe, "--data", data, "-o", out)
    assert [forks.wait(process) for process in both] == [1, 1]
    logs = [(tmp_path / f"{each}.log").read_text().splitlines() for each in (int(rank), 1 - int(rank))]
    assert logs[0] == ["bellm: This batch is not to my taste."]
    assert len(logs[1]) == 1
    assert logs[1][0].startswith(f"bellm: Process {1 - int(rank)} of 2 ends because another one did")
