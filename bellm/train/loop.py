"""The training loop, resumable after any interruption."""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import torch

from bellm import run_dir
from bellm.backbone import adapters
from bellm.backbone.leakage import check_open_layers
from bellm.data.amr import Graphs, read_graphs, warn_missing_graphs
from bellm.encoder import Encoder
from bellm.errors import BellmError, BellmWarning, LayerError, NonFiniteError, NoOpWarning, SourceError, warn
from bellm.saved_encoder import FINGERPRINT_TEXTS, check_trainable
from bellm.tensors.similarity import is_constant
from bellm.train import trainable
from bellm.train.batches import Batches, weighted_sources
from bellm.train.dataset import Dataset
from bellm.train.distributed import Distributed, Value, gather_parameters
from bellm.train.examples import Example
from bellm.train.metrics import MetricsLog, training_card
from bellm.train.mining import read_mined_negatives, write_mined_negatives
from bellm.train.recipe import Recipe, user_errors
from bellm.train.token_prediction import gradual_layers
from bellm.train.train_step import StepResult, TrainStep, check_objective

TrainProgress = Callable[[int, int, Mapping[str, Any]], None]
"""Called after every step with its number, the total number of steps, and its record."""

_RUNTIME_OPTIONS = {"device", "attention", "trust_remote_code", "verify"}
"""Options of an encoder that are not saved with it."""

_MOST_WITHOUT_GRADIENT = 10
"""Steps without a gradient after which a run that never had one ends."""


def train(
    recipe: Recipe | Encoder | str,
    data: Dataset | Sequence[Dataset | tuple[Dataset, float]],
    output: str | Path,
    *,
    checkpoint_every: int = 50,
    progress: TrainProgress | None = None,
    notify: Callable[[str], None] | None = None,
    until: int | None = None,
) -> Encoder:
    """Train an encoder, or resume the run of this folder.

    However a run was stopped, the same call resumes it from the last checkpoint with the same data in the same order:
    on a CPU to the same weights, bit by bit. Where several processes were launched (see `Distributed`), each makes this
    call, on a folder that all of them can read; the main one alone writes, scores and calls `progress`.

    Args:
        recipe: Settings of the run, and the model: a source, or an encoder, which stays as it is. A source or an
            encoder alone is trained as `Recipe(model=...)`.
        data: One data set or several, with weights if these are not 1; see `Batches`.
        output: The run directory: the encoder in `model/`, `metrics.jsonl`, the checkpoint.
        checkpoint_every: Steps between two checkpoints.
        progress: Called after every step.
        notify: Called with a sentence on what was done before the first step: mined negatives.
        until: Pause after this step, with a checkpoint. The same call with a later step or none resumes as if there had
            been no pause.

    Returns:
        The encoder with the best weights, or the last where nothing scores them, as it is saved in `output/model`; at a
        pause the encoder with the weights so far.

    Raises:
        SourceError: The folder holds another run, or is in use or past the pause, or the disk refuses.
        BellmError: The recipe does not suit the data, or training diverges: loss, gradient or vectors are no longer
            finite, all texts come to the same vector, or open layers to seeing nothing. Earlier checkpoints are kept.
        Interrupted: Ctrl-C or SIGTERM; the state was written.
    """
    distributed, output = Distributed(), Path(output)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe(model=recipe)
    sources = weighted_sources(data)
    recipe = replace(recipe, sharded=recipe.sharded and distributed.world_size > 1)
    if until is not None and recipe.sharded:
        raise BellmError(f"until={until} does not go with sharded=True: no process has the whole encoder at a pause.")
    if isinstance(recipe.model, str):
        check_trainable(recipe.model, recipe.encoder_options)
    described = recipe.described()
    graphs = _read_graphs(recipe, sources)
    batches = Batches(sources, recipe.batch_size, recipe.seed, graphs)
    with run_dir.resumable_errors(output), distributed.report_lost_process(), ExitStack() as held:

        def lock_and_mine() -> None:
            run_dir.refuse_foreign_folder(output)
            run_dir.check_config(output, described, begin=False)
            held.enter_context(run_dir.lock_run_dir(output))
            if recipe.mine is not None and (done := write_mined_negatives(recipe, sources, output)) and notify:
                notify(done)

        distributed.broadcast(lock_and_mine)
        if recipe.mine is not None:
            batches = Batches(read_mined_negatives(sources, output), recipe.batch_size, recipe.seed, graphs)
        total = recipe.num_steps(batches.per_epoch)
        stop = total if until is None else min(until, total)
        config = {**described, "data": batches.described(), "steps": total}

        def begin() -> bool:
            run_dir.check_config(output, config)
            return (output / run_dir.MODEL).exists()

        if not distributed.broadcast(begin):
            for dataset, _ in batches.sources:
                check_objective(recipe.objective, [*itertools.islice(dataset, recipe.batch_size)])
            run = _Run(recipe, batches, output, total, distributed)
            run.go(stop, checkpoint_every, progress)
            if stop < total:
                return run.current_encoder()
            run.finish(config)
        elif stop < total:
            raise _past_pause(output, total, stop)
        options = {name: recipe.encoder_options[name] for name in _RUNTIME_OPTIONS & set(recipe.encoder_options)}
        if isinstance(recipe.model, Encoder):
            options["device"] = str(recipe.model.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoOpWarning)  # It was given at the start.
            trained: Encoder = Encoder.from_pretrained(output / run_dir.MODEL, **options)
            return trained


def _read_graphs(recipe: Recipe, sources: Sequence[tuple[Dataset, float]]) -> Graphs | None:
    """Graphs that a recipe names, with a warning of the texts that have none; an error where that is all of them."""
    if recipe.graphs is None:
        return None
    graphs = read_graphs(recipe.graphs)
    texts = {text for dataset, _ in sources for example in dataset for text in example.texts}
    if (num_missing := graphs.num_missing(texts)) == len(texts):
        raise BellmError(
            f"None of the {len(texts)} texts of the data has a graph in {recipe.graphs}: leave graphs out."
        )
    warn_missing_graphs(num_missing, len(texts))
    return graphs


class _Run:
    """A run in its folder, from a checkpoint or the start."""

    def __init__(self, recipe: Recipe, batches: Batches, output: Path, total: int, distributed: Distributed) -> None:
        self.recipe, self.batches, self.output, self.total = recipe, batches, output, total
        self.distributed = distributed
        self.encoder, autocast = trainable.load_trainable(recipe)
        distributed.broadcast(partial(trainable.rehearse_saving, self.encoder, recipe, output))
        self.train_step = TrainStep(
            self.encoder,
            recipe.objective,
            distributed=distributed,
            autocast=autocast,
            gradient_checkpointing=recipe.gradient_checkpointing,
            sharded=recipe.sharded,
        )
        self.parameters = self.train_step.parameters
        weights = self.parameters.values()
        # On a GPU one kernel for all weights; on a CPU another order of sums would be another run.
        fused = True if self.encoder.device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(
            weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused
        )
        self.state: dict[str, Any] = {"step": 0, "best": None, "best_interval": [None, None], "best_step": 0}
        self.state |= {"num_truncated": 0, "num_no_gradient": 0, "has_varied": False}
        if distributed.broadcast((output / run_dir.CHECKPOINT).exists):
            self.state = trainable.load_checkpoint(output / run_dir.CHECKPOINT, self.parameters, self.optimizer)
        self.metrics = distributed.broadcast(partial(MetricsLog, output / run_dir.METRICS, self.state["step"]))

    def go(self, stop: int, checkpoint_every: int, progress: TrainProgress | None) -> None:
        """Take the remaining steps up to `stop`."""
        if self.state["step"] > stop:
            raise _past_pause(self.output, self.state["step"], stop)
        with run_dir.graceful_stop() as signals:
            while self.state["step"] < stop and not self._out_of_patience():
                record = self._step(self.state["step"])
                record["dev"] = self._score()
                self.state = self.distributed.broadcast(partial(self._note, record, progress))
                step, stops = self.state["step"], self.distributed.any(signals)
                if step % checkpoint_every == 0 or step == stop or stops:
                    if not self.recipe.sharded:  # These are gathered at the end.
                        self._with_encoder(self._check_trained)
                    self._save_state(run_dir.CHECKPOINT, self.optimizer)
                if stops:
                    raise run_dir.Interrupted(
                        f"step {step} of {self.total} is kept in {self.output}; the same command resumes."
                    )

    def current_encoder(self) -> Encoder:
        """The encoder with the weights so far, its adapters merged as when a saved one is loaded."""
        encoder = trainable.export_encoder(self.encoder, self.recipe)
        return encoder.with_model(adapters.merge_adapters(encoder.model))

    def finish(self, config: Mapping[str, Any]) -> None:
        """Save the encoder with the best weights."""
        if self.distributed.broadcast((self.output / run_dir.BEST).exists):
            best = trainable.load_checkpoint(self.output / run_dir.BEST, self.parameters, None)
            self.state |= {name: best[name] for name in ("best", "best_interval", "best_step")}
        self._with_encoder(partial(self._save, config))

    def _save(self, config: Mapping[str, Any], encoder: Encoder) -> None:
        notes = training_card(config, self.state, self.metrics.records())
        path = self.output / run_dir.MODEL
        try:
            self._check_trained(encoder)
            trainable.export_encoder(encoder, self.recipe).save_pretrained(path, notes=notes)
        except BellmError:
            raise
        except Exception as error:  # Whatever a library raises, it must not look as if the steps were lost.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:240]
            raise BellmError(
                f"All steps are taken and kept in {self.output}, but the encoder cannot be saved: {reason} Mend this "
                "and give the same command again."
            ) from error

    def _check_trained(self, encoder: Encoder) -> None:
        """Refuse weights of which no encoder could be loaded, or one that gives all texts the same vector."""
        what = ""
        try:
            if self.recipe.encoder_options.get("verify", True):
                check_open_layers(encoder.model)
            if is_constant(encoder.encode_with_stats(FINGERPRINT_TEXTS).vectors) and self.state["has_varied"]:
                what = "the weights give all texts the same vector"
        except NonFiniteError:
            what = "the weights give NaN or infinity"
        except LayerError:
            what = "the open layers no longer see what follows a token"
        if what:
            raise self._diverged(f"after step {self.state['step']} {what}")

    def _diverged(self, what: str) -> BellmError:
        return BellmError(
            f"Training diverged: {what}. No encoder is written. Train in another folder with a learning rate below "
            f"{self.recipe.learning_rate:g}."
        )

    def _save_state(self, name: str, optimizer: torch.optim.Optimizer | None) -> None:
        trainable.save_checkpoint(self.output / name, self.parameters, optimizer, self.state, self.distributed)

    def _step(self, step: int) -> dict[str, Any]:
        started = time.monotonic()
        rate = self.recipe.learning_rate_at(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        result = self._learn(step, self.batches[step].examples)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.max_grad_norm)
        if not (math.isfinite(norm) and math.isfinite(result.loss)):
            raise BellmError(
                f"Step {step + 1} has a loss of {result.loss} and a gradient of length {float(norm)}: nothing can "
                "be learned from that. Lower the learning rate, or train in float32."
            )
        if result.is_constant and self.state["has_varied"]:
            raise self._diverged(f"step {step + 1} begins with the same vector for all texts")
        self.state["has_varied"] |= result.is_constant is False
        if norm == 0 or result.is_constant:
            self._note_no_gradient(step, "all texts have the same vector" if norm else "the gradient of its loss is 0")
        self.optimizer.step()
        seconds = time.monotonic() - started
        self.state["step"] = step + 1
        self.state["num_truncated"] += self.distributed.sum(result.num_truncated)
        return {
            "step": step + 1,
            "loss": result.loss,
            "tokens_per_second": round(self.distributed.sum(result.num_tokens) / seconds, 1),
            "learning_rate": rate,
            "grad_norm": float(norm),
            "seconds": round(seconds, 3),
        }

    def _note_no_gradient(self, step: int, reason: str) -> None:
        """Say at the first such step that its rows teach nothing, and end a run that has learned nothing so far."""
        what = f"Step {step + 1} teaches nothing: {reason}."
        why = "Ratings may be all equal, or a batch have one row without negatives (batch size 1, one anchor for all)."
        if self.state["num_no_gradient"] == step and step + 1 >= min(self.total, _MOST_WITHOUT_GRADIENT):
            raise BellmError(f"{what} So it was with all steps before. {why} Give other data or another objective.")
        if not self.state["num_no_gradient"] and self.distributed.is_main:
            warn(f"{what} {why}", BellmWarning)
        self.state["num_no_gradient"] += 1

    def _learn(self, step: int, examples: Sequence[Example]) -> StepResult:
        # Chunks add their index to the seed, so steps are 65 536 apart.
        seed = (self.recipe.seed * 1_000_003 + step) * 65_536 % 2**63
        mntp = self.recipe.mntp_at(step)
        if mntp is None:
            return self.train_step.learn(examples, seed)
        layers = self.encoder.config.bidirectional
        if mntp.gradual:
            layers = gradual_layers(step, mntp.steps, layers)
        return self.train_step.adapt(examples, seed, mask_probability=mntp.mask_probability, layers=layers)

    def _note(self, record: dict[str, Any], progress: TrainProgress | None) -> dict[str, Any]:
        """Record a step; returns the state of the run."""
        self.metrics.add(record)
        if progress:
            progress(self.state["step"], self.total, record)
        return self.state

    def _score(self) -> float | None:
        """Score the encoder every `dev_every` steps, and keep the best weights."""
        step = self.state["step"]
        if not self.recipe.dev or (step % self.recipe.dev_every and step != self.total):
            return None
        score, interval = self._with_encoder(partial(_scored, self.recipe.dev))
        if self.state["best"] is None or score > self.state["best"]:
            self.state |= {"best": score, "best_interval": interval, "best_step": step}
            self._save_state(run_dir.BEST, None)
        return score

    def _with_encoder(self, call: Callable[[Encoder], Value]) -> Value:
        """Call a function of the encoder in the main process, which gathers it first where weights are sharded."""
        if not self.recipe.sharded:
            return self.distributed.broadcast(partial(call, self.encoder))
        learned = gather_parameters(self.parameters, self.distributed)
        return self.distributed.broadcast(lambda: call(trainable.rebuild_encoder(self.recipe, learned)))

    def _out_of_patience(self) -> bool:
        patience, since = self.recipe.patience, self.state["step"] - self.state["best_step"]
        return patience is not None and since >= patience * self.recipe.dev_every


def _past_pause(output: Path, step: int, stop: int) -> SourceError:
    return SourceError(f"{output} is at step {step}, past the pause after {stop}. Choose another folder, or remove it.")


def _scored(dev: Callable[[Encoder], SupportsFloat], encoder: Encoder) -> tuple[float, list[float | None]]:
    """A score and the bounds of its interval, where it has one."""
    with user_errors(dev):
        score = dev(encoder)
        value = float(score)
    if not math.isfinite(value):
        raise BellmError(
            f"The dev score is {value}, which no other score is better or worse than. Correct what gives it."
        )
    return value, [getattr(score, bound, None) for bound in ("low", "high")]
