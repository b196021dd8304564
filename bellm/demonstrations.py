"""Demonstrations: worked examples before a prompt, and the search for those that help (PromptEOL, arXiv 2307.16645).

A demonstration is the prompt's own template with a sentence in its slot and a word as the answer. All texts begin with
it, so that packed batches compute it once in the causal layers.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bellm.data import STSPairs
from bellm.encoder import Encoder
from bellm.engine.embedding import embed_tokens
from bellm.engine.packing_check import check_packing
from bellm.engine.readout import make_readout
from bellm.engine.tokenization import Tokens, fallback_token_id
from bellm.errors import BellmError, PromptError, SourceError, check_encoder
from bellm.evaluate import EvaluatedModel, TaskResult, default_cache_folder, read_dev_set, score_sts
from bellm.io.formats import find_column, is_blank, text_problem
from bellm.io.rows import RowFile
from bellm.prompts import SLOT, Prompt
from bellm.report import statistics
from bellm.report.formatting import format_interval, format_p_value, format_points, format_score
from bellm.report.statistics import BootstrapEstimate, Difference, Score
from bellm.saving import weights_digest

SAMPLE = 200
"""Pairs by which all candidates are judged, before the best are judged by all pairs."""

_FINALISTS = 8
_TIMED_TEXTS, _ROUNDS = 64, 3
_PARTS = ("sentence", "word")


@dataclass(frozen=True)
class Demonstration:
    """A sentence, and the word that says what it means."""

    sentence: str
    word: str


@dataclass(frozen=True)
class ScoredDemonstrations:
    """Demonstrations that were tried together, the last of them nearest to the text."""

    demonstrations: tuple[Demonstration, ...]
    on_sample: float
    """Spearman's correlation times 100 on the sample of pairs."""
    score: Score | None = None
    """Score on all pairs; None of those that the sample sorted out."""
    gain: Difference | None = None
    """Score minus that of the prompt alone; p-values are corrected for all that were tried."""


@dataclass(frozen=True)
class PromptCost:
    """What a prompt costs, measured on some of the pairs' texts."""

    tokens: int
    """Tokens of the prompt itself."""
    milliseconds: float
    """Of one text, as `encode` runs them: what all begin with computed once where the model can be packed."""
    unshared_milliseconds: float
    """Of one text among texts that begin differently, so that each computes its prompt."""


@dataclass(frozen=True)
class DemonstrationSearch:
    """What a search over demonstrations found."""

    task: str
    prompt: Prompt
    """The prompt alone."""
    baseline: Score
    tried: tuple[ScoredDemonstrations, ...]
    """Best first: those that were scored on all pairs, then the others by their score on the sample."""
    best: ScoredDemonstrations | None
    """None where no demonstration scores above the prompt alone."""
    cost: PromptCost
    """Of the best, or of the prompt alone where there is none."""
    prompt_cost: PromptCost
    """Of the prompt alone."""
    seconds: float

    @property
    def best_prompt(self) -> Prompt:
        """The prompt with the best demonstrations, or alone where none helps."""
        return with_demonstrations(self.prompt, self.best.demonstrations) if self.best else self.prompt

    def to_json(self) -> dict[str, Any]:
        """All fields, and the template of the best prompt."""
        return {**asdict(self), "template": self.best_prompt.template}

    def __str__(self) -> str:
        tried = f"{len(self.tried)} candidates on {self.task} in {self.seconds:.0f} s. Prompt alone: "
        tried += f"{format_score(self.baseline)}. "
        if self.best is None:
            return f"{tried}No demonstration scores above it."
        assert self.best.score
        assert self.best.gain
        shown = ", ".join(f'"{each.sentence}" -> {each.word}' for each in self.best.demonstrations)
        gain = f"{format_points(self.best.gain.value, signed=True)} points, {format_interval(self.best.gain)}, "
        gain += format_p_value(self.best.gain.p_value)
        costs = f"{self.cost.tokens} tokens, {self.cost.milliseconds:.1f} ms a text "
        costs += f"({self.cost.unshared_milliseconds:.1f} if each computes them)"
        return (
            f"{tried}Best: {shown}: {format_score(self.best.score)} ({gain} corrected for all that were tried; the "
            f"choice was made on these pairs, so test it on others). It costs {costs}; the prompt alone "
            f"{self.prompt_cost.tokens} tokens, {self.prompt_cost.milliseconds:.1f} ms."
        )


def read_candidates(path: str) -> tuple[Demonstration, ...]:
    """Read candidates, each once: a table, or JSON Lines, with the columns sentence and word.

    Raises:
        SourceError: It cannot be read, lacks a column, or a row lacks a sentence or word.
    """
    names: dict[str, str] = {}

    def select(columns: Sequence[str]) -> list[str]:
        names.update({part: find_column(columns, part, part) for part in _PARTS})
        return list(names.values())

    found: dict[Demonstration, None] = {}
    for row in RowFile(path).rows(select, strict=True, skip_blank=True):
        if not isinstance(row.cells, dict):
            raise SourceError(f"{path}, {row.location}: it has no columns. Give the columns sentence and word.")
        cells = [row.cells[names[part]] for part in _PARTS]
        for part, cell in zip(_PARTS, cells, strict=True):
            if problem := text_problem(cell) or (is_blank(str(cell)) and "it is empty."):
                raise SourceError(f"{path}, {row.location}, {part}: {problem}")
        found[Demonstration(*map(str, cells))] = None
    if not found:
        raise SourceError(f"{path} holds no candidates. Give rows with a sentence and a word.")
    return tuple(found)


def with_demonstrations(prompt: Prompt, demonstrations: Sequence[Demonstration]) -> Prompt:
    """Put demonstrations before a prompt, as PromptEOL does: its template with a sentence, the word, then the template.

    Double quotes of a sentence become single ones, because templates put it in double ones.

    >>> from bellm.prompts import PROMPTS
    >>> with_demonstrations(PROMPTS["bellm"], [Demonstration("A jockey rides.", "Equestrian")]).template[:67]
    'The representative word for sentence A jockey rides. is:"Equestrian'

    Raises:
        PromptError: The template ends with the text, and leaves no place for a word.
    """
    if any(SLOT in (each.sentence + each.word) for each in demonstrations):
        raise PromptError(f"A demonstration holds {SLOT}, the place of the text itself.")

    def shown(template: str) -> str:
        if not template.partition(SLOT)[2].strip():
            raise PromptError(
                f"Prompt {prompt.name!r} asks for no word after the text. Demonstrate another: prompteol."
            )
        end = '".' if template.endswith('"') else ". "
        beginning = "".join(
            template.replace(SLOT, each.sentence.replace('"', "'")) + each.word.replace('"', "'") + end
            for each in demonstrations
        )
        return beginning + template

    query, document = (None if each is None else shown(each) for each in (prompt.query, prompt.document))
    return Prompt(f"{prompt.name}+{len(demonstrations)}", shown(prompt.template), query, document)


def find_demonstrations(
    encoder: Encoder | Callable[[], Encoder],
    candidates: Sequence[Demonstration],
    dev: str | STSPairs = "STSBenchmark-dev",
    *,
    number: int = 1,
    sample: int = SAMPLE,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    resamples: int = 4000,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> DemonstrationSearch:
    """Put every candidate before the encoder's prompt, and find the one that scores best on rated pairs.

    All are judged by a sample of the pairs, the best few by all pairs. More than one is found one after the other: the
    next stands before those that were chosen.

    Args:
        encoder: Its prompt alone is the baseline; or a function that loads one, called once the data is there.
        candidates: Demonstrations to try.
        dev: Rated pairs that the choice is made by; or what `read_dev_set` takes.
        number: How many demonstrations to find.
        sample: Pairs by which all candidates are judged.
        data: Folder of data sets; None for `BELLM_DATA`, else the Hub.
        cache: Folder that keeps vectors; None for the one that `bellm evaluate` uses.
        seed: Of the sample and the bootstrap.
        resamples: Bootstrap replicates.
        progress: Called with what is done, how many candidates are done, and how many there are.

    Raises:
        BellmError: The data does not fit, the prompt asks for no word, or a candidate leaves no room for a text.
    """
    check_encoder(encoder, Encoder)
    if not 1 <= number <= len(candidates):
        raise BellmError(f"number={number} is not from 1 to {len(candidates)}, the number of candidates.")
    if sample < 3:
        raise BellmError(f"sample={sample} is too small: give at least 3 pairs.")
    pairs = read_dev_set(dev, Path(data) if data else None) if isinstance(dev, str) else dev
    encoder = encoder() if callable(encoder) else encoder
    prompt = encoder.config.prompt
    for candidate in candidates:  # What would fail after hours fails now.
        encoder.with_settings(prompt=with_demonstrations(prompt, [candidate] * number)).tokenize(["A text."])
    start = time.perf_counter()
    judge = _Judge(encoder, Path(cache) if cache else default_cache_folder(), seed, resamples)
    few = judge.sample(pairs, sample)
    baseline = judge.estimate(pairs, ())
    total, chosen = len(candidates) * number, tuple[Demonstration, ...]()
    on_sample: dict[tuple[Demonstration, ...], float] = {}
    estimates: dict[tuple[Demonstration, ...], BootstrapEstimate] = {}
    for _ in range(number):
        tried = [(candidate, *chosen) for candidate in candidates if candidate not in chosen]
        for demonstrations in tried:
            progress("demonstrations", len(on_sample), total)
            on_sample[demonstrations] = judge.estimate(few, demonstrations, resamples=1).value
        finalists = sorted(tried, key=lambda each: -on_sample[each])[:_FINALISTS]
        for demonstrations in finalists:
            progress("the best on all pairs", len(on_sample), total)
            estimates[demonstrations] = judge.estimate(pairs, demonstrations)
        chosen = max(finalists, key=lambda each: estimates[each].value)
    gains = _gains(estimates, baseline, len(on_sample))
    scored = [
        ScoredDemonstrations(
            demonstrations,
            value,
            judge.score(estimates[demonstrations], len(pairs.left)) if demonstrations in estimates else None,
            gains.get(demonstrations),
        )
        for demonstrations, value in on_sample.items()
    ]
    scored.sort(key=lambda each: (each.score is None, -(each.score.value if each.score else each.on_sample)))
    best = scored[0] if scored[0].gain and scored[0].gain.value > 0 else None
    seconds = time.perf_counter() - start
    texts = list(dict.fromkeys(pairs.left))[:_TIMED_TEXTS]
    return DemonstrationSearch(
        pairs.name,
        prompt,
        judge.score(baseline, len(pairs.left)),
        tuple(scored),
        best,
        _cost(judge.encoder_with(best.demonstrations if best else ()), texts),
        _cost(encoder, texts),
        seconds,
    )


@dataclass(frozen=True)
class _Judge:
    encoder: Encoder
    cache: Path
    seed: int
    resamples: int

    def encoder_with(self, demonstrations: Sequence[Demonstration]) -> Encoder:
        prompt = self.encoder.config.prompt
        return self.encoder.with_settings(
            prompt=with_demonstrations(prompt, demonstrations) if demonstrations else prompt
        )

    def sample(self, pairs: STSPairs, number: int) -> STSPairs:
        """Some of the pairs, all of them where there are no more."""
        rows = np.random.default_rng(self.seed).permutation(len(pairs.left))[:number]
        left, right, parts = (tuple(side[row] for row in rows) for side in (pairs.left, pairs.right, pairs.parts))
        return STSPairs(pairs.name, left, right, pairs.gold_N[rows], parts)

    def estimate(
        self, pairs: STSPairs, demonstrations: Sequence[Demonstration], resamples: int | None = None
    ) -> BootstrapEstimate:
        encoder = self.encoder_with(demonstrations)
        model = EvaluatedModel.of(encoder, encoder.config.prompt.name, self.cache, weights_digest(encoder.model))
        result: TaskResult = score_sts(model, pairs)
        return statistics.bootstrap_estimate(
            result.item_scores_N, result.gold_N, resamples=resamples or self.resamples, seed=self.seed
        )

    def score(self, estimate: BootstrapEstimate, number: int) -> Score:
        return Score("Spearman", estimate.value, estimate.low, estimate.high, number)


def _gains(
    estimates: dict[tuple[Demonstration, ...], BootstrapEstimate], baseline: BootstrapEstimate, num_tried: int
) -> dict[tuple[Demonstration, ...], Difference]:
    """Differences to the baseline, corrected for all that were tried: those that were sorted out count with p = 1."""
    differences = {
        str(index): statistics.paired_difference(one, baseline) for index, one in enumerate(estimates.values())
    }
    gone = {f"gone {index}": Difference(0, 0, 0, 1) for index in range(num_tried - len(estimates))}
    corrected = statistics.holm_correction(differences | gone)
    return {demonstrations: corrected[str(index)] for index, demonstrations in enumerate(estimates)}


def _cost(encoder: Encoder, texts: Sequence[str]) -> PromptCost:
    tokens, model = encoder.tokenize(texts), encoder.model
    first, end = tokens.spans[0]
    packed = check_packing(model).packed_model

    def milliseconds(tokens: Tokens) -> float:
        start = time.perf_counter()
        embed_tokens(
            model,
            tokens,
            packed=packed,
            readout=make_readout(encoder.config),
            max_batch_tokens=None,
            pad_id=fallback_token_id(encoder.tokenizer),
            done=lambda _: None,
        )
        return (time.perf_counter() - start) / len(texts) * 1000

    # In turns, and the fastest of each, as other work on the machine slows some of them.
    both = [(milliseconds(tokens), milliseconds(_without_shared_beginning(tokens))) for _ in range(_ROUNDS)]
    shared, unshared = map(min, zip(*both, strict=True))
    return PromptCost(len(tokens.ids[0]) - (end - first), shared, unshared)


def _without_shared_beginning(tokens: Tokens) -> Tokens:
    """Rows that each begin with another token: as many tokens as before, and none that two rows have in common."""
    return replace(tokens, ids=[[row, *ids[1:]] for row, ids in enumerate(tokens.ids)])
