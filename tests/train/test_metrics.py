"""Metrics where TensorBoard finds them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bellm.train.metrics import TensorBoardLog


def test_tensorboard_reads_what_was_logged_and_steps_taken_again_count_once(tmp_path: Path) -> None:
    first = TensorBoardLog(tmp_path)
    for step in (1, 2, 3):
        first(step, 4, {"step": step, "loss": 1 / step, "dev": 0.5 if step == 2 else None})
    second = TensorBoardLog(tmp_path)
    second(3, 4, {"step": 3, "loss": 9.0, "dev": None})
    second(4, 4, {"step": 4, "loss": 0.25, "dev": 0.75})
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    assert set(log.Tags()["scalars"]) == {"loss", "dev"}
    assert [(each.step, each.value) for each in log.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 9.0), (4, 0.25)]
    assert [(each.step, each.value) for each in log.Scalars("dev")] == [(2, 0.5), (4, 0.75)]


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    TensorBoardLog(tmp_path / "log")
    assert not (tmp_path / "log").exists()
