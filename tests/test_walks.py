"""The walks of docs/architecture.md, on real calls: every file is entered, and none calls back into an earlier one."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import bellm
from bellm import Encoder
from bellm.evaluate import EvaluatedModel, evaluate
from bellm.train import Recipe, load_dataset, train

from .conftest import CORPUS

PACKAGE = Path(bellm.__file__).parent
ARCHITECTURE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")

NO_STEPS = ("<module>", "<lambda>", "__init__", "__post_init__", "__len__", "done")


def walk(title: str) -> list[str]:
    section = ARCHITECTURE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)


def file_of(frame: FrameType) -> str | None:
    path = frame.f_code.co_filename
    return str(Path(path).relative_to(PACKAGE)) if path.startswith(str(PACKAGE)) else None


def reports_or_reads(frame: FrameType) -> bool:
    """Whether a call makes or reads an object, or moves a progress bar, rather than doing a step."""
    name, owner = frame.f_code.co_name, type(frame.f_locals.get("self"))
    return name in NO_STEPS or isinstance(getattr(owner, name, None), property)


@contextmanager
def traced() -> Iterator[set[tuple[str | None, str, str]]]:
    """Calls between files of the package: file that calls, file that is called, function."""
    calls: set[tuple[str | None, str, str]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> None:
        called = file_of(frame) if event == "call" else None
        if called is None:
            return
        caller = frame.f_back
        # What `Distributed.broadcast` runs in one process for all, its own caller has asked for.
        while caller is not None and (file_of(caller) is None or caller.f_code.co_name == "broadcast"):
            caller = caller.f_back
        calling = caller and file_of(caller)
        if calling != called and not reports_or_reads(frame):
            calls.add((calling, called, frame.f_code.co_name))

    sys.setprofile(trace)
    threading.setprofile(trace)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def check_walk(title: str, call: Callable[[], object]) -> None:
    files = walk(title)
    with traced() as calls:
        call()
    assert set(files) - {called for _, called, _ in calls} == set()
    steps = {file: step for step, file in enumerate(files)}
    back = [each for each in calls if each[0] in steps and each[1] in steps and steps[each[1]] < steps[each[0]]]
    assert back == []


def test_from_text_to_vector(tiny_encoder: Encoder) -> None:
    normalizing = tiny_encoder.replace(normalize=True)
    averaging = tiny_encoder.replace(pooling="mean", normalize=True)

    def encode() -> None:
        for encoder in (normalizing, averaging):
            encoder.encode(CORPUS)

    encode()  # The check of packing runs the model too, once.
    check_walk("Text to vector", encode)


def test_the_score_of_a_task(tiny_encoder: Encoder, data: Path, tmp_path: Path) -> None:
    model = EvaluatedModel.of(tiny_encoder, "tiny", tmp_path)
    check_walk("One task's score", lambda: evaluate([model], ["STSBenchmark"], data=data))


def test_a_training_step(tiny_encoder: Encoder, tmp_path: Path) -> None:
    rows = [f"{CORPUS[0]} {n},{CORPUS[3]} {n},{CORPUS[5]} {n}".replace(", ", " ") for n in range(8)]
    (tmp_path / "triplets.csv").write_text("\n".join(["anchor,positive,negative", *rows]))
    data = load_dataset(tmp_path / "triplets.csv")
    recipe = Recipe(model=tiny_encoder, batch_size=4)
    check_walk("One training step", lambda: train(recipe, data, tmp_path / "run"))
