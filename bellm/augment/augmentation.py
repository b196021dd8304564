"""`augment`: which side information helps a language model with a task, on which items, and is it more than noise?"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bellm.augment.arm_comparison import ArmComparison, CalibrationName, compare_arms
from bellm.augment.arm_names import GRAPH_ARMS, PLAIN, PROBE, parse_arms
from bellm.augment.arms import ArmSources, fixed_shots, nearest_items
from bellm.augment.calibration import Probabilities, expected_calibration_error, reliability
from bellm.augment.helpfulness import Helpfulness
from bellm.augment.kept_values import KeptValues
from bellm.augment.label_scorer import LabelScorer, Scores
from bellm.augment.parses import write_parses
from bellm.augment.probe import Probe, fit_probe, read_predictions
from bellm.augment.task_prompts import receipt_introduction
from bellm.augment.tasks import LabeledTask, read_task, task_graphs
from bellm.data import Graphs, LabeledTexts, read_graphs
from bellm.encoder import Encoder
from bellm.engine.tokenization import warn_truncated
from bellm.errors import BellmError, SourceError, check_choice, check_encoder
from bellm.evaluate import EvaluatedModel, default_cache_folder
from bellm.metadata import package_versions
from bellm.prompts import Rendered
from bellm.report.formatting import format_interval, format_p_value, format_points, format_score
from bellm.saving import weights_digest
from bellm.tensors.similarity import normalize_rows, paired_cosine_similarity
from bellm.types import Vectors

AugmentProgress = Callable[[str, int, int], None]

_SCORES, _PARSES = "scores.jsonl", "parses.jsonl"
_ONE_SIDED = 0.9
"""Share of items from which on one label is all that an arm says."""


@dataclass(frozen=True)
class Augmentation:
    """What side information was worth to a model on a task."""

    model: str
    task: str
    settings: Mapping[str, Any]
    probe: Mapping[str, Any]
    """Of the small model whose receipts are shown: where it comes from, its calibration."""
    comparison: ArmComparison
    items: LabeledTexts
    """The test items."""
    reliability_before: Sequence[Any]
    """Of the probe without its temperature; empty for predictions of a file."""
    reliability_out_of_fold: Sequence[Any]
    """Of the probe on its training items, each predicted by a fit on others; empty for predictions of a file."""
    seconds: float
    """Without loading the model."""

    @property
    def summary(self) -> tuple[str, ...]:
        """A sentence for each finding."""
        arms, found = self.comparison.arms, list[str]()
        found.append(
            f"{arms[PLAIN].score.n} items of {self.task}: {format_score(arms[PLAIN].score)} % right with the plain "
            f"prompt, {format_score(arms[PROBE].score)} with the probe alone."
        )
        for name, arm in arms.items():
            if arm.to_plain and name != PROBE:
                against = f"{format_points(arm.to_plain.value, signed=True)} points against the plain prompt "
                against += f"({format_interval(arm.to_plain)}, p {format_p_value(arm.to_plain.p_value)})"
                sure = "" if arm.to_plain.p_value < 0.05 else ", which may be chance"
                found.append(f"{name}: {format_score(arm.score)} %, {against}{sure}.")
        for name, helpful in self.comparison.helpfulness.items():
            for feature in helpful.found[:2]:
                effect = helpful.effects[feature]
                found.append(
                    f"{name} gives the right label {format_points(effect.value, signed=True)} points of probability "
                    f"for each standard deviation of {feature!r} ({format_interval(effect)})."
                )
        one_sided = [name for name, arm in arms.items() if arm.most_frequent[1] >= _ONE_SIDED and name != PROBE]
        if one_sided:
            label, share = arms[one_sided[0]].most_frequent
            advice = "" if self.settings["calibration"] == "batch" else "; try --calibration batch"
            found.append(f"{', '.join(one_sided)}: {share:.0%} of the answers are {label!r}{advice}.")
        reach = max(arm.to_plain.reach for name, arm in arms.items() if arm.to_plain and name != PROBE)
        if reach:
            found.append(
                f"With so many items one arm alone must differ by {reach:.1f} points to be told from chance, and more "
                "where several are compared."
            )
        return tuple(found + self._probe_summary)

    @property
    def _probe_summary(self) -> list[str]:
        facts, learned = self.probe, self.probe["out_of_fold"]
        if learned is None:
            return []
        found = [
            f"The probe's calibration error is {100 * facts['ece_after']:.1f} points with its temperature "
            f"{facts['temperature']:.2f}, and {100 * facts['ece_before']:.1f} without.",
            f"Out of fold on the {learned['n']} training items of {Path(self.settings['train']).name} it is right for "
            f"{learned['accuracy']:.1f} %, with calibration errors of {100 * learned['ece_after']:.1f} and "
            f"{100 * learned['ece_before']:.1f} points.",
        ]
        if edge := facts["penalty_edge"]:
            found.append(f"Its penalty is the {edge} that was tried (C={facts['C']:.2g}): a better one may be beyond.")
        return found

    def item_rows(self) -> list[dict[str, Any]]:
        """Of each test item its texts and label, and of each arm its answer and the probability of the label."""
        words, labels_M = self.settings["labels"], self.items.labels_N
        chances = {name: arm.probabilities_MK for name, arm in self.comparison.arms.items()}
        return [
            {
                "texts": list(texts),
                "label": words[label],
                "answers": {name: words[int(each[row].argmax())] for name, each in chances.items()},
                "probabilities": {name: float(each[row, label]) for name, each in chances.items()},
            }
            for row, (*texts, label) in enumerate(zip(*self.items.columns, labels_M.tolist(), strict=True))
        ]

    def to_json(self) -> dict[str, Any]:
        """All numbers but those of single items."""
        one = self.comparison
        return {
            "model": self.model,
            "task": self.task,
            "summary": list(self.summary),
            "arms": {name: arm.to_json() for name, arm in one.arms.items()},
            "settings": dict(self.settings),
            "probe": dict(self.probe),
            "reliability": {
                "probe_before": [asdict(each) for each in self.reliability_before],
                "probe_out_of_fold": [asdict(each) for each in self.reliability_out_of_fold],
                **{name: [asdict(each) for each in arm.reliability] for name, arm in one.arms.items()},
            },
            "by_confidence": [asdict(each) for each in one.by_confidence],
            "helped": {name: [asdict(each) for each in items] for name, items in one.helped.items()},
            "hurt": {name: [asdict(each) for each in items] for name, items in one.hurt.items()},
            "helpfulness": {name: _helpfulness_json(each) for name, each in one.helpfulness.items()},
            "ablation": [
                {"part": each.part, "share": each.share, "value": each.score.value, "low": each.score.low}
                | {"high": each.score.high, "n": each.score.n}
                for each in one.ablation
            ],
            "versions": package_versions(),
            "seconds": self.seconds,
        }


def augment(
    encoder: Encoder | Callable[[], Encoder],
    task: LabeledTask | str,
    output: str | Path,
    *,
    arms: str | Sequence[str] = ("hint", "receipt", "retrieval"),
    limit: int | None = None,
    train: str | None = None,
    train_limit: int | None = 2000,
    graphs: Graphs | str | None = None,
    predictions: str | None = None,
    corpus: str | Path | None = None,
    shots: int = 0,
    neighbors: int = 4,
    calibration: CalibrationName = "none",
    length_normalized: bool = False,
    ablation: bool = False,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    resamples: int = 4000,
    progress: AugmentProgress = lambda *_: None,
) -> Augmentation:
    """Ask an encoder's causal model about a task, plainly and with each kind of side information.

    The probe learns from the training items by the encoder's vectors, with its prompt, pooling and open layers; label
    words are scored by the causal model on the same weights. Scores are kept in `output/scores.jsonl`: the same call
    goes on after a stop.

    Args:
        encoder: Any encoder whose checkpoint has a language-model head, or a function that loads one.
        task: One of `AUGMENT_TASKS`, a table (text, text_b, label), or a task that is read already.
        output: Folder that keeps scores.
        arms: Side information: hint, sp-input, sp-output, amr, receipt, retrieval.
        limit: Most test items, drawn with the seed.
        train: A table of training items, where the task is a table.
        train_limit: Most training items.
        graphs: AMR graphs of the texts, or a file of them; None for those of the folder of data sets.
        predictions: A table of another classifier's predictions (text, label, confidence) in place of the probe's.
        corpus: An indexed corpus that keeps its texts: passages of it in place of training items.
        shots: Training items that every prompt shows, solved, each class as often as the others.
        neighbors: Training items, or passages, that the arm retrieval shows.
        calibration: What is taken from scores of labels: none, contextual or batch.
        length_normalized: Divide scores by the number of a label's tokens.
        ablation: Also score the arm amr with 0 to 100 % of the words of the graphs, and of the texts.
        data: Folder of data sets; None for `BELLM_DATA`.
        cache: Folder that keeps vectors; None for the one that `bellm evaluate` uses.
        seed: Of samples, folds, shots and the bootstrap.
        resamples: Bootstrap replicates.
        progress: Told what is done, how many of it, and how many there are.

    Raises:
        BellmError: Something is missing, does not fit, or cannot be read.
    """
    check_encoder(encoder, Encoder)
    chosen = parse_arms(arms)
    check_choice("calibration", calibration, CalibrationName)
    for name, number, least in (("neighbors", neighbors, 1), ("shots", shots, 0), ("resamples", resamples, 1)):
        if number < least:
            raise BellmError(f"{name}={number} is too small: give at least {least}.")
    if graphs is not None and not set(chosen) & {*GRAPH_ARMS}:
        raise BellmError("AMR graphs belong to the arms amr and sp-input: add one, or leave the graphs out.")
    if ablation and "amr" not in chosen:
        raise BellmError("The ablation is one of the arm amr: add it, or leave the ablation out.")
    folder = Path(data) if data else None
    if isinstance(task, str):
        task = read_task(task, folder, train=train, limit=limit, train_limit=train_limit, seed=seed)
    graphs = _graphs(task, graphs, folder) if set(chosen) & {*GRAPH_ARMS} else None
    shown = fixed_shots(task.train, shots, seed)
    given = _predictions(predictions, task, shown) if predictions else None
    index = _open_corpus(corpus, "retrieval" in chosen)
    if "retrieval" in chosen and index is None and neighbors > len(task.train.labels_N):
        raise BellmError(f"neighbors={neighbors} is more than the {len(task.train.labels_N)} training items.")
    encoder = encoder() if callable(encoder) else encoder
    start = time.perf_counter()
    scorer = LabelScorer(encoder, length_normalized=length_normalized)
    scorer.check_labels(task.prompt.words)
    model = EvaluatedModel.of(encoder, cache=Path(cache) if cache else default_cache_folder())
    train_ND, test_MD = (_features(items, model, progress) for items in (task.train, task.test))
    progress("probe", 0, 1)
    probe = given or fit_probe(train_ND[0], task.train.labels_N, test_MD[0], seed=seed)
    size = 0 if given else probe.num_parameters + sum(each.numel() for each in encoder.model.parameters())
    sources = ArmSources(
        introduction=receipt_introduction(size, task.prompt.domain),
        train_probabilities_NK=probe.train_probabilities_NK,
        test_probabilities_MK=probe.test_probabilities_MK,
        graphs=graphs,
        shots=shown,
    )
    cosines_M = None
    if "retrieval" in chosen and index is not None:
        passages, cosines_M = _passages(index, task.test, neighbors)
        sources = replace(sources, passages=passages)
    elif "retrieval" in chosen:
        near_MR = nearest_items(train_ND[1], test_MD[1], neighbors)
        cosines_M = paired_cosine_similarity(test_MD[1], train_ND[1][near_MR[:, -1]])
        sources = replace(sources, neighbors_MR=near_MR)
    place = Path(output)
    identity = {"weights": weights_digest(encoder.model), "dtype": encoder.dtype_name}
    if "sp-output" in chosen:
        sources = replace(sources, written_parses=_written(encoder, task.test, place / _PARSES, identity, progress))
    decides = {
        **identity,
        "max_tokens": encoder.config.max_tokens,
        "labels": task.prompt.words,
        "length_normalized": length_normalized,
    }
    score = partial(
        _score, scorer, task.prompt.words, _kept_scores(place / _SCORES, len(task.prompt.words)), decides, progress
    )
    comparison = compare_arms(
        task,
        chosen,
        sources,
        score,
        calibration=calibration,
        ablation=ablation,
        neighbor_cosines_M=cosines_M,
        seed=seed,
        resamples=resamples,
    )
    labels_M = task.test.labels_N
    settings = {
        "arms": list(chosen),
        "train": task.train.name,
        "test": task.test.name,
        "out_of_distribution": task.out_of_distribution,
        "train_items": len(task.train.labels_N),
        "test_items": len(labels_M),
        "labels": list(task.prompt.words),
        "calibration": calibration,
        "length_normalized": length_normalized,
        "shots": shots,
        "neighbors": neighbors,
        "corpus": str(corpus) if corpus else None,
        "graphs": graphs.source if graphs else None,
        "seed": seed,
        "encoder": encoder.describe(),
    }
    return Augmentation(
        encoder.source,
        task.name,
        settings,
        _probe_facts(probe, predictions, task, size),
        comparison,
        task.test,
        () if given else _reliability(probe.test_uncalibrated_MK, labels_M),
        () if given else _reliability(probe.train_probabilities_NK, task.train.labels_N),
        round(time.perf_counter() - start, 1),
    )


def _graphs(task: LabeledTask, graphs: Graphs | str | None, folder: Path | None) -> Graphs:
    """Graphs of the test texts, of which some are needed."""
    found = read_graphs(graphs) if isinstance(graphs, str) else graphs or task_graphs(task, folder)
    texts = [text for column in task.test.columns for text in column]
    if found is None or found.num_missing(texts) == len(texts):
        has_none = "None of the test texts has an AMR graph" if found else f"There are no AMR graphs of {task.name}"
        raise BellmError(f"{has_none}: give --graphs FILE, or leave amr and sp-input out.")
    return found


def _predictions(path: str, task: LabeledTask, shots: Sequence[int]) -> Probe:
    """A classifier's predictions of the test items, and of the training items that prompts show."""
    words = task.prompt.words
    tested = read_predictions(path, list(zip(*task.test.columns, strict=True)), words)
    learned = np.full((len(task.train.labels_N), len(words)), 1 / len(words))
    if shots:
        rows = list(shots)
        learned[rows] = read_predictions(path, list(zip(*task.train.select(rows).columns, strict=True)), words)
    return Probe(learned, tested, learned, tested, 1.0, float("nan"), "", 0)


def _open_corpus(corpus: str | Path | None, needed: bool) -> Any:
    """An index of a corpus with what encodes queries for it."""
    if corpus is None:
        return None
    if not needed:
        raise BellmError(f"Passages of {corpus} belong to the arm retrieval: add it, or leave the corpus out.")
    from bellm.corpus import Index, read_encoder_ref

    return Index.open(corpus), read_encoder_ref(corpus, None), str(corpus)


def _passages(corpus: Any, test: LabeledTexts, number: int) -> tuple[list[tuple[str, ...]], Vectors]:
    """The nearest passages to each item, the nearest last, and their highest cosine."""
    index, encoder_ref, name = corpus
    queries = [" ".join(texts) for texts in zip(*test.columns, strict=True)]
    found, best = list[tuple[str, ...]](), list[float]()
    for query_D in encoder_ref.load().encode_query(queries):
        hits = index.search(query_D, number)
        if any(hit.text is None for hit in hits):
            raise SourceError(f"{name} keeps no texts to show. Embed it again: bellm embed ... -o {name} --keep-text.")
        found.append(tuple(hit.text for hit in reversed(hits)))
        best.append(max((hit.score for hit in hits), default=0.0))
    return found, np.array(best, dtype=np.float32)


def _features(items: LabeledTexts, model: EvaluatedModel, progress: AugmentProgress) -> tuple[Vectors, Vectors]:
    """Features of each item for the probe, and a vector by which items are near: of pairs both texts' side by side."""
    texts = list(dict.fromkeys(text for column in items.columns for text in column))
    count = 0

    def done(number: int) -> None:
        nonlocal count
        count += number
        progress(f"vectors of {items.name}", count, len(texts))

    vectors = model.vectors(texts, done=done)
    row_of = {text: row for row, text in enumerate(texts)}
    sides = [vectors[[row_of[text] for text in column]] for column in items.columns]
    near = np.concatenate([normalize_rows(side) for side in sides], 1)
    if len(sides) == 1:
        return sides[0], near
    return np.concatenate([np.abs(sides[0] - sides[1]), sides[0] * sides[1]], 1), near


def _written(
    encoder: Encoder, test: LabeledTexts, path: Path, identity: Mapping[str, str], progress: AugmentProgress
) -> list[tuple[str, ...]]:
    """What the model writes as a parse of each text of each item."""
    kept = KeptValues(path, lambda value: isinstance(value, str))
    columns = []
    for column in test.columns:
        keys = [_key(identity, text) for text in column]
        count = 0

        def done(number: int) -> None:
            nonlocal count
            count += number
            progress("parses", count, len(set(keys)))  # noqa: B023 - called before the next turn

        columns.append(
            kept.values(keys, lambda rows: write_parses(encoder, [column[row] for row in rows]), done)  # noqa: B023
        )
    return list(zip(*columns, strict=True))


def _kept_scores(path: Path, num_labels: int) -> KeptValues:
    """Scores of prompts, a finite number for each label."""

    def is_scores(value: Any) -> bool:
        of_label = value if isinstance(value, list) and len(value) == num_labels else [None]
        return all(isinstance(each, float) and np.isfinite(each) for each in of_label)

    return KeptValues(path, is_scores)


def _score(
    scorer: LabelScorer,
    labels: Sequence[str],
    kept: KeptValues,
    decides: Mapping[str, Any],
    progress: AugmentProgress,
    name: str,
    prompts: Sequence[Rendered],
) -> Scores:
    """Scores of an arm's prompts, from the folder where they are there."""
    keys = [_key(decides, f"{list(prompt.long)} {prompt.text}") for prompt in prompts]
    count = num_truncated = 0

    def compute(rows: Sequence[int]) -> list[list[float]]:
        nonlocal num_truncated
        found = scorer.score_with_stats([prompts[row] for row in rows], labels)
        num_truncated += found.num_truncated
        scores: list[list[float]] = found.scores_NK.tolist()
        return scores

    def done(number: int) -> None:
        nonlocal count
        count += number
        progress(name, count, len(set(keys)))

    scores_NK = np.array(kept.values(keys, compute, done), dtype=np.float64)
    warn_truncated(num_truncated, len(prompts), scorer.encoder.config.max_tokens)
    return scores_NK


def _key(decides: Mapping[str, Any], text: str) -> str:
    return hashlib.sha256(f"{json.dumps(decides, sort_keys=True)} {text}".encode()).hexdigest()[:32]


def _reliability(chances_MK: Probabilities, labels_M: Any) -> Sequence[Any]:
    return reliability(chances_MK.max(1), chances_MK.argmax(1) == labels_M)


def _probe_facts(probe: Probe, predictions: str | None, task: LabeledTask, size: int) -> dict[str, Any]:
    labels_N, labels_M, own = task.train.labels_N, task.test.labels_N, predictions is None
    learned = {
        "accuracy": 100 * float(np.mean(probe.train_probabilities_NK.argmax(1) == labels_N)),
        "ece_before": _ece(probe.train_uncalibrated_NK, labels_N),
        "ece_after": _ece(probe.train_probabilities_NK, labels_N),
        "n": len(labels_N),
    }
    return {
        "receipts_from": predictions or "logistic regression on the encoder's vectors, out of fold on training items",
        "parameters": size or None,
        "C": probe.C if own else None,
        "penalty_edge": probe.edge or None,
        "temperature": probe.temperature if own else None,
        "ece_before": _ece(probe.test_uncalibrated_MK, labels_M) if own else None,
        "ece_after": _ece(probe.test_probabilities_MK, labels_M),
        "out_of_fold": learned if own else None,
    }


def _ece(chances_MK: Probabilities, labels_M: Any) -> float:
    return expected_calibration_error(chances_MK.max(1), chances_MK.argmax(1) == labels_M)


def _helpfulness_json(one: Helpfulness) -> dict[str, Any]:
    effects = {
        name: {"value": each.value, "low": each.low, "high": each.high, "p": each.p_value}
        for name, each in one.effects.items()
    }
    return {"explained": one.explained, "left_out": list(one.left_out), "n": one.n, "effects": effects}
