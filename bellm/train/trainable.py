"""Trainable weights: load an encoder with them, keep them in checkpoints, export what they learned.

A checkpoint is one safetensors file, written atomically: weights, optimizer state and the progress of the run.
"""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bellm.backbone import adapters
from bellm.backbone.loading import resolve_dtype
from bellm.backbone.source_names import ALIASES
from bellm.encoder import Encoder
from bellm.errors import BellmError, NothingToLearnError, SourceError
from bellm.io import atomic
from bellm.run_dir import MODEL
from bellm.saved_encoder import quantized_error
from bellm.train.distributed import Distributed, gather_parameters, local_shard
from bellm.train.recipe import FullFineTuning, LoRA, Recipe

_WEIGHT, _MOMENT = "weight:", "moment:"
_SMALL = 2**26  # Bytes that are written in a moment: a disk that refuses them does so soon enough.


def load_untrained(recipe: Recipe, **overrides: Any) -> Encoder:
    """Load a recipe's encoder as it is before training, or derive it from the one in the recipe, on the same weights.

    Overrides are options of `Encoder.from_pretrained`, for a recipe that names a source.
    """
    if isinstance(recipe.model, Encoder):
        return recipe.model.replace(**recipe.encoder_options)
    encoder: Encoder = Encoder.from_pretrained(recipe.model, **{**recipe.encoder_options, **overrides})
    # Adapters that are saved alone find their base by this name, from whatever folder they are loaded.
    alone = isinstance(recipe.tuning, LoRA) and not recipe.tuning.merged
    if recipe.model not in ALIASES:
        encoder.name = os.path.abspath(recipe.model) if alone and os.path.exists(recipe.model) else recipe.model
    return encoder


def load_trainable(recipe: Recipe) -> tuple[Encoder, torch.dtype | None]:
    """Load a recipe's encoder with its trainable weights; also the autocast dtype, where it differs from theirs."""
    full = isinstance(recipe.tuning, FullFineTuning)
    overrides = {"dtype": "float32"} if full else {}
    if recipe.sharded:
        overrides["device"] = "cpu"  # Devices get their shards later.
    encoder = load_untrained(recipe, **overrides)
    if reason := encoder.config.constant_reason(encoder.num_layers):
        raise NothingToLearnError(f"Nothing can be learned: {reason}")
    if not full and encoder.config.last_state(encoder.num_layers) == 0:
        raise NothingToLearnError(
            f"layer={encoder.config.layer} pools token embeddings, which lie below all adapters: nothing can be "
            "learned. Pool a later state, or train all weights."
        )
    encoder.check_uncentered("training")
    if any(not weight.is_floating_point() for weight in encoder.model.parameters()):
        raise quantized_error(encoder.name)
    asked = recipe.encoder_options.get("dtype", "auto")
    if isinstance(recipe.model, Encoder):
        asked = recipe.model.dtype_name
        encoder = encoder.with_model(copy.deepcopy(encoder.model))
        if recipe.sharded:
            encoder.model.cpu()
        if full:
            encoder.model.float()
    encoder.model.requires_grad_(full)
    if isinstance(recipe.tuning, LoRA):
        lora = recipe.tuning
        if lora.four_bit:
            adapters.quantize_4bit(encoder.model)
        torch.manual_seed(recipe.seed)
        adapted = adapters.add_lora(
            encoder.model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets
        )
        encoder = encoder.with_model(adapted)
    device = Distributed().device if recipe.sharded else encoder.device
    precision = resolve_dtype(asked, device) if full else encoder.model.dtype
    return encoder, None if precision == torch.float32 else precision


def rehearse_saving(encoder: Encoder, recipe: Recipe, run_dir: Path) -> None:
    """Write what an encoder is saved with besides its weights, and remove it, so that a failure shows before training.

    A disk that is too small for a large model is refused too: for checkpoint, best weights and encoder, and the draft
    that takes the place of each.
    """
    try:
        with tempfile.TemporaryDirectory(dir=run_dir, prefix=f".{MODEL}-") as draft:
            encoder.model.config.save_pretrained(draft)
            encoder.tokenizer.save_pretrained(draft)
    except OSError as error:
        raise SourceError(f"{run_dir / MODEL} cannot be written: {error.strerror or error}.") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:240]
        raise BellmError(f"{encoder.name} could not be saved after training: {reason}") from error
    alone = isinstance(recipe.tuning, LoRA) and not recipe.tuning.merged
    weights = list(encoder.model.parameters())
    learned, whole = ([w.nbytes for w in weights if w.requires_grad or every] for every in (False, not alone))
    needed, free = 5 * sum(learned) + sum(whole), shutil.disk_usage(run_dir).free
    if free < needed and needed > _SMALL:
        raise SourceError(
            f"{run_dir} has {free / 2**30:.1f} GiB left, and training there takes {needed / 2**30:.1f}. Choose another "
            "disk, or make room."
        )


def rebuild_encoder(recipe: Recipe, learned: Mapping[str, Tensor]) -> Encoder:
    """Load the encoder anew with learned weights by name: of sharded processes, or of a four-bit model."""
    encoder, _ = load_trainable(replace(recipe, sharded=False))
    keys = encoder.model.load_state_dict(learned, strict=False)
    assert not keys.unexpected_keys
    return encoder


def export_encoder(encoder: Encoder, recipe: Recipe) -> Encoder:
    """The encoder as it is to be saved."""
    tuning = recipe.tuning
    if isinstance(tuning, LoRA) and tuning.four_bit:
        learned = {name: weight for name, weight in encoder.model.named_parameters() if weight.requires_grad}
        encoder = rebuild_encoder(replace(recipe, tuning=replace(tuning, four_bit=False)), learned)
    if isinstance(tuning, LoRA) and tuning.merged:
        encoder = encoder.with_model(adapters.merge_adapters(encoder.model))
    if any(step.get("kind") == "prune" for step in encoder.compression):
        summary = "trained after that: removed weights may be back"
        encoder = encoder.with_compression({"kind": "train", "summary": summary})
    return encoder


def save_checkpoint(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
    progress: Mapping[str, Any],
    distributed: Distributed | None = None,
) -> None:
    """Write trainable weights, their optimizer state and the progress of the run.

    The file is the same for sharded and unsharded weights. All processes make this call, and the main one writes.

    Args:
        path: The file; where the disk refuses, what was there before is kept.
        parameters: Trainable weights by name.
        optimizer: Whose state is kept; None keeps weights alone.
        progress: Plain values.
        distributed: The processes; None for those that were launched together.
    """
    distributed = distributed or Distributed()
    tensors = {f"{_WEIGHT}{name}": parameter.detach() for name, parameter in parameters.items()}
    if optimizer:
        for name, parameter in parameters.items():
            moments = optimizer.state[parameter].items()
            tensors |= {f"{_MOMENT}{moment}:{name}": value for moment, value in moments}
    distributed.broadcast(partial(_write, path, gather_parameters(tensors, distributed), progress))


def load_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote into these parameters and this optimizer; returns the progress."""
    try:
        with safe_open(path, "pt") as file:
            _fill(file, parameters, optimizer)
            progress: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SourceError(f"{path} cannot be read ({reason}). Remove it to begin anew.") from error
    return progress


def _write(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic.atomic_write(path) as file:
        save_file(contiguous, file.name, {"progress": json.dumps(progress)})
        with Path(file.name).open("rb") as written:  # safetensors replaces the open file by one of its own.
            os.fsync(written.fileno())


def _fill(file: Any, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None) -> None:
    state: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for key in file.keys():  # noqa: SIM118 - not a mapping
        if optimizer and key.startswith(_MOMENT):
            moment, name = key.removeprefix(_MOMENT).split(":", 1)
            value = file.get_tensor(key)
            state[name][moment] = value if moment == "step" else local_shard(value, parameters[name])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(local_shard(file.get_tensor(f"{_WEIGHT}{name}"), parameter))
            if optimizer and state[name]:
                optimizer.state[parameter] = state[name]
