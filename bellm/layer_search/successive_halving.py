"""Train layer sets by successive halving and find the one that scores best after training.

All maps are trained alike for a few steps, the better half goes on to twice as many, and so on (Jamieson and Talwalkar
2016, arXiv 1502.07943; one bracket of Hyperband, arXiv 1603.06560). A map is one run of training as long as the last
round, paused at the rounds before: those that come to the end are what training them alone would have given. The causal
model and all layers open are the baselines of the same budget; they stay to the end whatever they score.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bellm import layer_spec
from bellm.data import STSPairs
from bellm.errors import NothingToLearnError, SourceError
from bellm.evaluate import EvaluatedModel, TaskResult, score_sts
from bellm.io import atomic
from bellm.layer_search.candidates import Candidate, compare_results, rank_key
from bellm.layer_search.halving_rounds import HalvingPlan, HalvingResult, RoundResult, TrainedCandidate
from bellm.run_dir import CHECKPOINT, MODEL, lock_run_dir, refuse_other_config, resumable_errors
from bellm.train import Dataset, Recipe, load_untrained, train

SEARCH = "search.json"
"""File with the configuration of the search that a folder of runs belongs to."""

_CHECKPOINT_EVERY = 10
_KEPT = ("task", "metric", "num_texts", "num_truncated", "extra_metrics")
"""Of a result, besides its items; ratings and texts are the development set's."""


def run_halving(
    plan: HalvingPlan,
    recipe: Recipe,
    sources: Sequence[tuple[Dataset, float]],
    dev: STSPairs,
    output: Path,
    *,
    resamples: int = 4000,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> HalvingResult:
    """Train the maps of a plan round by round, or resume where the search in this folder was stopped.

    All maps have the same data in the same order, the same seed and the same schedule. P-values are corrected (Holm)
    for all of them in every round: those that left were sorted out by the same pairs, and count as maps that could
    not be told from the baseline.

    Args:
        plan: From this search without training, and this recipe.
        recipe: How each map is trained, `bidirectional` aside; it goes through the data as often as the steps ask for.
        sources: Training data, each with its weight.
        dev: Development set by which maps are chosen.
        output: Folder for a run of each map, which `bellm.train.train` resumes.
        resamples: Bootstrap replicates.
        progress: Called with what is trained, how many steps of all maps are done, and how many there are.

    Raises:
        SourceError: The folder holds another search, or is in use, or the disk refuses.
        BellmError: The recipe does not suit the data, or a gradient is no longer a number.
        Interrupted: Ctrl-C or a polite kill; the state was written.
    """
    assert recipe.dev is None
    assert recipe.max_steps
    recipe = replace(recipe, epochs=float(recipe.max_steps))
    with resumable_errors(output), lock_run_dir(output):
        _check_search(output, plan, recipe, sources, dev)
        runs = _Runs(plan, recipe, sources, dev, output, progress)
        rounds_done: dict[str, list[RoundResult]] = {candidate.bidirectional: [] for candidate in plan.candidates}
        staying = plan.candidates
        for index, part in enumerate(plan.rounds):
            staying = staying[: part.num_candidates]
            results = {candidate.bidirectional: runs.result(candidate, index) for candidate in staying}
            compared = compare_results(results, num_gone=len(plan.candidates) - len(staying), resamples=resamples)
            for spec, comparison in compared.items():
                rounds_done[spec].append(RoundResult(part.steps, *comparison))
            # The baselines stay in front.
            best_first = sorted(staying[2:], key=lambda c: rank_key(compared[c.bidirectional][0], c.open_layers))
            staying = (*staying[:2], *best_first)
    trained = []
    for candidate in plan.candidates:
        done = tuple(rounds_done[candidate.bidirectional])
        left = len(done) if len(done) < len(plan.rounds) else None
        trained.append(TrainedCandidate(candidate.name, candidate.bidirectional, candidate.open_layers, done, left))
    trained.sort(key=lambda one: (-len(one.rounds_done), rank_key(one.last.score, one.open_layers)))
    return HalvingResult(
        task=dev.name,
        data=tuple(dataset.name for dataset, _ in sources),
        budget=plan.budget,
        rounds=plan.rounds,
        batch_size=plan.batch_size,
        seed=recipe.seed,
        candidates=tuple(trained),
    )


@dataclass(frozen=True)
class _Runs:
    """The training run of each map, in a folder of its own."""

    plan: HalvingPlan
    recipe: Recipe
    sources: Sequence[tuple[Dataset, float]]
    dev: STSPairs
    output: Path
    progress: Callable[[str, int, int], None]
    steps_done: dict[str, int] = field(default_factory=dict)

    def result(self, candidate: Candidate, index: int) -> TaskResult:
        """Train a map to the end of a round and score it, unless that was done before."""
        run = self.output / candidate.name.replace(":", "-").replace(" ", "-")
        steps = self.plan.rounds[index].steps
        path = run.with_name(f"{run.name}-dev-{steps}.json")
        if not path.exists():
            description = f"{candidate.name}, round {index + 1} of {len(self.plan.rounds)}"
            result = self._train_and_score(candidate, run, steps, description)
            kept = {name: getattr(result, name) for name in _KEPT} | {"items": result.item_scores_N.tolist()}
            atomic.write_bytes(path, (json.dumps(kept) + "\n").encode())
        self.steps_done[candidate.bidirectional] = steps
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            item_scores_N = np.array(kept.pop("items"), dtype=np.float64)
            return TaskResult(**kept, item_scores_N=item_scores_N, gold_N=self.dev.gold_N)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{path} cannot be read ({error}). Remove it to score {run} again.") from error

    def _train_and_score(self, candidate: Candidate, run: Path, steps: int, description: str) -> TaskResult:
        def report(step: int) -> None:
            self.steps_done[candidate.bidirectional] = step
            self.progress(description, sum(self.steps_done.values()), self.plan.steps)

        report(self.steps_done.get(candidate.bidirectional, 0))
        options = {**self.recipe.encoder_options, "bidirectional": layer_spec.format_layers(candidate.open_layers)}
        recipe = replace(self.recipe, encoder_options=options)
        try:
            encoder = train(
                recipe,
                self.sources,
                run,
                checkpoint_every=_CHECKPOINT_EVERY,
                progress=lambda step, *_: report(step),
                until=steps,
            )
        except NothingToLearnError:  # Closed layers may leave it so, and it is scored as it is.
            encoder = load_untrained(recipe)
        return score_sts(EvaluatedModel.of(encoder, candidate.name), self.dev)


def _check_search(
    output: Path, plan: HalvingPlan, recipe: Recipe, sources: Sequence[tuple[Dataset, float]], dev: STSPairs
) -> None:
    """Begin a folder, also one in which another search kept nothing, or make sure that it is of this search."""
    pairs = json.dumps([dev.left, dev.right, dev.gold_N.tolist()])
    wanted = {
        **{name: value for name, value in recipe.described().items() if name not in ("dev", "epochs")},
        "data": [[dataset.name, len(dataset), dataset.digest, weight] for dataset, weight in sources],
        "dev": [dev.name, hashlib.sha256(pairs.encode()).hexdigest()],
        "candidates": [candidate.bidirectional for candidate in plan.candidates],
        "rounds": [[part.num_candidates, part.steps] for part in plan.rounds],
    }
    wanted = json.loads(json.dumps(wanted))
    path = output / SEARCH
    if not any(kept for name in (CHECKPOINT, MODEL) for kept in output.glob(f"*/{name}")):
        atomic.write_bytes(path, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    try:
        refuse_other_config(output, "search", json.loads(path.read_text(encoding="utf-8")), wanted)
    except (OSError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise SourceError(f"{output} holds runs of no search ({error}). Choose another folder.") from error
