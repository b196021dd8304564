"""Which weights of an encoder learn, and the encoder that comes of it."""

import torch

from bellm.backbone import adapters
from bellm.backbone.loading import resolve_dtype
from bellm.encoder import Encoder
from bellm.train.recipe import Full, Lora, Recipe


def prepared(recipe: Recipe) -> tuple[Encoder, torch.dtype | None]:
    """Load a recipe's encoder with the weights that are to learn; also the dtype of its products where not their own.

    Raises:
        BellmError: The model or its settings cannot be had, or adapters do not fit.
    """
    settings = dict(recipe.settings)
    asked = settings.get("dtype", "auto")
    if isinstance(recipe.tuning, Full):
        settings["dtype"] = "float32"
    encoder = Encoder.load(recipe.model, **settings)
    encoder.name = recipe.model
    encoder.model.requires_grad_(isinstance(recipe.tuning, Full))
    if isinstance(recipe.tuning, Lora):
        lora = recipe.tuning
        torch.manual_seed(recipe.seed)
        encoder.model = adapters.add_lora(
            encoder.model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets
        )
    precision = resolve_dtype(asked, encoder.device) if isinstance(recipe.tuning, Full) else encoder.model.dtype
    return encoder, None if precision == torch.float32 else precision


def finished(encoder: Encoder, tuning: Lora | Full) -> Encoder:
    """The encoder as it is to be saved."""
    if isinstance(tuning, Lora) and tuning.merged:
        encoder.model = adapters.merge(encoder.model)
    return encoder
