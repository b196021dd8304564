"""Leave decoder layers out of a model."""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers
from bellm.backbone.hooks import causal_copy
from bellm.backbone.weight_matrices import check_not_quantized
from bellm.errors import LayerError


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A causal model of some of the layers, on the same weights, whose configuration says what it holds.

    Raises:
        LayerError: Weights are quantized, or the layers differ in a way that a configuration of fewer cannot say.
    """
    check_not_quantized(model)
    layers = get_layers(model)
    name = type(model).__name__
    source = causal_copy(model)
    config = copy.deepcopy(source.config)
    text: Any = config.get_text_config(decoder=True)
    for field, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == len(layers):
            setattr(text, field, type(value)(value[index] for index in kept))
    text.num_hidden_layers = len(kept)
    stack = next(
        f"{path}." for path, module in source.named_modules() if module is get_layers(source)[0].module
    ).removesuffix("0.")
    renamed = {f"{stack}{index}.": f"{stack}{number}." for number, index in enumerate(kept)}
    weights = {}
    for key, weight in source.state_dict(keep_vars=True).items():
        if not key.startswith(stack):
            weights[key] = weight
        elif new := renamed.get(f"{stack}{key.removeprefix(stack).partition('.')[0]}."):
            weights[new + key.removeprefix(stack).partition(".")[2]] = weight
    try:
        smaller, info = type(model).from_pretrained(
            None, config=config, state_dict=weights, dtype=model.dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise LayerError(
            f"{name} cannot be built with {len(kept)} layers: {' '.join(str(error).split())[:240]}."
        ) from error
    kinds = [layers[index].kind for index in kept]
    problems = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if problems or [layer.kind for layer in get_layers(smaller)] != kinds:
        raise LayerError(
            f"The layers of {name} are of several kinds, and its configuration cannot say which of them are left. Keep "
            "all layers."
        )
    return smaller
