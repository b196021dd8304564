"""Hard negatives that are mined once, before the first step of a run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bellm import Encoder
from bellm.errors import BellmError, SourceError
from bellm.run_dir import CHECKPOINT, METRICS, MINED, RUN
from bellm.train import Dataset, Example, LoRA, Recipe, mine_hard_negatives, train
from bellm.train.examples import mark_symmetric
from tests.train.rows import triplets

# A text may hold what other formats take for the end of a line.
PAIRS = [replace(row, positives=(f"{row.positives[0]}\u2028Yes.",), negatives=()) for row in triplets(12)]


@pytest.fixture
def recipe(tiny_folder: Path) -> Recipe:
    options = {"prompt": "instruct", "pooling": "mean"}
    return Recipe(model=str(tiny_folder), encoder_options=options, tuning=LoRA(rank=2), batch_size=2, mine=1)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / METRICS).read_text().splitlines()]


def mined(out: Path) -> list[list[str]]:
    return [json.loads(line) for line in (out / MINED).read_text(encoding="utf-8").splitlines()[1:]]


def test_the_untrained_encoder_mines_queries_against_documents(recipe: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    train(recipe, [(Dataset("pairs", PAIRS), 1.0)], tmp_path / "out", notify=said.append)
    encoder = Encoder.from_pretrained(recipe.model, **recipe.encoder_options)
    wanted = mine_hard_negatives(PAIRS, encoder.encode_document, num_negatives=1, encode_anchors=encoder.encode_query)
    assert mined(tmp_path / "out") == [list(row.negatives) for row in wanted.examples]
    assert wanted.num_found
    (sentence,) = said
    assert sentence.startswith(f"mined {wanted.num_found} hard negatives for 12 rows with the untrained encoder")
    (count,) = re.findall(r"(\d+) rows got fewer", sentence)
    assert int(count) == wanted.num_short


def test_a_run_with_mined_negatives_is_one_with_the_same_negatives_given(recipe: Recipe, tmp_path: Path) -> None:
    ours = train(recipe, [(Dataset("pairs", PAIRS), 1.0)], tmp_path / "mined")
    rows = [replace(row, negatives=tuple(own)) for row, own in zip(PAIRS, mined(tmp_path / "mined"), strict=True)]
    theirs = train(replace(recipe, mine=None), [(Dataset("pairs", rows), 1.0)], tmp_path / "given")
    assert losses(tmp_path / "mined") == losses(tmp_path / "given")
    assert (ours.encode(["A heron waits."]) == theirs.encode(["A heron waits."])).all()
    plain, config = (json.loads((tmp_path / name / RUN).read_text())["data"] for name in ("given", "mined"))
    assert plain == config


def test_a_resumed_run_does_not_mine_again(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [(Dataset("pairs", PAIRS), 1.0)]
    whole = train(recipe, sources, tmp_path / "whole")
    train(recipe, sources, tmp_path / "out", until=1)
    kept = (tmp_path / "out" / MINED).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("bellm.train.mining.mine_hard_negatives", lambda *_, **__: pytest.fail("mined again"))
        said: list[str] = []
        resumed = train(recipe, sources, tmp_path / "out", notify=said.append)
    assert said == []
    assert (tmp_path / "out" / MINED).read_bytes() == kept
    assert np.array_equal(whole.encode(["Snow"]), resumed.encode(["Snow"]))
    assert losses(tmp_path / "whole") == losses(tmp_path / "out")


def test_other_data_or_another_number_is_refused_where_a_run_has_a_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(recipe, [(Dataset("pairs", PAIRS), 1.0)], out, until=1)
    kept = (out / MINED).read_bytes()
    with pytest.raises(SourceError, match=r"other mine \(mine was 1, is 2\)"):
        train(replace(recipe, mine=2), [(Dataset("pairs", PAIRS), 1.0)], out)
    with pytest.raises(SourceError, match="other mine"):
        train(replace(recipe, mine=None), [(Dataset("pairs", PAIRS), 1.0)], out)
    with pytest.raises(SourceError, match="other data"):
        train(recipe, [(Dataset("pairs", PAIRS[:9]), 1.0)], out)
    assert (out / MINED).read_bytes() == kept
    (out / CHECKPOINT).unlink()
    train(recipe, [(Dataset("pairs", PAIRS[:9]), 1.0)], out)
    assert len(mined(out)) == 9


def test_rated_rows_stay_and_rows_of_texts_keep_their_negatives_in_turn(recipe: Recipe, tmp_path: Path) -> None:
    rated = Dataset("rated", [Example(f"text {at}", (f"other {at}",), score=at / 8) for at in range(8)])
    texts = [mark_symmetric([f"{row.anchor}", *row.positives]) for row in PAIRS]
    train(recipe, [(rated, 1.0), (Dataset("texts", texts), 1.0)], tmp_path / "out")
    assert len(mined(tmp_path / "out")) == 12
    turned = replace(texts[0], negatives=("no",)).rotate(1)
    assert (turned.anchor, turned.positives, turned.negatives) == (PAIRS[0].positives[0], (PAIRS[0].anchor,), ("no",))
    with pytest.raises(BellmError, match="without scores"):
        train(recipe, [(rated, 1.0)], tmp_path / "rated")
