"""Values in a file: nothing is computed twice, whatever a stop left behind."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bellm.augment.kept_values import KeptValues
from bellm.errors import SourceError


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    path, computed = tmp_path / "new" / "values.jsonl", list[int]()
    keys = [f"key {number % 150}" for number in range(200)]

    def compute(rows: Sequence[int]) -> list[list[float]]:
        if len(computed) > 100:
            raise KeyboardInterrupt
        computed.extend(rows)
        return [[row + 0.1] for row in rows]

    with pytest.raises(KeyboardInterrupt):
        KeptValues(path).values(keys, compute)
    assert computed == list(range(128))
    path.write_text(path.read_text()[:-30])  # The last line is cut short.
    computed.clear()
    done: list[int] = []
    found = KeptValues(path).values(keys, compute, done.append)
    assert computed[0] == 127
    assert len(computed) == 23
    assert done == [127, 23]
    assert found[127] == [127.1]
    assert found[160] == found[10] == [10.1]
    computed.clear()
    assert KeptValues(path).values(keys, compute) == found
    assert computed == []


def test_what_cannot_be_written_or_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        KeptValues(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be written"):
        KeptValues(tmp_path / "file" / "values.jsonl").values(["a"], lambda rows: [1])
