"""Load an encoder with trainable weights, and export it with what they learned."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bellm.backbone import adapters
from bellm.backbone.loading import resolve_dtype
from bellm.encoder import Encoder
from bellm.train.distributed import Distributed
from bellm.train.recipe import FullFineTuning, LoRA, Recipe


def load_trainable(recipe: Recipe) -> tuple[Encoder, torch.dtype | None]:
    """Load a recipe's encoder with its trainable weights; also the autocast dtype, where it differs from theirs.

    Raises:
        BellmError: The model cannot be loaded with its settings, or adapters do not fit.
    """
    options = dict(recipe.encoder_options)
    asked = options.get("dtype", "auto")
    if isinstance(recipe.tuning, FullFineTuning):
        options["dtype"] = "float32"
    if recipe.sharded:
        options["device"] = "cpu"  # Devices get their shards later.
    encoder = Encoder.from_pretrained(recipe.model, **options)
    encoder.name = recipe.model
    encoder.model.requires_grad_(isinstance(recipe.tuning, FullFineTuning))
    if isinstance(recipe.tuning, LoRA):
        lora = recipe.tuning
        if lora.four_bit:
            adapters.quantize_4bit(encoder.model)
        torch.manual_seed(recipe.seed)
        encoder.model = adapters.add_lora(
            encoder.model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets
        )
    device = Distributed().device if recipe.sharded else encoder.device
    precision = resolve_dtype(asked, device) if isinstance(recipe.tuning, FullFineTuning) else encoder.model.dtype
    return encoder, None if precision == torch.float32 else precision


def rebuild_encoder(recipe: Recipe, learned: Mapping[str, Tensor]) -> Encoder:
    """Load the encoder anew with learned weights: of sharded processes, or of a four-bit model.

    Args:
        recipe: Of the run.
        learned: The trainable weights, by name.
    """
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
        encoder.model = adapters.merge_adapters(encoder.model)
    return encoder
