"""LoRA adapters (arXiv 2106.09685) on a decoder, through PEFT, and 4-bit base weights."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import MERGED, get_layers
from bellm.errors import BellmError, SourceError


def add_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, targets: str | Sequence[str]
) -> PreTrainedModel:
    """Add new adapters, in float32, to the model in place, and freeze everything else.

    Args:
        model: A decoder, open or not.
        rank: Width of the adapters.
        alpha: Scale of the adapters' output, divided by the rank.
        dropout: Share of an adapter's inputs that is dropped in training.
        targets: `all-linear`, or suffixes of module names.
    """
    modules = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules)
    try:
        with warnings.catch_warnings():
            # PEFT asks for gradient checkpointing by its old name.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise BellmError(f"No adapter fits: {' '.join(str(error).split())[:240]}") from error
    return cast(PreTrainedModel, adapted.eval())  # Dropout only within `training_adapters`.


def quantize_4bit(model: PreTrainedModel) -> None:
    """Quantize all linear layers of the decoder in place (NF4, double quantization, arXiv 2305.14314)."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise BellmError("Weights of four bits need bitsandbytes: pip install 'bellm[qlora]'.") from error
    for layer in get_layers(model):
        for module in list(layer.module.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    shape, dtype = (child.in_features, child.out_features, child.bias is not None), model.dtype
                    linear = Linear4bit(*shape, compute_dtype=dtype, compress_statistics=True, quant_type="nf4")
                    linear.weight = Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                    linear.bias = child.bias
                    linear.support_avx512bf16_for_cpu = False  # Weights laid out for that have no gradient.
                    setattr(module, name, linear.to(child.weight.device))
    vars(model)["is_loaded_in_4bit"] = True  # PEFT asks for it.


def load_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load PEFT adapters from a folder and merge them into the model's weights."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Adapters are missing, or match no module.
            warnings.simplefilter("ignore", FutureWarning)
            # Of tied weights and of layers that are not linear, which merging is exact for.
            warnings.filterwarnings("ignore", ".*(tie_word_embeddings|Unsupported layer type)", UserWarning)
            adapted = PeftModel.from_pretrained(model, str(folder))
            # Which weights found no place is told by a second reading alone.
            names = getattr(model, "_checkpoint_conversion_mapping", {})
            unplaced = adapted.load_adapter(str(folder), adapted.active_adapter, key_mapping=names).unexpected_keys
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError, UserWarning) as error:
        reason = " ".join(str(error).split())[:240]
        raise SourceError(f"The adapters in {folder} do not fit their base model: {reason}") from error
    if unplaced:
        first = min(unplaced).removeprefix("base_model.model.") + ", ..." * (len(unplaced) > 1)
        raise SourceError(
            f"The adapters in {folder} do not fit their base model: {len(unplaced)} of their weights find no place "
            f"({first}). Restore adapter_config.json and weights of one adapter, and name its base model there."
        )
    merged = merge_adapters(cast(PreTrainedModel, adapted))
    vars(merged)[MERGED] = True
    return merged


def merged_copy(model: nn.Module) -> nn.Module:
    """Copy of a model with adapters, of PEFT or inside it, those merged that act in a forward pass, and no others.

    Raises:
        SourceError: They cannot be merged, or the model cannot be copied.
    """
    with _merging():
        merged: Any = copy.deepcopy(model)
        for layer in _adapted_modules(merged):
            is_merged = isinstance(layer, BaseTunerLayer) and layer.merged
            if layer.disable_adapters and is_merged:
                layer.unmerge()
            if layer.disable_adapters or is_merged:  # Merged adapters act alone, whatever is active besides.
                layer.set_adapter([])
        return _merge(merged)


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Merge a model's adapters, if it has any, into its weights.

    Raises:
        SourceError: They cannot be merged.
    """
    if not isinstance(model, PeftModel):
        return model
    with _merging():
        return cast(PreTrainedModel, _merge(model))


@contextmanager
def _merging() -> Iterator[None]:
    """Inside, what PEFT cannot merge is a SourceError, and what it warns of is not said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Some are merged already, or on tied weights.
            yield
    except BellmError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:240]
        raise SourceError(
            f"Adapters cannot be merged into their model: {reason} bellm takes LoRA and its relatives: give the model "
            "without these adapters."
        ) from error


def _merge(model: Any) -> nn.Module:
    """Merge active adapters into weights that are no other module's, and leave nothing of PEFT in the model."""
    _unshare(model)
    if hasattr(model, "merge_and_unload"):
        merged = model.merge_and_unload()
    else:
        _unload_inside(model)
        merged = model
    if isinstance(merged, PreTrainedModel):
        head, embeddings = merged.get_output_embeddings(), merged.get_input_embeddings()
        if head is not None and head.weight is not embeddings.weight:
            for config in (merged.config, merged.config.get_text_config(decoder=True)):
                config.tie_word_embeddings = False
    return cast(nn.Module, merged)


def _unshare(model: nn.Module) -> None:
    """Give modules with adapters weights of their own, such as a head that is the table of embeddings."""
    if any(getattr(config, "layer_replication", None) for config in getattr(model, "peft_config", {}).values()):
        raise SourceError(
            "Adapters with layer_replication cannot be merged: the layers that they repeat share their weights. Give "
            "a model in which every layer has its own."
        )
    adapted = {id(weight) for module in _adapted_modules(model) for weight in module.parameters()}
    seen: set[int] = set()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if id(weight) in seen & adapted:
                own = cast(nn.Parameter, weight)
                module._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
            seen.add(id(weight))


def _unload_inside(model: nn.Module) -> None:
    """Merge active adapters inside a model that is not PEFT's, and leave nothing of PEFT in it."""
    adapted = {id(module) for module in _adapted_modules(model)}
    for parent in list(model.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, child in children:
            if id(child) not in adapted or id(parent) in adapted:
                continue
            if hasattr(child, "unload_and_optionally_merge_module"):
                whole = child.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            else:
                child.merge()
                whole = child.get_base_layer()
            setattr(parent, name, whole)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        vars(model).pop(name, None)


def _adapted_modules(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


@contextmanager
def training_adapters(*models: nn.Module) -> Iterator[None]:
    """Inside, adapters apply dropout, and take inputs in their own dtype rather than as a copy in float32."""
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.lora_dropout.train()
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_dropout.eval()
            layer.cast_input_dtype_enabled = True


def has_dropout(model: nn.Module) -> bool:
    """Whether the model's adapters apply dropout within `training_adapters`."""
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    return any(isinstance(module, nn.Dropout) for layer in layers for module in layer.lora_dropout.values())


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, the model runs without PEFT's adapters; afterwards they and `requires_grad` are as before."""
    adapted = _adapted_modules(model)
    if not adapted:
        raise BellmError(
            "The model has no adapter to switch off, and would be its own reference. Train with LoRA, or compute the "
            "reference with a copy of the model made before training."
        )
    enabled = [module for module in adapted if not module.disable_adapters]
    trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        for module in enabled:
            module.enable_adapters(False)
        yield
    finally:
        for module in enabled:
            module.enable_adapters(True)
        for weight, requires_grad in trained:
            weight.requires_grad_(requires_grad)
