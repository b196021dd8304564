import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.data import sts
from bellm.data.sts import STSPairs
from bellm.errors import BellmError, SourceError
from bellm.layer_search.candidates import Candidate, CandidateScores, make_layer_sets, score_candidates
from bellm.layer_search.halving_rounds import (
    HalvingPlan,
    HalvingResult,
    HalvingRound,
    RoundResult,
    TrainedCandidate,
    plan_halving,
)
from bellm.layer_search.layer_text import halving_table, summarize_candidates, summarize_training
from bellm.layer_search.successive_halving import run_halving
from bellm.layer_spec import parse_layers
from bellm.report import statistics
from bellm.report.statistics import Difference, Score
from bellm.run_dir import CHECKPOINT, METRICS, MODEL, Interrupted
from bellm.tensors.similarity import paired_cosine_similarity
from bellm.train.loop import train
from bellm.train.recipe import LoRA, Recipe
from tests.evaluate.sets import write_pairs
from tests.layer_search.planted import on_topics, trained_to_see, write_topics
from tests.layer_search.test_layer_text import lines
from tests.report.comparison import compare_scores
from tests.train.rows import dataset

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.

SAME = Difference(0, 0, 0, 1)
SPECS = ("none", "all", "first:2", "1", "2", "first:1")


# The plan


def candidate(spec: str, value: float, *, moved: float | None = None, no_op: str | None = None) -> Candidate:
    score = Score("", value, value - 1, value + 1, 9)
    return Candidate(spec, parse_layers(spec, 30), score, SAME, SAME, value / 1000 if moved is None else moved, no_op)


def searched(*candidates: Candidate) -> CandidateScores:
    ends = [candidate("none", 60, moved=0), candidate("all", 5)]
    order = sorted([*ends, *candidates], key=lambda one: -one.score.value)
    return CandidateScores("T", 30, tuple(order))


def steps(count: int) -> Recipe:
    return Recipe(max_steps=count)


def names(planned: HalvingPlan) -> list[str]:
    return [one.name for one in planned.candidates]


def test_eight_maps_of_every_kind_the_rule_among_them() -> None:
    found = searched(
        *(candidate(spec, 70 - place) for place, spec in enumerate(("7", "8", "9", "last:2", "last:4", "first:2"))),
        candidate("10-19", 30),
        candidate("every:2", 20),
        candidate("last:3", 10),
    )
    assert names(plan_halving(found, None, steps(64))) == [
        "causal",
        "all",
        "layer 7",
        "layer 8",
        "last:2",
        "first:2",
        "10-19",
        "every:2",
    ]
    with_rule = names(plan_halving(found, "last:3", steps(64)))
    assert with_rule == ["causal", "all", "layer 7", "last:2", "first:2", "10-19", "every:2", "last:3"]


def test_what_changes_nothing_or_nothing_else_is_not_trained() -> None:
    found = searched(
        candidate("28", 65, moved=0.25),
        candidate("28-29", 64.9998, moved=0.250002),  # The same vectors but for rounding.
        candidate("27", 65, moved=0.5),
        candidate("29", 60, moved=0, no_op="why"),
        candidate("none", 70, moved=0.125),  # Token Prepending opens no layer.
    )
    assert names(plan_halving(found, "28-29", steps(64))) == ["causal", "all", "layer 28", "layer 27"]
    assert names(plan_halving(found, "29", steps(64))) == ["causal", "all", "layer 28", "layer 27"]


def test_steps_double_and_maps_halve_to_two_besides_the_baselines() -> None:
    six = searched(*(candidate(str(layer), 50 - layer) for layer in range(9)))
    planned = plan_halving(six, None, steps(64))
    assert planned.rounds == (HalvingRound(8, 16), HalvingRound(5, 32), HalvingRound(4, 64))
    assert planned.steps == 8 * 16 + 5 * 16 + 4 * 32
    assert planned.budget == (
        "8 maps to step 16, 5 to 32, 4 to 64 (causal and all open stay to the end): 336 steps of 64 rows"
    )
    assert [each.steps for each in plan_halving(six, None, steps(50)).rounds] == [13, 25, 50]
    assert [each.steps for each in plan_halving(six, None, steps(4)).rounds] == [1, 2, 4]
    with pytest.raises(BellmError, match=r"3 steps cannot be halved for 3 rounds of 8 maps\. Give 4 or more\."):
        plan_halving(six, None, steps(3))
    three = searched(*(candidate(str(layer), 50 - layer) for layer in range(3)))
    assert plan_halving(three, None, steps(64)).rounds == (HalvingRound(5, 32), HalvingRound(4, 64))
    assert plan_halving(searched(candidate("3", 50)), None, steps(64)).rounds == (HalvingRound(3, 64),)
    assert plan_halving(searched(), None, steps(64)).rounds == (HalvingRound(2, 64),)


def test_where_no_map_changes_anything_there_is_nothing_to_train() -> None:
    causal, everything = candidate("none", 60, moved=0), candidate("all", 60, moved=0, no_op="why")
    with pytest.raises(BellmError, match=r"nothing to train\. Leave --train out"):
        plan_halving(CandidateScores("T", 30, (causal, everything)), None, steps(64))


# The search


class Tried:
    """A search on a tiny model, in whatever folder."""

    def __init__(self, model: Path, encoder: Encoder, folder: Path) -> None:
        write_pairs(folder / "data", "dev", 60)
        self.dev = sts.read_sts("STSBenchmark-dev", folder / "data")
        maps = {spec: parse_layers(spec, 4) for spec in SPECS}
        self.untrained = score_candidates(
            encoder.replace(pooling="mean"), self.dev, maps, folder / "cache", resamples=50
        )
        settings = {"pooling": "mean", "prompt": "raw"}
        self.recipe = Recipe(
            model=str(model),
            encoder_options=settings,
            tuning=LoRA(rank=2),
            batch_size=4,
            max_steps=6,
            learning_rate=2e-2,
        )

    def run(self, out: Path, rows: int = 10, dev: STSPairs | None = None, **changes: object) -> HalvingResult:
        told = changes.pop("progress", lambda *_: None)
        recipe = replace(self.recipe, **changes)  # type: ignore[arg-type]
        planned = plan_halving(self.untrained, None, recipe)
        sources = [(dataset(rows), 1.0)]
        return run_halving(planned, recipe, sources, dev or self.dev, out, resamples=200, progress=told)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tried(tiny_folder: Path, tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(tiny_folder, tiny_encoder, tmp_path_factory.mktemp("tried"))


@pytest.fixture(scope="module")
def undisturbed(tried: Tried, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HalvingResult]:
    out = tmp_path_factory.mktemp("undisturbed") / "runs"
    return out, tried.run(out)


def folder_of(out: Path, one: TrainedCandidate) -> Path:
    return out / one.name.replace(":", "-").replace(" ", "-")


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]


def test_every_round_keeps_the_better_half_and_the_baselines(undisturbed: tuple[Path, HalvingResult]) -> None:
    out, found = undisturbed
    assert found.rounds == (HalvingRound(6, 3), HalvingRound(4, 6))
    assert len(found.candidates) == 6
    assert {one.bidirectional for one in found.candidates} == set(SPECS)
    left = [one for one in found.candidates if one.left]
    assert [one.left for one in found.candidates] == [None] * 4 + [1] * 2
    assert {"none", "all"} <= {one.bidirectional for one in found.candidates if not one.left}
    stayed = [one for one in found.candidates if not one.left and one.bidirectional not in ("none", "all")]
    assert min(one.rounds_done[0].score.value for one in stayed) >= max(one.last.score.value for one in left)
    for group in (found.candidates[:4], found.candidates[4:]):
        values = [one.last.score.value for one in group]
        assert values == pytest.approx(sorted(values, reverse=True), abs=0.01)
    assert found.best == next(one for one in found.candidates if one.open_layers)
    for one in found.candidates:
        assert [round_result.steps for round_result in one.rounds_done] == [3, 6][: len(one.rounds_done)]
        assert len(metrics(folder_of(out, one))) == one.last.steps
        assert (folder_of(out, one) / MODEL).exists() == (one.left is None)


def test_all_maps_have_the_same_budget(undisturbed: tuple[Path, HalvingResult]) -> None:
    out, found = undisturbed
    records = [json.loads((folder_of(out, one) / "run.json").read_text()) for one in found.candidates]
    maps = [record["encoder_options"].pop("bidirectional") for record in records]
    assert sorted(maps) == ["0", "0-1", "0-3", "1", "2", "none"]
    assert all(record == records[0] for record in records)
    rates = [[record["learning_rate"] for record in metrics(folder_of(out, one))] for one in found.candidates]
    assert all(each == rates[0][: len(each)] for each in rates)
    assert len({record[0]["loss"] for record in (metrics(folder_of(out, one)) for one in found.candidates)}) == 6


def test_who_comes_to_the_end_is_as_if_trained_alone(
    tried: Tried, undisturbed: tuple[Path, HalvingResult], tmp_path: Path
) -> None:
    out, found = undisturbed
    one = found.best
    settings = {**tried.recipe.encoder_options, "bidirectional": list(one.open_layers)}
    alone = train(replace(tried.recipe, encoder_options=settings, epochs=9), [(dataset(10), 1.0)], tmp_path / "alone")
    left, right = (load_file(run / CHECKPOINT) for run in (folder_of(out, one), tmp_path / "alone"))
    assert all((left[key] == right[key]).all() for key in left)
    cosines = paired_cosine_similarity(alone.encode(tried.dev.left), alone.encode(tried.dev.right))
    again = statistics.bootstrap_estimate(cosines.astype(np.float64), tried.dev.gold_N, resamples=200)
    assert one.last.score.value == pytest.approx(again.value, abs=0.1)
    assert (one.last.score.low, one.last.score.high) == pytest.approx((again.low, again.high), abs=0.5)


def test_differences_are_to_baselines_of_as_many_steps_and_corrected_for_all_maps(
    tried: Tried, undisturbed: tuple[Path, HalvingResult]
) -> None:
    out, found = undisturbed

    def cosines(one: TrainedCandidate, steps: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array(json.loads(Path(f"{folder_of(out, one)}-dev-{steps}.json").read_text())["items"])

    everything = next(one for one in found.candidates if one.bidirectional == "all")
    for number, steps in enumerate((3, 6)):
        there = [one for one in found.candidates if len(one.rounds_done) > number]
        for baseline, name in ((found.causal, "over_causal"), (everything, "over_all")):
            alone = {
                one.name: compare_scores(cosines(one, steps), cosines(baseline, steps), tried.dev.gold_N, resamples=200)
                for one in there
                if one is not baseline
            }
            smallest = min(each.p_value for each in alone.values())
            corrected = [getattr(one.rounds_done[number], name) for one in there if one is not baseline]
            assert min(each.p_value for each in corrected) == pytest.approx(min(1, 5 * smallest))
            for one in there:
                gain = getattr(one.rounds_done[number], name)
                if one is baseline:
                    assert (gain.value, gain.low, gain.high, gain.p_value) == (0, 0, 0, 1)
                else:
                    wanted = alone[one.name]
                    assert (gain.value, gain.low, gain.high) == (wanted.value, wanted.low, wanted.high)


class Stop(Exception):
    """Something that ends a search anywhere."""


@pytest.mark.slow
def test_wherever_it_is_stopped_it_goes_on_to_the_same_end(
    tried: Tried, undisturbed: tuple[Path, HalvingResult], tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    total = 6 * 3 + 4 * 3
    begun: list[int] = []
    for moment in (2, 18, 29):

        def stop(what: str, done: int, of: int, moment: int = moment) -> None:
            assert of == total
            begun.append(done)
            if done >= moment:
                raise Stop(what)

        with pytest.raises(Stop, match=r"^(causal|all|first:\d|layer \d), round [12] of 2$"):
            tried.run(out, progress=stop)
    assert begun[0] == 0
    told: list[int] = []
    assert tried.run(out, progress=lambda _what, done, _of: told.append(done)) == undisturbed[1]
    assert told == sorted(told)
    assert told[-1] == total
    assert min(told) > 20  # What was trained is not trained again.
    told.clear()
    assert tried.run(out, progress=lambda _what, done, _of: told.append(done)) == undisturbed[1]
    assert told == []


def test_ctrl_c_between_two_trainings_is_said_to_be_kept(
    tried: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bellm.layer_search.successive_halving.score_sts", stop)
    with pytest.raises(Interrupted, match=r"what .*/runs holds is kept; the same command resumes"):
        tried.run(tmp_path / "runs")


@pytest.fixture
def known(undisturbed: tuple[Path, HalvingResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed[0], tmp_path / "known"))


def test_another_search_in_the_same_folder_is_refused(tried: Tried, known: Path) -> None:
    refused = r"known holds a search with other {} \({}[\w.]* was .*\)\. Choose another folder, or remove it\."
    for changes, named in (
        ({"max_steps": 8}, "max_steps, rounds"),
        ({"batch_size": 3}, "batch_size"),
        ({"rows": 9}, "data"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"dev": replace(tried.dev, gold_N=tried.dev.gold_N[::-1].copy())}, "dev"),
    ):
        with pytest.raises(SourceError, match=refused.format(named, named.split(",")[0])):
            tried.run(known, **changes)  # type: ignore[arg-type]
    assert {one.name for one in known.iterdir() if one.is_dir()} == {
        "all",
        "causal",
        "first-1",
        "first-2",
        "layer-1",
        "layer-2",
    }


def test_a_search_that_kept_nothing_gives_way_to_a_corrected_one(tried: Tried, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        tried.run(tmp_path / "runs", max_steps=8, progress=_stop_at_once)
    with pytest.raises(Stop):
        tried.run(tmp_path / "runs", progress=_stop_at_once)
    assert json.loads((tmp_path / "runs" / "search.json").read_text())["max_steps"] == 6


def _stop_at_once(*_: object) -> None:
    raise Stop


def test_a_folder_that_is_damaged_is_one_line(tried: Tried, known: Path) -> None:
    scored = known / "causal-dev-3.json"
    scored.write_text(scored.read_text()[:-9])
    with pytest.raises(SourceError, match=r"dev-3\.json cannot be read .* Remove it to score .*/causal again"):
        tried.run(known)
    (known / "search.json").write_text("[]")
    with pytest.raises(SourceError, match="known holds runs of no search"):
        tried.run(known)
    (known / "search.json").unlink()
    with pytest.raises(SourceError, match="known holds runs of no search"):
        tried.run(known)


# What is said


def round_result(steps: int, value: float, p_value: float) -> RoundResult:
    score, gain = Score("", value, value - 2, value + 2, 9), Difference(value - 80, value - 81, value - 79, p_value)
    return RoundResult(steps, score, gain, Difference(value - 60, value - 62, value - 58, p_value))


def halving(value: float, p_value: float) -> HalvingResult:
    candidates = (
        TrainedCandidate(
            "last:8", "last:8", tuple(range(22, 30)), (round_result(8, 70, 1), round_result(16, value, p_value)), None
        ),
        TrainedCandidate("causal", "none", (), (round_result(8, 70, 1), round_result(16, 80, 1)), None),
        TrainedCandidate("all", "all", tuple(range(30)), (round_result(8, 60, 1), round_result(16, 60, 0.001)), None),
        TrainedCandidate("layer 3", "3", (3,), (round_result(8, 75, 1),), 1),
    )
    return HalvingResult("T", ("ours",), "said before", (HalvingRound(4, 8), HalvingRound(3, 16)), 64, 42, candidates)


def test_the_summary_says_what_it_is_worth() -> None:
    assert summarize_training(halving(82, 0.04)) == (
        "After 16 steps of 64 rows, best on T is last:8: 82.0, +2.0 points over causal (95 % interval 1.0 to 3.0, p = "
        "0.040), corrected for 3 maps. Train with --bidirectional last:8. Each map was trained once, so that intervals "
        "are over pairs and not over trainings, and it was chosen on these very pairs: train it and causal with other "
        "seeds, and score them on other pairs, before you believe its lead."
    )
    unsure = summarize_training(halving(82, 0.06))
    assert unsure.startswith(
        "After 16 steps of 64 rows, no map beats causal on T, which scores 80.0. The best, last:8, is"
    )
    assert unsure.endswith("Each map was trained once, so that intervals are over pairs and not over trainings.")
    assert "no map beats causal" in summarize_training(halving(78, 0.001))


def test_the_table_has_every_map_where_it_left() -> None:
    found = lines(halving_table(halving(82, 0.04)))
    half, up, minus = "\N{PLUS-MINUS SIGN} 2.0", "\N{BLACK UP-POINTING TRIANGLE}", "\N{MINUS SIGN}"
    assert found[0] == "trained steps score over causal interval p over all"
    assert found[1] == f"last:8 16 82.0 {half} {up} +2.0 1.0 to 3.0 0.040 +22.0"
    assert found[2] == f"causal 16 80.0 {half} +20.0"
    assert found[4] == f"layer 3 8 75.0 {half} {minus}5.0 {minus}6.0 to {minus}4.0 1.000 +15.0"
    assert "correction for 3 maps" in " ".join(found)
    assert asdict(halving(82, 0.04))["candidates"][3]["left"] == 1


# The layer that a model was trained to look ahead in


@pytest.mark.filterwarnings("ignore:pooling='first' reads")
@pytest.mark.filterwarnings("ignore:An input array is constant")  # The same vector for every text, while closed.
@pytest.mark.slow
def test_the_layer_that_was_trained_to_see_is_found(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encoder = trained_to_see(2, tiny_model, tiny_tokenizer, tmp_path)
    encoder.save_pretrained(tmp_path / "closed")
    write_topics(tmp_path / "data", 100, seed=99)
    dev = sts.read_sts("STSBenchmark-dev", tmp_path / "data")
    untrained = score_candidates(encoder, dev, make_layer_sets(encoder), tmp_path / "cache")
    assert untrained.causal.score.value == 0
    best = untrained.candidates[0]
    assert best.open_layers == (2,)
    assert best.over_causal.value > 50
    assert best.over_causal.p_value < 0.05
    assert summarize_candidates(untrained).startswith("Best on STSBenchmark-dev is layer 2: ")

    recipe = Recipe(model=str(tmp_path / "closed"), batch_size=6, max_steps=8)
    planned = plan_halving(untrained, None, recipe)
    found = run_halving(planned, recipe, [(on_topics(60, seed=7), 1.0)], dev, tmp_path / "runs")
    assert found.best.open_layers == (2,)
    assert found.best.last.over_causal.p_value < 0.05
    assert re.match(
        r"After 8 steps of 6 rows, best on STSBenchmark-dev is layer 2: \d\d\.\d, \+", summarize_training(found)
    )
    assert found.causal.last.score.value == 0  # It has nothing to learn from.
