"""Low-rank adapters (LoRA, arXiv 2106.09685) on a decoder, through PEFT."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers
from bellm.errors import BellmError, SourceError


def add_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, targets: str | Sequence[str]
) -> PreTrainedModel:
    """Give the model fresh adapters, in float32, and freeze everything else; the model itself is changed.

    Args:
        model: A decoder, open or not.
        rank: Width of the adapters.
        alpha: The adapters' answer counts alpha / rank.
        dropout: Share of an adapter's inputs that is left out in training.
        targets: `all-linear`, or ends of module names.

    Raises:
        BellmError: No module has such a name, or a number is out of range.
    """
    wanted = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted)
    try:
        with warnings.catch_warnings():
            # PEFT asks for gradient checkpointing by its old name.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise BellmError(f"No adapter fits: {' '.join(str(error).split())[:240]}") from error
    return cast(PreTrainedModel, adapted.eval())  # Dropout is for `at_work` alone.


def quantize_4bit(model: PreTrainedModel) -> None:
    """Keep the weights of all linear layers of the decoder in four bits (NF4 twice quantised, arXiv 2305.14314).

    Raises:
        BellmError: What it needs is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise BellmError("Weights of four bits need bitsandbytes: pip install 'bellm[qlora]'.") from error
    for layer in get_layers(model):
        for module in list(layer.module.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    shape, biased, dtype = (child.in_features, child.out_features), child.bias is not None, model.dtype
                    small = Linear4bit(*shape, biased, compute_dtype=dtype, compress_statistics=True, quant_type="nf4")
                    small.weight = Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                    small.bias = child.bias
                    small.support_avx512bf16_for_cpu = False  # Weights laid out for that have no gradient.
                    setattr(module, name, small.to(child.weight.device))
    vars(model)["is_loaded_in_4bit"] = True  # So PEFT knows.


def load_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with adapters that `save_pretrained` of PEFT wrote merged into its weights.

    Raises:
        SourceError: They cannot be read, or are not of this model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Of adapters that are not there, or fit nowhere.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UserWarning) as error:
        words = " ".join(str(error).split())[:240]
        raise SourceError(f"The adapters in {folder} do not fit their base model: {words}") from error
    return merge_adapters(cast(PreTrainedModel, adapted))


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapters added to its weights, for good; one without adapters comes back as it is."""
    return cast(PreTrainedModel, model.merge_and_unload()) if isinstance(model, PeftModel) else model


@contextmanager
def training_adapters(*models: nn.Module) -> Iterator[None]:
    """Inside, adapters drop out inputs, and take states in the dtype they come in rather than a copy in float32."""
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
    """Whether its adapters leave out inputs while they are `at_work`."""
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    return any(isinstance(each, nn.Dropout) for layer in layers for each in layer.lora_dropout.values())


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Let the model compute without peft's adapters; afterwards all is as it was, also what takes gradients.

    Raises:
        BellmError: The model has no adapter: it would be its own reference.
    """
    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
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
