import copy
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.architecture import get_decoder
from bellm.data import sts
from bellm.data.sts import STSPairs
from bellm.engine import padded
from bellm.errors import BellmError
from bellm.layer_search.layer_stats import Degradation, measure_degradation, measure_layers
from bellm.layer_search.turning import TurningPoint
from bellm.report.statistics import Score
from bellm.tensors.similarity import paired_cosine_similarity
from tests.evaluate.sets import write_pairs


@pytest.fixture
def dev(tmp_path: Path) -> STSPairs:
    write_pairs(tmp_path, "dev", 60)
    return sts.read_sts("STSBenchmark-dev", tmp_path)


@pytest.mark.parametrize("pooling", ["last", "mean-text"])
def test_scores_are_those_of_models_with_fewer_layers(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, dev: STSPairs, tmp_path: Path, pooling: str
) -> None:
    encoder = Encoder.from_pretrained(tiny_model, tokenizer=tiny_tokenizer, bidirectional="first:2", pooling=pooling)  # type: ignore[arg-type]
    found = measure_degradation(encoder, dev, tmp_path / "cache")
    assert len(found.scores) == 4
    for depth, score in enumerate(found.scores, 1):
        cut = copy.deepcopy(tiny_model)
        get_decoder(cut).layers = get_decoder(cut).layers[:depth]
        cut.config.num_hidden_layers = depth
        short = Encoder.from_pretrained(cut, tokenizer=tiny_tokenizer, pooling=pooling)  # type: ignore[arg-type]
        item_scores_N = paired_cosine_similarity(short.encode(dev.left), short.encode(dev.right))
        assert score.value == pytest.approx(100 * spearmanr(item_scores_N, dev.gold_N).statistic, abs=0.1)
        assert score.low < score.value < score.high
        assert score.n == 60


def test_what_was_computed_is_not_computed_again(
    tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    found = measure_degradation(tiny_encoder, dev, tmp_path / "cache", done=counts.append)
    assert sum(counts) == len(set(zip(dev.left, dev.right, strict=True)))
    rows: list[int] = []
    vectors = padded.PaddedRunner.vectors

    def counted(self: padded.PaddedRunner, numbers: list[int]) -> object:
        rows.extend(numbers)
        return vectors(self, numbers)

    monkeypatch.setattr(padded.PaddedRunner, "vectors", counted)
    assert measure_degradation(tiny_encoder, dev, tmp_path / "cache") == found
    assert 0 < len(rows) <= 4  # The fingerprint's.
    other = measure_degradation(tiny_encoder.replace(pooling="mean"), dev, tmp_path / "cache")
    assert len(rows) > 60
    assert other.scores != found.scores


def test_shorter_vectors_have_the_cosines_of_their_first_numbers(
    tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path
) -> None:
    short = tiny_encoder.replace(truncate_dim=5)
    found = measure_degradation(short, dev, tmp_path)
    causal = short.replace(bidirectional="none")
    item_scores_N = paired_cosine_similarity(causal.encode(dev.left), causal.encode(dev.right))
    assert found.scores[-1].value == pytest.approx(100 * spearmanr(item_scores_N, dev.gold_N).statistic, abs=0.1)


def test_a_long_list_is_scored_part_by_part(
    tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_degradation(tiny_encoder, dev, tmp_path / "one")
    monkeypatch.setattr("bellm.layer_search.layer_stats._PART", 7)
    in_parts = measure_degradation(tiny_encoder, dev, tmp_path / "other")
    np.testing.assert_allclose(
        [score.value for score in in_parts.scores], [score.value for score in whole.scores], atol=0.1
    )


def test_the_rule_opens_the_layers_after_the_turning_point() -> None:
    scores = (Score("", 50, 49, 51, 10),) * 32
    assert Degradation(scores, TurningPoint(31, 30, 31, 0.01)).rule == "last:1"
    assert Degradation(scores, TurningPoint(20, 18, 22, 0.01)).rule == "last:12"
    assert Degradation(scores, TurningPoint(None, None, None, 1.0, "flat")).rule is None


TEXTS = ["A heron waits at the river.", "The invoice was paid twice by mistake.", ""]


def test_dependency_is_the_mean_correlation_of_the_last_state_with_the_others(tiny_encoder: Encoder) -> None:
    found = measure_layers(tiny_encoder.replace(prompt="raw"), TEXTS)  # The empty text is one token, without another.
    assert found.num_texts == 2
    assert len(found.dependency) == len(found.looks_ahead) == 4
    means = []
    with tiny_encoder.causal() as model:
        for text in TEXTS[:2]:
            states_LD = model.model(**tiny_encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0].detach()
            means.append(np.mean([spearmanr(states_LD[-1], other).statistic for other in states_LD[:-1]]))
    assert found.dependency[-1] == pytest.approx(100 * np.mean(means), abs=1e-3)


def test_shares_are_percent_of_attention(tiny_encoder: Encoder) -> None:
    shares = measure_layers(tiny_encoder, TEXTS).looks_ahead
    assert all(share is not None and 1 < share < 99 for share in shares)
    assert measure_layers(tiny_encoder.replace(bidirectional="none"), TEXTS).looks_ahead == shares


def test_texts_of_one_token_say_nothing_and_those_of_two_something(tiny_encoder: Encoder) -> None:
    assert measure_layers(tiny_encoder.replace(prompt="raw"), ["A", ""]).num_texts == 1
    with pytest.raises(BellmError, match="None of 1 texts has 2 tokens"):
        measure_layers(tiny_encoder.replace(prompt="raw"), [""])
