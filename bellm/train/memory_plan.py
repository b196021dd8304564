"""What a training takes in memory, reckoned from a model's configuration before anything is loaded.

The model is built on torch's meta device, where weights have shapes and no bytes, with the adapters of the recipe. A
forward pass there tells which states autograd would keep.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bellm.backbone import adapters
from bellm.backbone.architecture import count_layers, get_decoder, get_layers, get_text_config
from bellm.backbone.fused_modules import fuse_modules
from bellm.backbone.loading import locate, resolve_device, resolve_dtype
from bellm.backbone.source_names import split_revision
from bellm.backbone.states import hidden_size
from bellm.backbone.weights import check_kind
from bellm.encoder import Encoder
from bellm.engine.concurrency import CONCURRENT_BATCHES
from bellm.engine.memory_budget import chunk_tokens, free_bytes, graph_tokens
from bellm.errors import BellmError, SourceError
from bellm.train.recipe import FullFineTuning, LoRA, Recipe

FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 with double quantization (arXiv 2305.14314): half a byte, an 8-bit scale for 64 weights, and
a scale in float32 for 256 of those."""

_ATTENTION = "bellm_plan"

_WIDE = 4
"""Bytes of a trainable weight, its gradient, and each of AdamW's two moments: they are float32."""

_TEXTS = 3
"""Of a row: anchor, positive, negative."""

_RUNTIME = 600 << 20
"""Bytes of a process on a CPU before a model is loaded: Python, torch, transformers and their kernels. Measured."""

_KEPT_FREE = 0.25
"""Share of the activations on a CPU that the C library keeps when they are freed, in pieces that fit nothing else.
Measured."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device."""

    tuning: str
    devices: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """States that autograd keeps of the texts whose graphs are held at once."""
    workspace: int
    """Vectors of the batch; on a CPU also gradients of chunks before they are added up, and what the optimizer needs.

    On a GPU a fused optimizer updates weights where they are.
    """
    runtime: int
    """The process itself, on a CPU."""
    memory: int
    """What there is of it."""
    cached: bool
    """Whether gradients are cached: texts run twice, chunk by chunk, because the graphs of a step do not fit."""

    @property
    def total(self) -> int:
        """Sum of all."""
        parts = self.weights, self.gradients, self.optimizer, self.activations, self.workspace, self.runtime
        return sum(parts)

    @property
    def fits(self) -> bool:
        """Whether the device has that much."""
        return self.total <= self.memory


def plan_memory(
    recipe: Recipe, *, devices: int = 1, device: str = "auto", memory: int | None = None, text_tokens: int = 128
) -> list[MemoryPlan]:
    """Reckon a recipe's training with all weights, with adapters, and with adapters on four bits.

    With several devices the first two are also reckoned sharded over them; see `Recipe.sharded`.

    Args:
        recipe: Model, adapters, batch size and `max_tokens` count; its own tuning is one of several.
        devices: Over which a batch is divided.
        device: Where it is to run, present or not: `cpu`, `cuda`, or `auto` for what is here.
        memory: Bytes of a device; None for those of the device that is here.
        text_tokens: Tokens of every text, its prompt included.

    Raises:
        BellmError: The source has no configuration of a decoder-only model.
    """
    if isinstance(recipe.model, Encoder):
        raise BellmError("An encoder in memory is loaded already: plan with model= as a source.")
    place = torch.device("cuda") if device == "cuda" else resolve_device(device)
    config = _read_config(recipe.model, bool(recipe.encoder_options.get("trust_remote_code")))
    lora = recipe.tuning if isinstance(recipe.tuning, LoRA) else LoRA()
    ways: list[tuple[str, LoRA | FullFineTuning, bool]] = [
        ("all weights", FullFineTuning(), False),
        (f"LoRA, rank {lora.rank}", replace(lora, four_bit=False), False),
        (f"QLoRA, rank {lora.rank}", replace(lora, four_bit=True), False),
    ]
    if devices > 1:
        ways += [(f"{name}, sharded", tuning, True) for name, tuning, _ in ways[:2]]
    asked = str(recipe.encoder_options.get("dtype") or "auto")
    dtype = torch.bfloat16 if asked == "auto" and place.type == "cuda" else resolve_dtype(asked, place)
    return [
        _Reckoning(config, recipe, tuning, name, place, dtype, devices, sharded).plan(memory, text_tokens)
        for name, tuning, sharded in ways
    ]


@dataclass(frozen=True)
class _Reckoning:
    """One way to train."""

    config: Any
    recipe: Recipe
    tuning: LoRA | FullFineTuning
    name: str
    device: torch.device
    dtype: torch.dtype
    devices: int
    sharded: bool

    def plan(self, memory: int | None, text_tokens: int) -> MemoryPlan:
        """Bytes of one way to train."""
        model = _empty_model(self.config, self.tuning, self.dtype)
        shards = self.devices if self.sharded else 1
        # A language-model head of its own has no gradient.
        trainable = [weight for weight in get_decoder(model).parameters() if weight.requires_grad]
        learned = sum(weight.numel() for weight in trainable) * _WIDE
        weights = self._weight_bytes(model)
        gathered = self._gathered_bytes(model) if self.sharded else 0
        weights = weights // shards + gathered
        memory = memory or _memory_of(self.device)
        free = max(0, memory - weights)
        step = -(-self.recipe.batch_size // self.devices) * _TEXTS * text_tokens
        concurrent = CONCURRENT_BATCHES if self.device.type == "cpu" else 1
        chunk = max(chunk_tokens(model, self.device.type, self.dtype, free) // concurrent, text_tokens)
        cached = step > graph_tokens(model, free)
        held = min(step, chunk * concurrent) if cached else step
        of_token, of_pass = _kept_bytes(model, text_tokens, flash=self.device.type == "cuda")
        largest = max((weight.numel() * _WIDE for weight in trainable), default=0)
        activations = held * of_token + -(-held // chunk) * of_pass
        if self.recipe.gradient_checkpointing:
            # The states between layers, and what one layer keeps of the chunks that are computed again.
            depth, state = count_layers(model), hidden_size(model) * self.dtype.itemsize
            activations = held * depth * state + min(held, chunk * concurrent) * of_token // depth + of_pass // depth
        workspace = 2 * _WIDE * self.recipe.batch_size * _TEXTS * hidden_size(model)
        if self.device.type == "cpu":  # The optimizer goes from weight to weight; each chunk has gradients of its own.
            workspace += 3 * largest // shards + (0 if self.sharded else concurrent * learned)
            activations += round(_KEPT_FREE * activations)
        return MemoryPlan(
            self.name,
            self.devices,
            weights,
            learned // shards,
            2 * learned // shards,
            activations,
            workspace,
            _RUNTIME if self.device.type == "cpu" else 0,
            memory,
            cached,
        )

    def _weight_bytes(self, model: PreTrainedModel) -> int:
        """Bytes of all weights, in the form in which they are kept while training."""
        weights = list(model.parameters())
        packed = {id(module.weight) for module in _four_bit_modules(model)} if self._four_bit else set()
        sizes = ((weight.numel(), FOUR_BITS if id(weight) in packed else weight.element_size()) for weight in weights)
        return round(float(sum(number * size for number, size in sizes)))

    def _gathered_bytes(self, model: PreTrainedModel) -> int:
        """Bytes of what is whole on every device: one layer, and the weights outside of layers."""
        inside = [sum(_bytes(weight) for weight in layer.module.parameters()) for layer in get_layers(model)]
        return max(inside) + sum(map(_bytes, model.parameters())) - sum(inside)

    @property
    def _four_bit(self) -> bool:
        return isinstance(self.tuning, LoRA) and self.tuning.four_bit


def _read_config(source: str, trust_remote_code: bool) -> Any:
    location = locate(*split_revision(source))
    options = {"gguf_file": location.gguf} if location.gguf else {}
    try:
        config = AutoConfig.from_pretrained(location.path, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SourceError(f"{source} has no configuration to plan by: {reason}") from error
    check_kind(config, source)
    return config


def _empty_model(config: Any, tuning: LoRA | FullFineTuning, dtype: torch.dtype) -> PreTrainedModel:
    """The model without bytes, as it trains: all of it in float32, or with adapters in float32 on frozen weights."""
    full = isinstance(tuning, FullFineTuning)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if full else dtype)
        model.eval().requires_grad_(full)
        if isinstance(tuning, LoRA):
            model = adapters.add_lora(model, rank=tuning.rank, alpha=1, dropout=0, targets=tuning.targets)
    return model


def _kept_bytes(model: PreTrainedModel, length: int, *, flash: bool) -> tuple[int, int]:
    """Bytes that autograd keeps of a token of a text, and of a pass whatever its length: copies of adapters."""
    text_config: Any = get_text_config(model)
    AttentionInterface.register(_ATTENTION, _attend_flash if flash else _attend)
    text_config._attn_implementation_internal = _ATTENTION
    fuse_modules(model)  # As the packed engine does.
    mask_11LL = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
    ids_1L = torch.zeros(1, length, dtype=torch.long, device="meta")
    kept: dict[int, Tensor] = {}
    given = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers(), mask_11LL)}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with adapters.training_adapters(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        get_decoder(model)(input_ids=ids_1L, attention_mask=mask_11LL, position_ids=ids_1L, use_cache=False)
    found = [tensor for number, tensor in kept.items() if number not in given]
    of_text, of_pass = (
        sum(tensor.untyped_storage().nbytes() for tensor in found if (length in tensor.shape) == grows)
        for grows in (True, False)
    )
    return int(of_text) // length, int(of_pass)


class _KeepAttention(Function):
    """What attention keeps for its backward pass, without computing it; a flash kernel keeps no weight of a pair.

    Shapes: B texts, H query heads, G key heads, L tokens, E width of a head.
    """

    @staticmethod
    def forward(ctx: Any, query_BHLE: Tensor, key_BGLE: Tensor, value_BGLE: Tensor, flash: bool) -> Tensor:
        """Save it, and give a result of the right shape."""
        output_BLHE = query_BHLE.new_empty((*query_BHLE.shape[:3], value_BGLE.shape[3])).transpose(1, 2)
        weights_BHLL = query_BHLE.new_empty(*query_BHLE.shape[:3], key_BGLE.shape[2])
        ctx.save_for_backward(query_BHLE, key_BGLE, value_BGLE, output_BLHE if flash else weights_BHLL)
        return output_BLHE


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return _KeepAttention.apply(query, key, value, False), None  # type: ignore[no-untyped-call]


def _attend_flash(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    return _KeepAttention.apply(query, key, value, True), None  # type: ignore[no-untyped-call]


def _four_bit_modules(model: PreTrainedModel) -> Iterator[nn.Linear]:
    """Linear modules of the layers, but those of adapters: what `adapters.quantize_4bit` packs."""
    for layer in get_layers(model):
        for name, module in layer.module.named_modules():
            if isinstance(module, nn.Linear) and "lora_" not in name:
                yield module


def _bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


def _memory_of(device: torch.device) -> int:
    """Free bytes of a device that is here; of one that is not, 24 GiB are taken for granted."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return 24 << 30
    return free_bytes(device)
