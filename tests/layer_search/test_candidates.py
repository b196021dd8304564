import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from tokenizers import processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import BellmError, Encoder, MultiViewEncoder
from bellm.data import sts
from bellm.data.sts import STSPairs
from bellm.errors import NoOpWarning
from bellm.evaluate import EvaluatedModel
from bellm.layer_search import find_layers
from bellm.layer_search.candidates import (
    Candidate,
    CandidateScores,
    make_layer_sets,
    prepending_depths,
    score_candidates,
)
from bellm.layer_search.layer_stats import Degradation
from bellm.layer_search.layer_text import summarize_candidates, summarize_turning_point
from bellm.layer_search.turning import TurningPoint
from bellm.layer_spec import parse_layers
from bellm.report.statistics import Difference, Score
from bellm.saving import parameters_digest
from bellm.tensors.similarity import paired_cosine_similarity
from tests.conftest import train_tokenizer
from tests.decoders import decoder, with_tokens_of
from tests.evaluate.sets import write_pairs
from tests.layer_search.planted import mixing_in
from tests.report.comparison import compare_scores


@pytest.fixture
def dev(tmp_path: Path) -> STSPairs:
    write_pairs(tmp_path, "dev", 60)
    return sts.read_sts("STSBenchmark-dev", tmp_path)


def test_the_maps_of_four_layers(tiny_encoder: Encoder) -> None:
    assert make_layer_sets(tiny_encoder) == {
        "none": (),
        "all": (0, 1, 2, 3),
        "last:1": (3,),
        "last:2": (2, 3),
        "first:1": (0,),
        "first:2": (0, 1),
        "1": (1,),
        "every:2": (1, 3),
        "2": (2,),
    }
    assert "last:3" not in make_layer_sets(tiny_encoder)
    assert make_layer_sets(tiny_encoder, ["last:3"])["last:3"] == (1, 2, 3)


def test_the_middle_third_is_a_map(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    deeper = LlamaForCausalLM(LlamaConfig(**{**tiny_model.config.to_dict(), "num_hidden_layers": 6}))
    assert make_layer_sets(Encoder.from_pretrained(deeper, tokenizer=tiny_tokenizer))["2-3"] == (2, 3)


def test_layers_without_attention_stay_out(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = copy.deepcopy(decoder("jamba"))
    model.resize_token_embeddings(len(tiny_tokenizer))
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer)
    maps = make_layer_sets(encoder)
    openable = set(maps["all"])
    assert openable < set(range(encoder.num_layers))
    assert all(set(layers) <= openable and (layers or spec == "none") for spec, layers in maps.items())
    assert len(set(maps.values())) == len(maps)


@pytest.mark.filterwarnings("ignore:pooling='first' reads")
@pytest.mark.filterwarnings("ignore:An input array is constant")  # The same vector for every text.
@pytest.mark.parametrize("layer", [0, 2])
def test_the_layer_that_helps_is_found(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    dev: STSPairs,
    tmp_path: Path,
    layer: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "bellm.encoder.check_open_layers", lambda *_: None
    )  # It sees that the other layers mix nothing.
    encoder = mixing_in(layer, tiny_model, tiny_tokenizer)
    found = score_candidates(encoder, dev, make_layer_sets(encoder), tmp_path / "cache")
    best = found.candidates[0]
    assert best.open_layers == (layer,)
    assert best.score.value > 30
    assert best.over_causal.p_value < 0.05
    for one in found.candidates:
        if layer in one.open_layers:
            assert one.score.value == pytest.approx(best.score.value, abs=0.5)
        else:
            assert one.score.value == 0
            assert one.over_causal == Difference(0, 0, 0, 1)
    assert summarize_candidates(found).startswith(f"Best on STSBenchmark-dev is {best.name}: ")
    assert f"Open it with --bidirectional {best.bidirectional};" in summarize_candidates(found)


@pytest.mark.filterwarnings("ignore:Opening only layer 3 changes nothing")
def test_a_map_opens_layers_in_all_views(
    tiny_encoder: Encoder, tiny_tokenizer: PreTrainedTokenizerFast, dev: STSPairs, tmp_path: Path
) -> None:
    parts, weights = [tiny_encoder.replace(pooling="mean"), tiny_encoder.replace(prompt="raw")], (1, 0.5)
    views = MultiViewEncoder(parts, weights=weights)
    maps = {spec: parse_layers(spec, 4) for spec in ("none", "all", "first:2", "3")}
    found = score_candidates(views, dev, maps, tmp_path / "cache", resamples=100)
    assert (found.num_layers, prepending_depths(views), make_layer_sets(views)["last:2"]) == (4, (4,), (2, 3))
    for one in found.candidates:
        opened = [part.replace(bidirectional=one.open_layers or "none") for part in parts]
        sides = (MultiViewEncoder(opened, weights=weights).encode(side) for side in (dev.left, dev.right))
        wanted = 100 * spearmanr(paired_cosine_similarity(*sides), dev.gold_N).statistic
        assert one.score.value == pytest.approx(wanted, abs=0.1)
        assert one.no_op is None  # With the last token layer 3 is one, and the mean sees it.
    last = MultiViewEncoder([part.replace(pooling="last") for part in parts])
    assert score_candidates(last, dev, maps, tmp_path / "cache", resamples=100).find("3").no_op
    deeper = Encoder.from_pretrained(with_tokens_of(tiny_tokenizer, "lfm3"), tokenizer=tiny_tokenizer)
    with pytest.raises(BellmError, match=r"same layers in all views, and the encoders of .* have \[4, 6\] layers"):
        make_layer_sets(MultiViewEncoder([tiny_encoder, deeper]))
    with pytest.raises(BellmError, match=r"several views: --method search .* take one encoder, as in FOLDER/view-1"):
        find_layers(views, dev)


def test_scores_and_differences_are_those_of_the_encoders(tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(pooling="mean")
    maps = {spec: parse_layers(spec, 4) for spec in ("none", "all", "first:2", "2")}
    found = score_candidates(encoder, dev, maps, tmp_path / "cache", resamples=300)
    assert len(found.candidates) == len(maps)
    items = {}
    for spec in maps:
        vectors = (encoder.replace(bidirectional=spec).encode(side) for side in (dev.left, dev.right))
        items[spec] = paired_cosine_similarity(*vectors).astype(np.float64)
    for one in found.candidates:
        assert one.open_layers == parse_layers(one.bidirectional, 4)
        assert one.no_op is None
        wanted = 100 * spearmanr(items[one.bidirectional], dev.gold_N).statistic
        assert one.score.value == pytest.approx(wanted, abs=0.1)
        for difference, baseline in ((one.over_causal, "none"), (one.over_all, "all")):
            alone = compare_scores(items[one.bidirectional], items[baseline], dev.gold_N, resamples=300)
            assert difference.value == pytest.approx(alone.value, abs=0.2)
            assert difference.low == pytest.approx(alone.low, abs=0.5)
            assert difference.p_value >= min(1, alone.p_value - 0.02)
    smallest = min(one.over_causal.p_value for one in found.tested)
    alone = [compare_scores(items[one.bidirectional], items["none"], dev.gold_N, resamples=300) for one in found.tested]
    assert smallest == pytest.approx(min(1, len(found.tested) * min(one.p_value for one in alone)), rel=0.3)
    values = [one.score.value for one in found.candidates]
    assert values == pytest.approx(sorted(values, reverse=True), abs=0.01)


def test_the_last_layer_with_the_last_token_is_causal_to_the_bit(
    tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path
) -> None:
    maps = {spec: parse_layers(spec, 4) for spec in ("none", "all", "last:1", "last:2")}
    found = score_candidates(tiny_encoder, dev, maps, tmp_path / "cache", resamples=200)
    no_op = found.find("last:1")
    assert no_op.no_op is not None
    assert "changes nothing with last-token pooling" in no_op.no_op
    assert no_op.score == found.causal.score
    assert no_op.over_causal == Difference(0.0, 0.0, 0.0, 1.0)
    assert [one.bidirectional for one in found.candidates if one.no_op] == ["last:1"]
    assert no_op not in found.tested
    assert summarize_candidates(found).endswith("A no-op, exactly causal: last:1.")
    by_mean = score_candidates(
        tiny_encoder.replace(pooling="mean"), dev, {"none": (), "all": (0, 1, 2, 3), "last:1": (3,)}, tmp_path
    )
    assert by_mean.find("last:1").over_causal.value != 0


def test_beside_the_stack_no_layer_leaves_the_causal_vectors(
    tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path
) -> None:
    encoder = tiny_encoder.replace(variant="parallel")
    found = score_candidates(encoder, dev, {"none": (), "all": (0, 1, 2, 3), "last:1": (3,)}, tmp_path, resamples=200)
    last = found.find("last:1")
    assert last.no_op is None
    assert last.moved > 1e-3
    with pytest.warns(NoOpWarning, match=r"Opening only layer 3 .* \(The vectors are not the causal model's"):
        alone = encoder.replace(bidirectional="last:1")
    item_scores_N = paired_cosine_similarity(*(alone.encode(side) for side in (dev.left, dev.right))).astype(np.float64)
    assert last.score.value == pytest.approx(100 * spearmanr(item_scores_N, dev.gold_N).statistic, abs=0.1)


def test_prepending_is_judged_beside_the_maps(tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path) -> None:
    maps = {"none": (), "all": (0, 1, 2, 3)}
    told: list[tuple[str, int, int]] = []
    found = score_candidates(
        tiny_encoder, dev, maps, tmp_path, depths=(2, 4), resamples=300, progress=lambda *news: told.append(news)
    )
    assert told == [("none", 0, 4), ("all", 1, 4), ("prepending:2", 2, 4), ("prepending:4", 3, 4)]
    assert {one.name for one in found.candidates} == {"causal", "all", "prepending:2", "prepending:4"}
    assert {one.name for one in found.tested} == {"all", "prepending:2", "prepending:4"}
    assert found.causal.is_causal
    causal = tiny_encoder.replace(bidirectional="none")
    plain = paired_cosine_similarity(causal.encode(dev.left), causal.encode(dev.right)).astype(np.float64)
    smallest = []
    for depth in (2, 4):
        [one] = [each for each in found.candidates if each.prepending == depth]
        assert (one.bidirectional, one.open_layers, one.no_op, one.is_causal) == ("none", (), None, False)
        prepending = causal.replace(token_prepending=depth)
        items = paired_cosine_similarity(prepending.encode(dev.left), prepending.encode(dev.right)).astype(np.float64)
        assert one.score.value == pytest.approx(100 * spearmanr(items, dev.gold_N).statistic, abs=0.1)
        alone = compare_scores(items, plain, dev.gold_N, resamples=300)
        assert one.over_causal.value == pytest.approx(alone.value, abs=0.2)
        assert one.over_causal.p_value >= min(1, alone.p_value - 0.02)
        assert one.moved > 1e-3
        smallest.append(one)
    assert smallest[0].moved != smallest[1].moved


def test_layers_are_looked_at_without_prepending(tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path) -> None:
    prepending = tiny_encoder.replace(bidirectional="none", token_prepending=2)
    found = find_layers(prepending, dev, methods=["profile"], cache=tmp_path)
    assert found.metadata["token_prepending"] == 0
    assert found.layer_stats == find_layers(tiny_encoder, dev, methods=["profile"], cache=tmp_path).layer_stats


def test_the_depths_are_those_that_the_model_has(
    tiny_encoder: Encoder, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepending_depths(tiny_encoder) == (4,)
    for num_layers, depths in ((1, ()), (2, (2,)), (6, (4, 6)), (30, (4, 8))):
        monkeypatch.setattr(Encoder, "num_layers", num_layers)
        assert prepending_depths(tiny_encoder) == depths


@pytest.mark.filterwarnings("ignore:pooling='first' reads")
@pytest.mark.filterwarnings("ignore:An input array is constant")  # The same vector for every text.
def test_prepending_is_found_where_it_helps(
    tiny_model: LlamaForCausalLM, dev: STSPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts begin with the same word, and only their first token is read: the placeholder, once the layers run."""
    monkeypatch.setattr(
        "bellm.encoder.check_open_layers", lambda *_: None
    )  # It sees that the other layers mix nothing.
    tokenizer = train_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    encoder = mixing_in(0, tiny_model, tokenizer)
    alike = replace(
        dev, left=tuple(f"Why {text}" for text in dev.left), right=tuple(f"Why {text}" for text in dev.right)
    )
    found = score_candidates(encoder, alike, {"none": (), "all": (0, 1, 2, 3), "1": (1,)}, tmp_path, depths=(1, 2, 4))
    scores = {one.name: one.score.value for one in found.candidates}
    assert scores["causal"] == scores["layer 1"] == scores["prepending:1"] == 0
    assert min(scores["prepending:2"], scores["prepending:4"]) > 30
    assert all(one.over_causal.p_value < 0.05 for one in found.candidates if one.prepending > 1)


def test_a_second_run_embeds_nothing(
    tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = {"none": (), "all": (0, 1, 2, 3), "first:2": (0, 1)}
    told: list[tuple[str, int, int]] = []
    found = score_candidates(
        tiny_encoder,
        dev,
        maps,
        tmp_path / "cache",
        depths=(4,),
        resamples=200,
        progress=lambda *news: told.append(news),
    )
    assert told == [("none", 0, 4), ("all", 1, 4), ("first:2", 2, 4), ("prepending:4", 3, 4)]
    known = Encoder.encode_with_stats

    def few(self: Encoder, texts: list[str], **options: Any) -> object:
        assert len(texts) <= 4, "only the fingerprint's texts"
        return known(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode_with_stats", few)
    assert score_candidates(tiny_encoder, dev, maps, tmp_path / "cache", depths=(4,), resamples=200) == found


def planted(spec: str, value: float, p_value: float) -> Candidate:
    gain = Difference(value - 60, value - 62, value - 58, p_value)
    return Candidate(spec, parse_layers(spec, 30), Score("", value, 0, 0, 9), gain, gain, 0, None)


def test_the_summary_may_be_that_nothing_beats_causal() -> None:
    causal = planted("none", 60, 1)
    worse = CandidateScores("T", 30, (causal, planted("last:2", 59.2, 0.5), planted("all", 10, 0.001)))
    assert summarize_candidates(worse) == (
        "No candidate beats causal on T, which scores 60.0. The best, last:2, is \N{MINUS SIGN}0.8 points over causal "
        "(95 % interval \N{MINUS SIGN}2.8 to 1.2, p = 0.500), corrected for 2 candidates."
    )
    unsure = CandidateScores("T", 30, (planted("all", 61, 0.3), causal))
    assert summarize_candidates(unsure).startswith("No candidate beats causal on T")
    sure = CandidateScores("T", 30, (planted("all", 63, 0.04), causal))
    assert summarize_candidates(sure).startswith(
        "Best on T is all: 63.0, +3.0 points over causal (95 % interval 1.0 to 5.0, p = 0.04"
    )
    nothing = replace(planted("all", 60, 1), no_op="why")
    assert summarize_candidates(CandidateScores("T", 30, (causal, nothing))) == (
        "No candidate can change these vectors. A no-op, exactly causal: all."
    )


def test_the_summary_says_what_prepending_is_and_how_to_use_it() -> None:
    prepending = replace(planted("none", 63, 0.04), prepending=8)
    found = CandidateScores("T", 30, (prepending, planted("all", 61, 0.3), planted("none", 60, 1)))
    assert summarize_candidates(found) == (
        "Best on T is prepending:8: 63.0, +3.0 points over causal (95 % interval 1.0 to 5.0, p = 0.040), corrected "
        "for 2 candidates. It opens no layer: before each of the layers 2 to 8, a placeholder in front of the text "
        "is given the last token's state (Token Prepending). Use it with --token-prepending 8; it was chosen on these "
        "pairs, so score it on others before you believe its lead."
    )
    assert "--bidirectional" not in summarize_candidates(found)
    assert found.causal.score.value == found.find("none").score.value == 60
    unsure = CandidateScores(
        "T", 30, (replace(prepending, over_causal=Difference(3, -1, 7, 0.2)), *found.candidates[1:])
    )
    assert summarize_candidates(unsure).startswith(
        "No candidate beats causal on T, which scores 60.0. The best, prepending:8, is"
    )


def test_the_rule_of_the_paper_is_judged_too() -> None:
    scores = (Score("", 60, 59, 61, 9),) * 30
    turned = Degradation(scores, TurningPoint(27, 26, 28, 0.01))
    causal, opened = planted("none", 60, 1), planted("all", 20, 0.001)
    found = CandidateScores("T", 30, (causal, planted("last:3", 59, 0.7), opened))
    assert summarize_turning_point(turned, found) == (
        "Turning point: 27 of 30 layers (95 % interval 26 to 28). The paper's rule opens the layers after it, last:3: "
        "\N{MINUS SIGN}1.0 points over causal (95 % interval \N{MINUS SIGN}3.0 to 1.0, p = 0.700)."
    )
    no_op = CandidateScores("T", 30, (causal, replace(planted("last:1", 60, 1), no_op="why"), opened))
    assert summarize_turning_point(Degradation(scores, TurningPoint(29, 28, 29, 0.01)), no_op).endswith(
        "last:1: a no-op."
    )
    straight = Degradation(scores, TurningPoint(None, None, None, 1.0, "it is straight"))
    assert (
        summarize_turning_point(straight, found) == "No turning point: it is straight. The paper's rule opens nothing."
    )


def test_weights_are_identified_once_for_all_candidates(
    tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []

    def recorded(module: Any) -> str:
        read.append(module)
        return parameters_digest(module)

    monkeypatch.setattr("bellm.saving.parameters_digest", recorded)
    encoder = tiny_encoder.replace(pooling="mean")
    maps = make_layer_sets(encoder)
    score_candidates(encoder, dev, maps, tmp_path / "cache", depths=(2,), resamples=200)
    assert len(read) == 1
    files = {path.name for path in (tmp_path / "cache").iterdir()}
    for layers in maps.values():  # The caches are those that `bellm evaluate` looks for.
        EvaluatedModel.of(encoder.replace(bidirectional=layers), None, tmp_path / "cache")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == files
