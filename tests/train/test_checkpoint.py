"""The state of training in a file: what comes back, what is refused, and what is on the disk."""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bellm.errors import SourceError
from bellm.train.trainable import load_checkpoint, save_checkpoint

ROWS = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
PROGRESS = {"step": 2, "best": 0.5, "best_step": 1, "num_truncated": 0}


def network() -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def optimiser_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    model(ROWS).square().sum().backward()
    optimiser.step()


def state(model: nn.Module, optimiser: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for each in model.parameters() for _, value in sorted(optimiser.state[each].items())]
    return [*model.parameters(), *moments]


def test_training_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    model = network()
    optimiser = optimiser_of(model)
    for _ in range(2):
        step(model, optimiser)
    save_checkpoint(tmp_path / "file", dict(model.named_parameters()), optimiser, PROGRESS)
    other = network()
    resumed = optimiser_of(other)
    assert load_checkpoint(tmp_path / "file", dict(other.named_parameters()), resumed) == PROGRESS
    for _ in range(3):
        step(model, optimiser)
        step(other, resumed)
    assert len(state(model, optimiser)) == 4 + 4 * 3
    assert all(map(torch.equal, state(other, resumed), state(model, optimiser)))


def test_weights_alone(tmp_path: Path) -> None:
    model, other = network(), network()
    step(model, optimiser_of(model))
    save_checkpoint(tmp_path / "file", dict(model.named_parameters()), None, PROGRESS)
    parameter = other[0].weight
    load_checkpoint(tmp_path / "file", dict(other.named_parameters()), None)
    assert all(map(torch.equal, other.parameters(), model.parameters()))
    assert other[0].weight is parameter  # In place: an optimiser or a twin may hold it.


def test_what_has_not_learned_yet_has_no_moments(tmp_path: Path) -> None:
    model, other = network(), network()
    optimiser = optimiser_of(model)
    model[2].requires_grad_(False)
    step(model, optimiser)
    save_checkpoint(tmp_path / "file", dict(model.named_parameters()), optimiser, PROGRESS)
    resumed = optimiser_of(other)
    load_checkpoint(tmp_path / "file", dict(other.named_parameters()), resumed)
    assert [len(resumed.state[each]) for each in other.parameters()] == [3, 3, 0, 0]


def test_dtypes_and_shapes_come_back(tmp_path: Path) -> None:
    weights = {"half": nn.Parameter(torch.randn(2, 3).bfloat16().T), "number": nn.Parameter(torch.tensor(3.0))}
    wanted = copy.deepcopy(weights)
    save_checkpoint(tmp_path / "file", weights, None, PROGRESS)
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
    load_checkpoint(tmp_path / "file", weights, None)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten", "of another model", "not there"])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, damage: str) -> None:
    path, model = tmp_path / "file", network()
    save_checkpoint(path, dict(model.named_parameters()), optimiser_of(model), PROGRESS)
    whole = path.read_bytes()
    if damage == "not there":
        path.unlink()
    elif damage == "of another model":
        save_checkpoint(path, {"other": nn.Parameter(torch.zeros(3))}, None, PROGRESS)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "emptied": b"", "overwritten": b"x" * len(whole)}[damage])
    with pytest.raises(SourceError, match=r"file cannot be read \(.+\)\. Remove it to begin anew\.") as refusal:
        load_checkpoint(path, dict(network().named_parameters()), None)
    assert "\n" not in str(refusal.value)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "file", {"weight": nn.Parameter(torch.zeros(3))}, None, PROGRESS)
    with pytest.raises(SourceError, match="cannot be read"):
        load_checkpoint(tmp_path / "file", {"weight": nn.Parameter(torch.zeros(2, 2))}, None)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path, model = tmp_path / "file", network()
    save_checkpoint(path, dict(model.named_parameters()), None, PROGRESS)
    before = path.read_bytes()
    draft = tmp_path / f".file-{os.getpid()}.part"
    draft.mkdir()  # In the way.
    with pytest.raises(SourceError, match="file cannot be written"):
        save_checkpoint(path, dict(model.named_parameters()), None, PROGRESS)
    assert path.read_bytes() == before


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    save_checkpoint(tmp_path / "file", dict(network().named_parameters()), None, PROGRESS)
    assert (tmp_path / "file").stat().st_ino in synced[:-1]
    assert synced[-1] == tmp_path.stat().st_ino
