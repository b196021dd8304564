"""Remove weights of an encoder, layer by layer, by what its calibration texts make of them."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from bellm.backbone.hooks import shared_copy
from bellm.backbone.layerwise import LayerwisePass, equal_length_batches
from bellm.backbone.weight_matrices import WeightMatrix, find_matrices
from bellm.compress.allocation import Shares, allocate, allocate_by_outliers, apportion
from bellm.compress.pruners import InputStatistics, Pattern, PruneMethod, prune_matrix, wanda_scores
from bellm.compress.spectra import layer_alphas, measure_spectra
from bellm.encoder import Encoder
from bellm.engine.memory_budget import default_batch_tokens
from bellm.errors import BellmError, SourceError, check_choice, check_encoder
from bellm.io import atomic
from bellm.run_dir import refuse_other_config, resumable_errors
from bellm.saving import weights_digest

Allocation = Literal["uniform", "alpha", "owl"]
"""Which layers lose more: none, those with lighter tails of their spectra, those with fewer outliers."""

Progress = Callable[[str, int, int], None]

_OUTLIER = 5.0
"""Multiple of the mean score of a layer from which OWL calls a weight an outlier."""

_CONFIG, _SCORES, _LOCK = "pruning.json", "scores.json", ".lock"


def prune(
    encoder: Encoder,
    sparsity: float | None = None,
    *,
    method: PruneMethod = "wanda",
    allocation: Allocation = "uniform",
    texts: Sequence[str] = (),
    pattern: str | None = None,
    eps: float = 0.2,
    work: str | Path | None = None,
    progress: Progress = lambda *_: None,
) -> Encoder:
    """Give an encoder without a share of the weights in its decoder layers; the given one stays as it is.

    The calibration texts go through the encoder as they would for `encode`, in its prompt and with its open layers.
    Each layer sees what the layers below it give after they were pruned. Removed weights are zeros: a file is as large
    as before unless it is compressed, and a product as slow unless its kernel leaves zeros out.

    Args:
        encoder: Any encoder with weights in floating point.
        sparsity: Share of the weights in matrices of decoder layers that goes; a pattern says it itself.
        method: `magnitude` takes the smallest weights, `wanda` those that weigh least on the texts, `sparsegpt` also
            corrects those that stay.
        allocation: `uniform`, `alpha` (AlphaPruning) or `owl`.
        texts: Calibration texts; 128 or more of the kind that will be embedded. magnitude needs none but for owl.
        pattern: `2:4` keeps 2 of every 4 weights of a row, of all layers alike.
        eps: How far the layers differ with `alpha`: the most and the least are 1 + eps and 1 - eps times a level.
        work: Folder that keeps what is done, so that the same call goes on where it was stopped.
        progress: Called with what is done, how many layers are, and how many there are.

    Raises:
        BellmError: Texts are missing, the share is not between 0 and 1, or does not fit the pattern.
        LayerError: Weights are quantized, fused or shared, or layers cannot run one by one.
        SourceError: The work folder is of another pruning, or is in use.
    """
    check_encoder(encoder, Encoder)
    encoder.check_uncentered("pruning")
    check_choice("method", method, PruneMethod)
    check_choice("allocation", allocation, Allocation)
    groups = Pattern.parse(pattern) if pattern else None
    if groups and allocation != "uniform":
        raise BellmError(f"pattern={pattern} removes the same share of every layer: leave allocation={allocation} out.")
    if groups and sparsity not in (None, groups.sparsity):
        raise BellmError(f"sparsity={sparsity:g}, and pattern={pattern} is {groups.sparsity:g}: give one of them.")
    if sparsity is None and not groups:
        raise BellmError("Nothing says how many weights go: give sparsity=0.5, say, or pattern='2:4'.")
    share = groups.sparsity if groups else sparsity
    assert share is not None
    allocate([0], [1], share, eps)  # Refuses what suits no layer.
    needs_texts = method != "magnitude" or allocation == "owl"
    if needs_texts and not texts:
        what = f"allocation={allocation}" if method == "magnitude" else f"method={method}"
        raise BellmError(f"{what} asks what texts make of the weights: give calibration texts, 128 or more.")
    config = {
        "weights": weights_digest(encoder.model),
        "encoder": encoder.config.digest(),
        "texts": _digest_texts(texts) if needs_texts else None,
        "sparsity": share,
        "method": method,
        "allocation": allocation,
        "pattern": pattern,
        "eps": eps if allocation == "alpha" else None,
    }
    pruned = encoder.with_model(shared_copy(encoder.model))
    del encoder  # Its weights may go where nobody else holds it.
    run = _Run(pruned, texts if needs_texts else (), method, groups, progress)
    for layer in run.matrices:
        for matrix in layer if groups else ():
            assert groups
            groups.check(matrix.name, matrix.weight_OI.shape[1])
    with _work_folder(Path(work), config) if work else nullcontext() as folder:
        scores = run.scores(allocation, folder)
        sizes = [sum(matrix.weight_OI.numel() for matrix in layer) for layer in run.matrices]
        shares_K = _shares(allocation, scores, sizes, share, eps)
        run.prune(shares_K, folder)
    removed = sum(int((matrix.weight_OI == 0).sum()) for layer in run.matrices for matrix in layer)
    record = {
        "kind": "prune",
        "summary": f"{removed / sum(sizes):.1%} of {sum(sizes):,} weights removed ({pattern or allocation}, {method})",
        **{name: config[name] for name in ("sparsity", "method", "allocation", "pattern", "eps")},
        "texts": run.num_texts,
        "weights": sum(sizes),
        "removed": removed,
        "layers": [
            {"layer": index, "weights": size, "sparsity": round(float(part), 4), "score": score}
            for index, (size, part, score) in enumerate(zip(sizes, shares_K, scores, strict=True))
        ],
    }
    return pruned.with_compression(record)


@dataclass
class _Run:
    """The layers of an encoder that is being pruned."""

    encoder: Encoder
    texts: Sequence[str]
    method: PruneMethod
    pattern: Pattern | None
    progress: Progress

    def __post_init__(self) -> None:
        self.model: PreTrainedModel = self.encoder.model
        self.matrices: list[tuple[WeightMatrix, ...]] = find_matrices(self.model)
        rows = self.encoder.tokenize(self.texts).ids if self.texts else []
        self.batches = equal_length_batches(rows, default_batch_tokens(self.model))
        self.num_texts = sum(map(len, self.batches))

    def scores(self, allocation: Allocation, folder: Path | None) -> list[float | None]:
        """What tells the layers apart: exponents, or shares of outliers; None where nothing does."""
        if allocation == "uniform":
            return [None] * len(self.matrices)
        path = folder / _SCORES if folder else None
        if path and path.exists():
            known: list[float | None] = json.loads(path.read_text(encoding="utf-8"))
            return known
        found = layer_alphas(measure_spectra(self.model, self.progress)) if allocation == "alpha" else self._outliers()
        if path:
            atomic.write_json(path, found)
        return list(found)

    def prune(self, shares_K: Shares, folder: Path | None) -> None:
        """Prune layer after layer, or take what the folder has of it."""
        forward = LayerwisePass(self.model, self.batches) if self.method != "magnitude" else None
        for index, matrices in enumerate(self.matrices):
            self.progress("pruning layers", index, len(self.matrices))
            path = folder / f"layer-{index:03}.safetensors" if folder else None
            pruned = _read_layer(path) if path and path.exists() else None
            if pruned is None:
                pruned = self._prune_layer(index, shares_K, forward)
                if path:
                    atomic.write_bytes(path, save({name: weight.cpu() for name, weight in pruned.items()}))
            for matrix in matrices:
                matrix.replace(pruned[matrix.name].to(matrix.weight_OI.device))
            if forward and index + 1 < len(self.matrices):
                forward.advance()

    def _prune_layer(self, index: int, shares_K: Shares, forward: LayerwisePass | None) -> dict[str, torch.Tensor]:
        matrices = self.matrices[index]
        sizes = np.array([matrix.weight_OI.numel() for matrix in matrices])
        counts = apportion(sizes * shares_K[index], round(float(sizes.sum() * shares_K[index])))
        statistics = self._observe(forward, matrices, index) if forward else defaultdict(InputStatistics)
        with torch.no_grad():
            return {
                matrix.name: prune_matrix(
                    matrix.weight_OI, int(count), self.method, statistics[matrix.name], self.pattern
                ).contiguous()
                for matrix, count in zip(matrices, counts, strict=True)
            }

    def _observe(
        self, forward: LayerwisePass, matrices: Sequence[WeightMatrix], index: int
    ) -> dict[str, InputStatistics]:
        statistics = {matrix.name: InputStatistics() for matrix in matrices}
        with_gram = self.method == "sparsegpt"
        forward.observe(matrices, lambda name, rows_NI: statistics[name].add(rows_NI, with_gram=with_gram))
        if unseen := [name for name, one in statistics.items() if not one.num_tokens]:
            raise BellmError(
                f"No token of the calibration texts comes to {unseen[0]} of layer {index}: give more texts, or "
                "method='magnitude'."
            )
        return statistics

    def _outliers(self) -> list[float | None]:
        """Share of each layer's weights whose score is far above the mean, before anything is pruned."""
        forward, found = LayerwisePass(self.model, self.batches), list[float | None]()
        for index, matrices in enumerate(self.matrices):
            self.progress("outliers", index, len(self.matrices))
            statistics = self._observe(forward, matrices, index)
            with torch.no_grad():
                scores = [wanda_scores(matrix.weight_OI, statistics[matrix.name]) for matrix in matrices]
            limit = _OUTLIER * sum(float(each.sum()) for each in scores) / sum(each.numel() for each in scores)
            above = sum(int((each > limit).sum()) for each in scores)
            found.append(above / sum(each.numel() for each in scores))
            if index + 1 < len(self.matrices):
                forward.advance()
        return found


def spread_texts(texts: Sequence[str], most: int) -> list[str]:
    """Different texts, at most so many, from the first to the last evenly."""
    texts = list(dict.fromkeys(texts))
    return [texts[number * len(texts) // most] for number in range(most)] if len(texts) > most else texts


def _shares(
    allocation: Allocation, scores: Sequence[float | None], sizes: Sequence[int], sparsity: float, eps: float
) -> Shares:
    known = [0.0 if score is None else score for score in scores]
    if allocation == "owl":
        return allocate_by_outliers(known, sizes, sparsity)
    return allocate(known, sizes, sparsity, eps)


def _digest_texts(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


@contextmanager
def _work_folder(folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """Lock the folder and make sure that it is of this pruning, or begin it."""
    from filelock import FileLock, Timeout

    atomic.make_folder(folder)
    try:
        lock = FileLock(folder / _LOCK).acquire(timeout=0)
    except Timeout as error:
        raise SourceError(f"Another run is pruning in {folder}.") from error
    with lock, resumable_errors(folder):
        try:
            atomic.remove_drafts(folder)
            path = folder / _CONFIG
            if path.exists():
                try:
                    known = json.loads(path.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise SourceError(f"{path} cannot be read: {error}. Remove {folder}.") from error
                refuse_other_config(folder, "pruning", known, config)
            else:
                atomic.write_json(path, config)
            yield folder
        finally:
            if not any(path.suffix == ".safetensors" or path.name == _SCORES for path in folder.iterdir()):
                shutil.rmtree(folder)  # Nothing was done.


def _read_layer(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path} cannot be read: {error}. Remove it, and its layer is pruned again.") from error
