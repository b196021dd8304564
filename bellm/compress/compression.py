"""Try a grid of smaller encoders on rated pairs, and save the smallest that is good enough."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from bellm.backbone.source_names import VECTORS
from bellm.compress.footprint import Footprint, measure_footprint
from bellm.compress.grid import Grid, Recover, VectorForm, WeightsVariant, default_grid
from bellm.compress.pruning import spread_texts
from bellm.compress.recovery import check_recovery_texts, recover
from bellm.data import STSPairs
from bellm.encoder import Encoder
from bellm.errors import BellmError, SourceError, check_encoder
from bellm.evaluate import load_model, read_dev_set
from bellm.extras import require_extra
from bellm.io import atomic
from bellm.io.vectors import new_vector_file
from bellm.metadata import encoder_identity, package_versions
from bellm.report import statistics
from bellm.report.formatting import format_p_value, format_points
from bellm.report.statistics import BootstrapEstimate
from bellm.run_dir import refuse_other_config
from bellm.tensors.similarity import paired_cosine_similarity
from bellm.types import Embedder

CompressProgress = Callable[[str, int, int], None]

_MEASURED, _CONFIG, _TEACHER = "measured", "grid.json", "vectors.parquet"
_QUICK_PAIRS = 200
_MOST_TEXTS = 256
"""Calibration texts that weights and means are taken from: each variant embeds them. Recovery trains on all."""
_SAME_SPEED = 0.05
"""Share by which two measurements of speed may differ where nothing else does."""


@dataclass(frozen=True)
class CompressionRow:
    """A smaller encoder: what was done, what it costs, and its score on the dev set."""

    name: str
    weights: WeightsVariant
    vectors: VectorForm
    bytes: int
    """Of the encoder on disk."""
    peak_bytes: int
    """Most memory of a process that embeds with it, Python and torch included."""
    texts_per_second: float
    """Of CPU time."""
    vector_bytes: int
    """Of one vector as it is kept: 4 a number, or a bit."""
    value: float
    low: float
    high: float
    difference: float
    """Points above the encoder as it came, on the same pairs."""
    difference_low: float
    difference_high: float
    p: float
    """Of no difference, corrected for all rows."""
    pareto: bool = False
    """Whether no other row costs as little and scores as high."""

    def dominates(self, other: "CompressionRow") -> bool:
        """Whether this one costs no more than another in anything, scores no less, and is better in something."""
        faster = 1 - other.texts_per_second / max(self.texts_per_second, 1e-9)
        gains = (other.bytes - self.bytes, other.vector_bytes - self.vector_bytes, self.value - other.value)
        return min(gains) >= 0 and faster >= -_SAME_SPEED and (max(gains) > 0 or faster > _SAME_SPEED)


@dataclass(frozen=True)
class Compression:
    """All rows, the encoder as it came first, and the one that was chosen."""

    model: str
    dev: str
    num_pairs: int
    rows: tuple[CompressionRow, ...]
    chosen: CompressionRow
    rule: str
    """By which it was chosen, in words."""

    @property
    def summary(self) -> str:
        """What was chosen, what it costs and what it saves."""
        first, it = self.rows[0], self.chosen
        if it is first:
            return f"No smaller encoder is {self.rule}: the encoder stays as it is ({first.bytes / 1e6:.0f} MB)."
        speed = it.texts_per_second / max(first.texts_per_second, 1e-9)
        said = f"{it.name}: {it.bytes / 1e6:.0f} MB for {first.bytes / 1e6:.0f}, {speed:.2f} times the texts per CPU s"
        gain = (
            f"{format_points(it.difference, signed=True)} points ({format_points(it.difference_low, signed=True)} to "
        )
        gain += f"{format_points(it.difference_high, signed=True)}, {format_p_value(it.p)})"
        return (
            f"{said}, {gain} on {self.num_pairs} pairs of {self.dev}: {self.rule}. The choice was made on these pairs, "
            "so test it on others."
        )

    def to_json(self) -> dict[str, Any]:
        """All numbers, flat in each row."""
        rows = [
            {
                **{name: value for name, value in asdict(row).items() if name not in ("weights", "vectors")},
                **asdict(row.weights),
                **asdict(row.vectors),
            }
            for row in self.rows
        ]
        return {
            "model": self.model,
            "summary": self.summary,
            "dev": self.dev,
            "pairs": self.num_pairs,
            "rule": self.rule,
            "chosen": self.chosen.name,
            "rows": rows,
            "versions": package_versions(),
        }


def compress(
    encoder: Encoder,
    dev: str | STSPairs,
    output: str | Path,
    *,
    within: float = 1.0,
    budget: int | None = None,
    calibration: Sequence[str] = (),
    grid: Grid | None = None,
    quick: bool = False,
    data: str | Path | None = None,
    seed: int = 0,
    resamples: int = 4000,
    progress: CompressProgress = lambda *_: None,
) -> Compression:
    """Score smaller encoders against the encoder as it came, and save the chosen one as `output/model`.

    Each variant of the weights is saved, loaded in a process of its own, and measured there; what vectors may lose
    (numbers, bits, their mean) is scored on the same vectors. With `grid.recovery` what is left after layers were
    dropped is also trained, see `recover`. What is measured and trained stays in `output/measured`: the same call goes
    on after a stop, and another rule costs no measurement.

    Args:
        encoder: Which is to become smaller.
        dev: Rated pairs that the choice is made by; or what `read_dev_set` takes.
        output: Folder for the chosen encoder.
        within: Points that it may lose; the smallest on disk is taken.
        budget: Bytes on disk that it may take; the best is taken, whatever it loses.
        calibration: Texts of the kind that will be embedded, not those of dev: they say which weights go, and what the
            mean of vectors is, 256 of them; recovery trains on all. Without them no weight goes and nothing is
            centered.
        grid: What is tried; None for the usual.
        quick: Try little, on 200 pairs.
        data: Folder of data sets; None for `BELLM_DATA`, else the Hub.
        seed: Of the sample and the bootstrap.
        resamples: Bootstrap replicates.
        progress: Told what is measured, how many variants are, and how many there are.

    Raises:
        BellmError: Nothing fits the budget, the encoder cannot be made smaller, or recovery lacks texts.
        SourceError: The folder holds measurements of another encoder, dev set or calibration.
    """
    check_encoder(encoder, Encoder)
    if within < 0:
        raise BellmError(f"within={within:g} is below 0. Give the points that may be lost, as in 1.0.")
    if budget is not None and budget <= 0:
        raise BellmError(f"budget={budget} is not above 0. Give the bytes that the encoder may take.")
    pairs = read_dev_set(dev, Path(data) if data else None) if isinstance(dev, str) else dev
    pairs = _sample(pairs, _QUICK_PAIRS, seed) if quick else pairs
    plain, calibration = encoder.uncentered(), tuple(dict.fromkeys(calibration))
    if seen := set(calibration) & {*pairs.left, *pairs.right}:
        raise BellmError(
            f"{len(seen)} calibration texts are among the pairs of {pairs.name}, and would be scored on. Give others."
        )
    grid = grid or default_grid(plain.num_layers, plain.embedding_dim, with_texts=bool(calibration), quick=quick)
    grid.check(plain)
    if grid.recovery:
        _check_recovery(grid, calibration)
    texts = list(dict.fromkeys((*pairs.left, *pairs.right)))
    folder = _begin(Path(output), plain, [*texts, *calibration], len(texts))
    sample = spread_texts(calibration, _MOST_TEXTS)
    footprints, variants = list[Footprint](), grid.weights()

    def train_smaller(smaller: Encoder, steps: int) -> Encoder:
        def show(step: int, total: int) -> None:
            progress(f"{smaller.num_layers} layers: training step {step} of {total}", len(footprints), len(variants))

        run_dir = folder / f"recovery-{smaller.num_layers}-layers-{steps}-steps"
        return recover(smaller, _teacher(plain, calibration, folder), calibration, steps, run_dir, show)

    for variant in variants:
        progress(variant.name, len(footprints), len(variants))
        footprints.append(_measure(variant, plain, folder, texts, sample, train_smaller))
    progress("scores", len(variants), len(variants))
    rows = _rows(variants, footprints, grid, pairs, texts, seed, resamples)
    chosen, rule = _choose(rows, within, budget)
    smaller = chosen.vectors.finish(chosen.weights.make(plain, sample, train_smaller), sample)
    found = Compression(encoder.name, pairs.name, len(pairs.left), rows, chosen, rule)
    model = Path(output) / "model"
    if model.exists():
        shutil.rmtree(model)
    smaller.replace(normalize=encoder.config.normalize).save_pretrained(model)
    return found


def _begin(output: Path, encoder: Encoder, texts: Sequence[str], num_scored: int) -> Path:
    """The folder of measurements, checked to be of this encoder and these texts."""
    config = {
        "encoder": encoder_identity(encoder),
        "texts": hashlib.sha256(json.dumps([*texts]).encode()).hexdigest(),
        "scored": num_scored,
    }
    folder = output / _MEASURED
    atomic.make_folder(folder)
    path = folder / _CONFIG
    if not path.exists():
        atomic.write_json(path, config)
        return folder
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}. Remove {folder}.") from error
    refuse_other_config(folder, "grid", known, config)
    return folder


def _check_recovery(grid: Grid, texts: Sequence[str]) -> None:
    require_extra("train", "recovery")
    if not grid.dropped:
        raise BellmError("Recovery trains what is left after layers were dropped: say how many layers to drop.")
    check_recovery_texts(texts)


def _teacher(encoder: Encoder, texts: Sequence[str], folder: Path) -> Embedder:
    """The vectors of all texts that are trained on, computed once."""
    path = folder / _TEACHER
    if not path.exists():
        with new_vector_file(str(path)) as write:
            write(texts, encoder.encode_with_stats(texts).vectors)
    return load_model(f"{VECTORS}{path}")


def _measure(
    variant: WeightsVariant,
    encoder: Encoder,
    folder: Path,
    texts: Sequence[str],
    calibration: Sequence[str],
    recover: Recover,
) -> Footprint:
    path = folder / f"{variant.key}.safetensors"
    if not path.exists():
        draft = folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            variant.make(encoder, calibration, recover).save_pretrained(draft)
            found = measure_footprint(draft, [*texts, *calibration], str(encoder.device))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        costs = np.array([found.bytes, found.peak_bytes, found.texts_per_second], dtype=np.float64)
        atomic.write_bytes(path, save({"vectors": found.vectors_ND, "costs": costs}))
    try:
        kept = load_file(path)
        size, peak, speed = kept["costs"].tolist()
    except Exception as error:
        raise SourceError(f"{path} cannot be read: {error}. Remove it, and it is measured again.") from error
    return Footprint(int(size), int(peak), speed, kept["vectors"])


def _rows(
    variants: Sequence[WeightsVariant],
    footprints: Sequence[Footprint],
    grid: Grid,
    pairs: STSPairs,
    texts: Sequence[str],
    seed: int,
    resamples: int,
) -> tuple[CompressionRow, ...]:
    index = {text: number for number, text in enumerate(texts)}
    left_N, right_N = ([index[text] for text in side] for side in (pairs.left, pairs.right))
    estimates: dict[str, BootstrapEstimate] = {}
    parts: dict[str, tuple[WeightsVariant, VectorForm, Footprint]] = {}
    for variant, found in zip(variants, footprints, strict=True):
        rest_MD = found.vectors_ND[len(texts) :]
        mean_D = rest_MD.mean(0) if len(rest_MD) else None
        for form in grid.forms():
            name = ", ".join(filter(None, (variant.name, form.name)))
            vectors_ND = form.apply(found.vectors_ND[: len(texts)], mean_D)
            cosines_N = paired_cosine_similarity(vectors_ND[left_N], vectors_ND[right_N]).astype(np.float64)
            if form.binary:  # Vectors that differ in as many signs are as far apart, whatever rounding says.
                cosines_N = cosines_N.round(6)
            estimates[name] = statistics.bootstrap_estimate(cosines_N, pairs.gold_N, resamples=resamples, seed=seed)
            parts[name] = variant, form, found
    first = next(iter(estimates.values()))
    differences = statistics.holm_correction(
        {name: statistics.paired_difference(one, first) for name, one in list(estimates.items())[1:]}
    )
    rows = []
    for name, (variant, form, found) in parts.items():
        one, gain = estimates[name], differences.get(name)
        costs = found.bytes, found.peak_bytes, found.texts_per_second, form.num_bytes(found.vectors_ND.shape[1])
        apart = (gain.value, gain.low, gain.high, gain.p_value) if gain else (0.0, 0.0, 0.0, 1.0)
        rows.append(CompressionRow(name, variant, form, *costs, one.value, one.low, one.high, *apart))
    return tuple(_with_front(rows))


def _with_front(rows: Sequence[CompressionRow]) -> list[CompressionRow]:
    return [replace(row, pareto=not any(other.dominates(row) for other in rows)) for row in rows]


def _choose(rows: Sequence[CompressionRow], within: float, budget: int | None) -> tuple[CompressionRow, str]:
    """Binary vectors are a matter of how they are kept, not of an encoder: they are scored and not chosen."""
    kept = [row for row in rows if not row.vectors.binary]
    if budget is None:
        fit = [row for row in kept if row.difference >= -within]
        return min(fit, key=lambda row: (row.bytes, row.vector_bytes, -row.value)), f"within {within:g} points"
    fit = [row for row in kept if row.bytes <= budget]
    if not fit:
        least = min(row.bytes for row in kept)
        raise BellmError(
            f"Nothing in the grid takes {budget:,} bytes or less: the smallest takes {least:,}. Give more."
        )
    return max(fit, key=lambda row: (row.value, -row.bytes)), f"within {budget / 1e6:g} MB"


def _sample(pairs: STSPairs, number: int, seed: int) -> STSPairs:
    """Some of the pairs, all of them where there are no more."""
    rows = np.random.default_rng(seed).permutation(len(pairs.left))[:number]
    left, right, parts = (tuple(side[row] for row in rows) for side in (pairs.left, pairs.right, pairs.parts))
    return STSPairs(pairs.name, left, right, pairs.gold_N[rows], parts)
