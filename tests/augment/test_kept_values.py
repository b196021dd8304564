"""Values in a file: nothing is computed twice, whatever a stop left behind."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bellm.augment.kept_values import KeptValues
from bellm.errors import SourceError


def is_list(value: object) -> bool:
    return isinstance(value, list)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    path, computed = tmp_path / "new" / "values.jsonl", list[int]()
    keys = [f"key {number % 150}" for number in range(200)]

    def compute(rows: Sequence[int]) -> list[list[float]]:
        if len(computed) > 100:
            raise KeyboardInterrupt
        computed.extend(rows)
        return [[row + 0.1] for row in rows]

    with pytest.raises(KeyboardInterrupt):
        KeptValues(path, is_list).values(keys, compute)
    assert computed == list(range(128))
    path.write_text(path.read_text()[:-30])  # The last line is cut short.
    computed.clear()
    done: list[int] = []
    found = KeptValues(path, is_list).values(keys, compute, done.append)
    assert computed[0] == 127
    assert len(computed) == 23
    assert done == [127, 23]
    assert found[127] == [127.1]
    assert found[160] == found[10] == [10.1]
    computed.clear()
    assert KeptValues(path, is_list).values(keys, compute) == found
    assert computed == []


@pytest.mark.parametrize("spoiled", ['{"key": "a", "value": 5}', '{"key": ["a"], "value": [1]}', "[]", "{}", "5", "\0"])
def test_what_is_no_value_is_computed_anew(spoiled: str, tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    path.write_text(spoiled + '\n{"key": "b", "value": [2]}\n')
    found = KeptValues(path, is_list).values(["a", "b"], lambda rows: [[row] for row in rows])
    assert found == [[0], [2]]
    assert KeptValues(path, is_list).values(["a", "b"], lambda rows: []) == found


def test_what_cannot_be_written_or_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        KeptValues(tmp_path, is_list)
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be written"):
        KeptValues(tmp_path / "file" / "values.jsonl", is_list).values(["a"], lambda rows: [1])
