"""Demonstrations before a prompt: their template, the search for those that help, and what is saved."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from bellm import BellmError, Encoder, Prompt
from bellm.cli import app
from bellm.data import STSPairs
from bellm.demonstrations import (
    Demonstration,
    _Judge,
    _without_shared_beginning,
    find_demonstrations,
    read_candidates,
    with_demonstrations,
)
from bellm.errors import PromptError, SourceError
from bellm.evaluate import EvaluatedModel, score_sts
from bellm.prompts import PROMPTS
from bellm.report.statistics import BootstrapEstimate, bootstrap_estimate, paired_difference
from bellm.tensors.similarity import paired_cosine_similarity

RECIPE = Path(__file__).parents[1] / "recipes" / "demonstrations.csv"

CANDIDATES = (
    Demonstration("A cat naps.", "Nap"),
    Demonstration("Snow fell.", "Snow"),
    Demonstration('He said "no".', "No"),
    Demonstration("A debt was paid.", "Pay"),
)


def rated(number: int) -> STSPairs:
    words = ["heron", "water", "bread", "street", "train", "snow", "bank", "fish", "kitchen", "mat"]
    left = tuple(f"A {words[row % 10]} waits." for row in range(number))
    right = tuple(f"The {words[(row * row) % 10]} is {row % 3}." for row in range(number))
    return STSPairs("pairs", left, right, np.array([float(row * 7 % 5) for row in range(number)]), ("pairs",) * number)


def spearman(encoder: Encoder, pairs: STSPairs) -> float:
    cosines = paired_cosine_similarity(encoder.encode(pairs.left), encoder.encode(pairs.right))
    return float(spearmanr(cosines, pairs.gold_N).statistic) * 100


# Templates


def test_the_template_is_that_of_the_paper() -> None:
    shown = with_demonstrations(PROMPTS["prompteol"], [Demonstration("A jockey rides a horse.", "Equestrian")])
    assert shown.template == (
        'This sentence : "A jockey rides a horse." means in one word:"Equestrian".'
        'This sentence : "{text}" means in one word:"'
    )
    own = with_demonstrations(Prompt("custom", "Sum up {text} as:"), CANDIDATES[2:])
    assert own.template == "Sum up He said 'no'. as:No. Sum up A debt was paid. as:Pay. Sum up {text} as:"
    assert own.name == "custom+2"


def test_templates_of_queries_and_documents_get_them_too() -> None:
    prompt = Prompt("own", "{text} means", query="{text} asks for", document="About {text}:")
    shown = with_demonstrations(prompt, CANDIDATES[1:2])
    assert shown.template_for("text") == "Snow fell. meansSnow. {text} means"
    assert shown.template_for("query") == "Snow fell. asks forSnow. {text} asks for"
    assert shown.template_for("document") == "About Snow fell.:Snow. About {text}:"
    assert with_demonstrations(PROMPTS["prompteol"], CANDIDATES[:1]).query is None
    with pytest.raises(PromptError, match="asks for no word after the text"):
        with_demonstrations(Prompt("own", "{text} means", query="Find {text}"), CANDIDATES[:1])


def test_prompts_without_a_place_for_a_word_are_refused() -> None:
    with pytest.raises(PromptError, match="Prompt 'raw' asks for no word after the text"):
        with_demonstrations(PROMPTS["raw"], CANDIDATES[:1])
    with pytest.raises(PromptError, match="the place of the text itself"):
        with_demonstrations(PROMPTS["prompteol"], [Demonstration("{text}", "Nap")])


# Files


def test_the_recipe_has_a_hundred_candidates() -> None:
    assert len(read_candidates(str(RECIPE))) == 100


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sentence,word\n", "holds no candidates"),
        ("sentence,term\nA cat naps.,Nap\n", "no column 'word' for the word"),
        ("sentence,word\nA cat naps.,\n", r"line 2, word: it is empty"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(SourceError, match=said) as caught:
        read_candidates(str(tmp_path / "c.csv"))
    assert "\n" not in str(caught.value)


# Search


def test_the_best_is_that_of_a_search_by_hand(tiny_encoder: Encoder, tmp_path: Path) -> None:
    encoder, pairs = tiny_encoder.replace(pooling="mean"), rated(24)
    found = find_demonstrations(encoder, CANDIDATES, pairs, cache=tmp_path, resamples=200)
    scores = {
        each: spearman(encoder.replace(prompt=with_demonstrations(PROMPTS["prompteol"], [each])), pairs)
        for each in CANDIDATES
    }
    assert {each.demonstrations[0]: each.score.value for each in found.tried if each.score} == pytest.approx(
        scores, abs=1e-3
    )
    by_score = sorted(scores.values(), reverse=True)
    assert [each.score.value for each in found.tried if each.score] == pytest.approx(by_score, abs=1e-3)
    alone = spearman(encoder, pairs)
    assert found.baseline.value == pytest.approx(alone, abs=1e-3)
    gains = [each.gain.value for each in found.tried if each.gain]
    assert gains == pytest.approx([value - alone for value in by_score], abs=1e-3)


def test_the_one_that_ratings_agree_with_is_found(tiny_encoder: Encoder, tmp_path: Path) -> None:
    pairs, prompt = rated(24), with_demonstrations(PROMPTS["prompteol"], CANDIDATES[1:2])
    shown = tiny_encoder.with_settings(prompt=prompt)
    cosines = paired_cosine_similarity(shown.encode(pairs.left), shown.encode(pairs.right))
    planted = STSPairs("planted", pairs.left, pairs.right, cosines.astype(float), pairs.parts)
    found = find_demonstrations(tiny_encoder, CANDIDATES, planted, cache=tmp_path, resamples=200)
    assert found.best
    assert found.best.score
    assert found.best.gain
    assert found.best.demonstrations == CANDIDATES[1:2]
    assert found.best.score.value == pytest.approx(100)
    assert found.best.gain.value == pytest.approx(100 - found.baseline.value, abs=1e-6)
    assert found.best_prompt == prompt
    assert '"Snow fell." -> Snow: 100.0' in str(found)
    beginning, end = (tiny_encoder.tokenizer(part).input_ids for part in ('This sentence : "', '" means in one word:"'))
    assert found.prompt_cost.tokens == len(beginning) + len(end) - 1  # One <s>.
    added = len(shown.tokenize(["A text."]).ids[0]) - len(tiny_encoder.tokenize(["A text."]).ids[0])
    assert found.cost.tokens - found.prompt_cost.tokens == added > 0
    assert min(found.cost.milliseconds, found.cost.unshared_milliseconds, found.prompt_cost.milliseconds) > 0


def test_p_values_are_corrected_for_those_that_the_sample_sorted_out(tiny_encoder: Encoder, tmp_path: Path) -> None:
    many = [Demonstration(f"Row {index}.", f"Word{index}") for index in range(10)]
    encoder, pairs = tiny_encoder, rated(24)
    shown = encoder.with_settings(prompt=with_demonstrations(PROMPTS["prompteol"], many[:1]))
    gold_N = paired_cosine_similarity(shown.encode(pairs.left), shown.encode(pairs.right)).astype(float)
    pairs = replace(pairs, gold_N=gold_N)  # One that is sure to be better than the prompt alone.
    found = find_demonstrations(encoder, many, pairs, sample=12, cache=tmp_path, resamples=400)

    def estimate(prompt: Prompt) -> BootstrapEstimate:
        result = score_sts(EvaluatedModel.of(encoder.replace(prompt=prompt), "one"), pairs)
        return bootstrap_estimate(result.item_scores_N, result.gold_N, resamples=400)

    baseline = estimate(PROMPTS["prompteol"])
    finals = [each for each in found.tried if each.gain]
    alone = [
        paired_difference(estimate(with_demonstrations(PROMPTS["prompteol"], each.demonstrations)), baseline).p_value
        for each in finals
    ]
    assert len(finals) == 8
    smallest = min(each.gain.p_value for each in finals if each.gain)
    assert smallest < 0.1
    assert smallest == pytest.approx(10 * min(alone), abs=1e-9)


def test_the_sample_is_drawn_from_all_pairs_and_keeps_them_together(tiny_encoder: Encoder, tmp_path: Path) -> None:
    pairs = rated(24)
    some = _Judge(tiny_encoder, tmp_path, 0, 10).sample(pairs, 12)
    rows = list(zip(pairs.left, pairs.right, pairs.gold_N, strict=True))
    drawn = list(zip(some.left, some.right, some.gold_N, strict=True))
    assert len(drawn) == 12
    assert set(drawn) <= set(rows)
    assert set(drawn) != set(rows[:12])
    assert len(_Judge(tiny_encoder, tmp_path, 0, 10).sample(pairs, 100).left) == 24


def test_what_a_shared_beginning_saves_is_measured_on_rows_that_share_none(tiny_encoder: Encoder) -> None:
    tokens = tiny_encoder.tokenize(["A heron waits.", "A heron waits.", "Snow fell."])
    apart = _without_shared_beginning(tokens)
    assert [ids[1:] for ids in apart.ids] == [ids[1:] for ids in tokens.ids]
    assert len({ids[0] for ids in apart.ids}) == 3


def test_no_demonstration_that_helps_leaves_the_prompt_alone(tiny_encoder: Encoder, tmp_path: Path) -> None:
    pairs = rated(24)
    cosines = paired_cosine_similarity(tiny_encoder.encode(pairs.left), tiny_encoder.encode(pairs.right))
    perfect = STSPairs("perfect", pairs.left, pairs.right, cosines.astype(float), pairs.parts)
    found = find_demonstrations(tiny_encoder, CANDIDATES, perfect, cache=tmp_path, resamples=200)
    assert found.best is None
    assert found.best_prompt == PROMPTS["prompteol"]
    assert "No demonstration scores above it." in str(found)


def test_few_pairs_sort_out_and_more_than_one_is_found(tiny_encoder: Encoder, tmp_path: Path) -> None:
    many = [Demonstration(f"Row {index}.", f"Word{index}") for index in range(10)]
    found = find_demonstrations(tiny_encoder, many, rated(24), number=2, sample=12, cache=tmp_path, resamples=100)
    assert len(found.tried) == 10 + 9
    assert sum(each.score is not None for each in found.tried) == 16
    firsts = {each.demonstrations[1] for each in found.tried if len(each.demonstrations) == 2}
    ones = [each for each in found.tried if len(each.demonstrations) == 1 and each.score]
    assert firsts == {ones[0].demonstrations[0]}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"number": 5}, "number=5 is not from 1 to 4"), ({"sample": 1}, "sample=1 is too small")],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(tiny_encoder: Encoder, options: dict[str, int], said: str) -> None:
    with pytest.raises(BellmError, match=said):
        find_demonstrations(tiny_encoder, CANDIDATES, rated(24), **options)


def test_a_candidate_that_leaves_no_room_is_refused_first(tiny_encoder: Encoder, tmp_path: Path) -> None:
    long = Demonstration("Two trains leave the station at noon. " * 20, "Trains")
    with pytest.raises(PromptError, match="leaves no room for the text"):
        find_demonstrations(tiny_encoder, [*CANDIDATES, long], rated(24), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


# Command


def test_the_command_saves_an_encoder_with_the_best_prompt(tiny_folder: Path, tmp_path: Path) -> None:
    pairs = rated(24)
    rows = zip(pairs.left, pairs.right, pairs.gold_N.tolist(), strict=True)
    lines = (json.dumps({"sentence1": left, "sentence2": right, "score": gold}) for left, right, gold in rows)
    (tmp_path / "dev.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(vars(each)) for each in CANDIDATES))
    files = ("--candidates", tmp_path / "c.jsonl", "--dev", tmp_path / "dev.jsonl", "--cache", tmp_path / "cache")
    command = ["demonstrations", tiny_folder, "-o", tmp_path / "shown", *files, "--pooling=mean"]
    result = CliRunner().invoke(app, [*map(str, command), "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    encoder = Encoder.from_pretrained(tmp_path / "shown")
    assert encoder.config.prompt.template == record["template"]
    assert record["best"] is None or record["template"].startswith('This sentence : "')
    assert json.loads((tmp_path / "shown" / "demonstrations.json").read_text()) == record
    again = CliRunner().invoke(app, [*map(str, command)])
    assert (again.exit_code, "exists already" in again.stderr) == (1, True)
