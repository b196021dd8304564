"""Check whether a model can be packed: packed against padded vectors, once for each model.

Shapes: B rows, D width.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.fused_modules import fuse_modules
from bellm.backbone.hooks import shared_copy
from bellm.backbone.kept_checks import KeptCheck
from bellm.backbone.leakage import sample_token_ids
from bellm.backbone.packed_model import PackedModel, attention_implementation
from bellm.backbone.packed_pass import AttentionKernel, NotPackableError, attention_kernels
from bellm.backbone.states import input_device, without_autocast
from bellm.engine.packed import PackedRunner
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout, JoinedReadout
from bellm.engine.tokenization import Tokens
from bellm.errors import KernelWarning, warn
from bellm.tensors.packing import KernelRefusal
from bellm.tensors.similarity import relative_distance, tolerances
from bellm.types import PoolingName

_ROUNDINGS = 3
"""A distance of up to so many times the effect of one rounding is put down to rounding."""

_UNEXPLAINED = 0.5
"""A distance above this is never put down to rounding."""

_DRAWS = 3

_SWITCHED = {"training", "cast_input_dtype_enabled"}
"""Attributes that a training step switches and switches back, of modules and of adapters: see `training_adapters`."""

_PLAIN = (bool, int, float, str)
_COLLECTIONS = (dict, list, tuple, set)

State = dict[tuple[int, str], object]

_POOLINGS: tuple[PoolingName, ...] = ("last", "mean")

_BATCH_TOKENS = 26
"""Packs the sample rows in two batches, at least one of which has several rows."""


@dataclass(frozen=True)
class PackingCheck:
    """The packed copy of a model, or the reason why there is none, and the distances measured."""

    packed_model: PackedModel | None  # The packed copy, where its vectors are those of padded batches.
    reason: str = ""  # Why there is none.
    distance: float | None = None  # Largest relative distance between packed and padded vectors, if it was measured.
    limit: float | None = None
    refused: tuple[str, ...] = ()  # Faster kernels that do not compute this model's attention, each with its reason.


@dataclass(frozen=True)
class _Checked:
    """The check of a model in one state."""

    check: PackingCheck
    state: State
    """What decides its vectors."""
    volatile: Set[tuple[int, str]]
    """What a forward pass changes, which is not in the state."""
    parts: list[object]
    """Objects whose ids are in the state: while they live, no other has the same."""


_cache: WeakKeyDictionary[PreTrainedModel, _Checked] = WeakKeyDictionary()


def check_packing(model: PreTrainedModel, *, anew: bool = False) -> PackingCheck:
    """Give the model's packed copy, or say why it has none; checked once for a model and again when it changes.

    A model that passed in another process is not measured again, see `kept_checks`; `anew` measures always.
    """
    cached, state = _cache.get(model), _state(model)
    if anew or cached is None or cached.state != _without(state, cached.volatile):
        check, after = _check(model, anew), _state(model)
        volatile = {key for key in state.keys() & after.keys() if state[key] != after[key]}
        cached = _cache[model] = _Checked(check, _without(after, volatile), volatile, _parts(model))
    return cached.check


def _without(state: State, keys: Set[tuple[int, str]]) -> State:
    return {key: state[key] for key in state.keys() - keys} if keys else state


def _state(model: PreTrainedModel) -> State:
    """Attributes of all modules: weights, buffers, hooks, numbers, and which adapters of PEFT are active and merged.

    Numbers and texts stand for themselves, also in lists and by names, and objects for their ids. It is read at every
    call of an encoder, so it has to be quick: most attributes of a module are empty collections, which are left out.
    """
    state: State = {(0, "dtype"): model.dtype, (0, "device"): model.device}
    for module in model.modules():
        number = id(module)
        for name, value in vars(module).items():
            if name in _SWITCHED:
                continue
            if not isinstance(value, _COLLECTIONS):
                state[number, name] = value if isinstance(value, _PLAIN) else id(value)
            elif value:
                named = value.items() if isinstance(value, dict) else enumerate(value)
                state[number, name] = [(key, each if isinstance(each, _PLAIN) else id(each)) for key, each in named]
    return state


def _parts(model: nn.Module) -> list[object]:
    parts: list[object] = []
    for module in model.modules():
        if module is not model:  # A reference to the model itself would keep it alive.
            parts.append(module)
        parts += [*module._parameters.values(), *module._buffers.values()]
        parts += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return parts


def _check(model: PreTrainedModel, anew: bool) -> PackingCheck:
    """Try one kernel after the other."""
    refused: list[str] = []
    kernels = attention_kernels(attention_implementation(model), input_device(model))
    for kernel in kernels:
        check = _check_kernel(model, kernel, anew)
        if check.packed_model:
            if refused:
                warn(f"Attention is computed by {kernel}, not by {'; '.join(refused)}", KernelWarning)
            return replace(check, refused=tuple(refused))
        refused.append(f"{kernel}: {check.reason}")
    return replace(check, refused=tuple(refused[:-1]))


def _check_kernel(model: PreTrainedModel, kernel: AttentionKernel, anew: bool) -> PackingCheck:
    kept = KeptCheck(f"packing-{kernel}", model)
    limit = tolerances(model.dtype).packing
    try:
        packed = PackedModel(model, kernel)
        if kept.passed and not anew:
            fuse_modules(packed.model)
            return PackingCheck(packed)
        with without_autocast(model):
            distance = _distance(model, packed)
    except (NotPackableError, KernelRefusal) as error:
        return PackingCheck(None, str(error))
    except Exception as error:  # Models and kernels fail in ways of their own, and all models run padded.
        return PackingCheck(None, f"{type(model).__name__} does not run packed ({type(error).__name__})")
    if not distance <= limit:
        limit = max(limit, min(_ROUNDINGS * _rounding(model), _UNEXPLAINED))
    if not distance <= limit:
        reason = f"packed vectors differ from padded ones by {distance:.2g}; something does not know where a text ends"
        return PackingCheck(None, reason, distance, limit)
    kept.keep()
    fuse_modules(packed.model)  # Each part compared on its own; before, packed and padded round alike.
    return PackingCheck(packed, "", distance, limit)


@torch.inference_mode()
def _distance(model: PreTrainedModel, packed: PackedModel) -> float:
    """Largest relative distance between packed and padded vectors of rows with and without common prefixes.

    Rows of a few random tokens would be ill-conditioned: on SmolLM2 in float32 one of three tokens is 2e-5 away from
    float64 however it is run (in bfloat16 up to 0.5), where longer ones and sentences are 1e-6 away.
    """
    tokens, largest = _sample_tokens(model), 0.0
    for pooling, expected_BD in zip(_POOLINGS, _padded(model, tokens), strict=True):
        for rows in (range(len(tokens)), [0]):  # One text alone has an attention of its own.
            runner = PackedRunner(packed, tokens.select(rows), HiddenStateReadout(pooling))
            for group in runner.batches(range(len(rows)), _BATCH_TOKENS):
                expected = expected_BD[[rows[number] for number in group]]
                largest = max(largest, relative_distance(runner.vectors(group), expected))
    return largest


@torch.inference_mode()
def _rounding(model: PreTrainedModel) -> float:
    """How far padded vectors move when each number of the embeddings is off by half a step of the model's dtype."""
    noisy, tokens = shared_copy(model), _sample_tokens(model)
    generator = torch.Generator().manual_seed(0)

    def add_noise(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        steps = torch.rand(output.shape, generator=generator).sub(0.5).mul(torch.finfo(output.dtype).eps)
        return output + output * steps.to(output)

    noisy.get_input_embeddings().register_forward_hook(add_noise)
    expected = _padded(model, tokens)
    return max(
        relative_distance(noisy_BD, expected_BD)
        for _ in range(_DRAWS)
        for noisy_BD, expected_BD in zip(_padded(noisy, tokens), expected, strict=True)
    )


def _sample_tokens(model: PreTrainedModel) -> Tokens:
    """Rows with and without common prefixes."""
    ids = sample_token_ids(model)
    rows = [ids[:10], [*ids[:5], *ids[10:15]], [*ids[:5], *ids[10:13], *ids[15:20]], [*ids[:2], *ids[14:]]]
    return Tokens(rows, [(0, len(row)) for row in rows], 0)


def _padded(model: PreTrainedModel, tokens: Tokens) -> tuple[Tensor, ...]:
    """Vectors (B, D) by each pooling, of one pass over all rows."""
    readout = JoinedReadout(tuple(map(HiddenStateReadout, _POOLINGS)), "stack")
    return PaddedRunner(model, tokens, readout, 0).vectors(range(len(tokens))).unbind(1)
