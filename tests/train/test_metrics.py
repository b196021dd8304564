"""Metrics where TensorBoard finds them."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bellm.train.metrics import MetricsLog, TensorBoardLog, training_card


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


def test_what_is_no_record_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [{"step": step, "loss": 0.5, "dev": None} for step in (1, 2, 3)]
    junk = [b"\xff\xfe", b"[1, 2]", b"null", b'{"step": 2}', b'{"step": "x", "loss": 1, "dev": null}', b"7", b"", b"{"]
    lines = [json.dumps(record).encode() for record in good]
    path.write_bytes(b"\n".join([junk[0], lines[0], *junk[1:], lines[1], lines[2], b'{"step": 4, "lo']))
    log = MetricsLog(path, 2)
    assert log.records() == good[:2]
    log.add(good[2])
    assert log.records() == good
    assert path.read_bytes() == b"".join(line + b"\n" for line in lines)


def test_a_card_shows_no_folders() -> None:
    config = {
        "model": "/home/ada/models/base",
        "encoder_options": {"prompt": "Say: {text}", "device": "cpu"},
        "objective": "InfoNCE(guide='runs/b/model', dims=(8, 16))",
        "dev": "DevEvaluator(task='pairs.csv', data='~/data')",
        "data": {"sources": [{"name": "owner/pairs"}]},
    }
    card = training_card(config, {"best": None, "num_truncated": 0}, [{"step": 1, "loss": 0.5, "dev": None}])
    assert "| model | `base` |" in card
    assert "{'prompt': 'Say: {text}', 'device': 'cpu'}" in card
    assert "InfoNCE(guide='model', dims=(8, 16))" in card
    assert "data='data'" in card
    assert "owner/pairs" in card
