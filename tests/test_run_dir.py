"""Whose a folder is."""

import json
from pathlib import Path

import pytest

from bellm.errors import SourceError
from bellm.run_dir import (
    BEST,
    CHECKPOINT,
    METRICS,
    MODEL,
    RUN,
    check_config,
    lock_run_dir,
    refuse_foreign_folder,
)

OURS = {"steps": 3, "data": {"rows": 5}, "seed": 1}


def test_a_new_folder_is_begun_and_known_again(tmp_path: Path) -> None:
    check_config(tmp_path, OURS)
    (tmp_path / CHECKPOINT).touch()
    check_config(tmp_path, dict(OURS))
    with pytest.raises(SourceError, match=r"holds a run with other seed \(seed was 1, is 2\)"):
        check_config(tmp_path, {**OURS, "seed": 2})
    with pytest.raises(SourceError, match=r"holds a run with other data \(data\.rows was 5, is 6\)"):
        check_config(tmp_path, {**OURS, "data": {"rows": 6}})


def test_where_nothing_was_kept_another_run_begins(tmp_path: Path) -> None:
    check_config(tmp_path, OURS)
    (tmp_path / BEST).touch()
    check_config(tmp_path, {**OURS, "seed": 2})
    assert json.loads((tmp_path / RUN).read_text())["seed"] == 2
    assert not (tmp_path / BEST).exists()


@pytest.mark.parametrize("kept", [MODEL, CHECKPOINT])
def test_what_is_of_no_run_is_not_taken_for_ours(kept: str, tmp_path: Path) -> None:
    (tmp_path / kept).mkdir()
    with pytest.raises(SourceError, match=f"holds '{kept}' and no run.json"):
        check_config(tmp_path, OURS)


@pytest.mark.parametrize("text", ['{"of": "another program"}', "3", "no JSON", "[]"])
def test_a_file_of_the_same_name_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / RUN).write_text(text)
    with pytest.raises(SourceError, match=r"run\.json cannot be used: .+ Choose another folder"):
        check_config(tmp_path, OURS)
    assert (tmp_path / RUN).read_text() == text


def test_one_run_at_a_time(tmp_path: Path) -> None:
    other = lock_run_dir(tmp_path)
    with lock_run_dir(tmp_path), pytest.raises(SourceError, match="Another run is training in"):
        other.__enter__()
    with lock_run_dir(tmp_path):
        pass


def test_a_folder_in_which_nothing_was_learned_is_left_as_it_was(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path / "new"):
        check_config(tmp_path / "new", OURS)
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with lock_run_dir(tmp_path / "old"):
        check_config(tmp_path / "old", OURS)
    assert list((tmp_path / "old").iterdir()) == []
    with lock_run_dir(tmp_path / "old"):
        check_config(tmp_path / "old", OURS)
        (tmp_path / "old" / METRICS).write_text("{}\n")
    assert {RUN, METRICS} <= {path.name for path in (tmp_path / "old").iterdir()}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    refuse_foreign_folder(tmp_path / "new")
    (tmp_path / ".lock").touch()
    (tmp_path / "tensorboard").mkdir()
    refuse_foreign_folder(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SourceError, match=r"is no run directory: it holds 'thesis\.tex'\. Choose another folder"):
        refuse_foreign_folder(tmp_path)
    check_config(tmp_path, OURS)
    refuse_foreign_folder(tmp_path)
