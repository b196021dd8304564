"""Check whether a model can be packed: packed against padded vectors, once for each model.

Shapes: B rows, D width.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.fused_modules import fuse_modules
from bellm.backbone.hooks import shared_copy
from bellm.backbone.leakage import sample_token_ids
from bellm.backbone.packed_batch import NotPackableError
from bellm.backbone.packed_model import PackedModel
from bellm.engine.packed import PackedRunner
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.tensors.tolerances import relative_distance, tolerances
from bellm.types import PoolingName

_ROUNDINGS = 3
"""How many times the effect of one rounding explains a distance, in models that make much of it."""

_UNEXPLAINED = 0.5
_DRAWS = 3

_POOLINGS: tuple[PoolingName, ...] = ("last", "mean")


@dataclass(frozen=True)
class PackingCheck:
    """Outcome of the check."""

    packed_model: PackedModel | None
    """The packed copy, where its vectors are those of padded batches."""
    reason: str = ""
    """Why there is none."""
    distance: float | None = None
    """Largest relative distance between packed and padded vectors."""
    limit: float | None = None


class _Remembered:
    """A check, as long as the model stays what it was."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.parts = _parts(model)
        self.kind = model.dtype, model.device
        self.check = _check(model)

    def holds(self, model: PreTrainedModel) -> bool:
        parts = _parts(model)
        same = len(parts) == len(self.parts) and all(a is b for a, b in zip(parts, self.parts, strict=True))
        return same and self.kind == (model.dtype, model.device)


_remembered: WeakKeyDictionary[PreTrainedModel, _Remembered] = WeakKeyDictionary()


def check_packing(model: PreTrainedModel) -> PackingCheck:
    """Give the model's packed copy, or say why it has none; checked once for a model and again when it changes."""
    known = _remembered.get(model)
    if known is None or not known.holds(model):
        known = _remembered[model] = _Remembered(model)
    return known.check


def _parts(model: nn.Module) -> list[object]:
    """All modules below the model, all parameters and hooks: what a copy is made from."""
    parts: list[object] = []
    for module in model.modules():
        if module is not model:  # A reference to the model itself would keep it alive.
            parts.append(module)
        parts += [*module._parameters.values(), *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        parts.append(getattr(module, "_disable_adapters", None))  # Of PEFT, which switches them off without a hook.
    return parts


def _check(model: PreTrainedModel) -> PackingCheck:
    limit = tolerances(model.dtype).packing
    try:
        packed = PackedModel(model)
        distance = _distance(model, packed)
    except NotPackableError as reason:
        return PackingCheck(None, str(reason))
    except Exception as error:  # Models fail in ways of their own, and the padded way is open to all of them.
        return PackingCheck(None, f"{type(model).__name__} does not run packed ({type(error).__name__})")
    if not distance <= limit:
        limit = max(limit, min(_ROUNDINGS * _rounding(model), _UNEXPLAINED))
    if not distance <= limit:
        said = f"packed vectors differ from padded ones by {distance:.2g}; something does not know where a text ends"
        return PackingCheck(None, said, distance, limit)
    fuse_modules(packed.model)  # Each part compared on its own; before, packed and padded round alike.
    return PackingCheck(packed, "", distance, limit)


@torch.inference_mode()
def _distance(model: PreTrainedModel, packed: PackedModel) -> float:
    """Largest relative distance between packed and padded vectors of rows with and without common prefixes.

    Rows of a few random tokens would be ill-conditioned: on SmolLM2 in float32 one of three tokens is 2e-5 away from
    float64 however it is run (in bfloat16 up to 0.5), where longer ones and sentences are 1e-6 away.
    """
    tokens, largest = _tokens(model), 0.0
    for pooling in _POOLINGS:
        wanted = _padded(model, tokens, pooling)
        runner = PackedRunner(packed, tokens, HiddenStateReadout(pooling))
        for group in runner.batches(range(len(tokens)), 12):
            largest = max(largest, relative_distance(runner.vectors(group), wanted[group]))
    return largest


@torch.inference_mode()
def _rounding(model: PreTrainedModel) -> float:
    """How far padded vectors move when each number of the embeddings is off by half a step of the model's dtype."""
    stirred, tokens = shared_copy(model), _tokens(model)
    draw = torch.Generator().manual_seed(0)

    def stir(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        steps = torch.rand(output.shape, generator=draw).sub(0.5).mul(torch.finfo(output.dtype).eps)
        return output + output * steps.to(output)

    stirred.get_input_embeddings().register_forward_hook(stir)
    wanted = {pooling: _padded(model, tokens, pooling) for pooling in _POOLINGS}
    return max(
        relative_distance(_padded(stirred, tokens, pooling), wanted_BD)
        for pooling, wanted_BD in wanted.items()
        for _ in range(_DRAWS)
    )


def _tokens(model: PreTrainedModel) -> Tokens:
    """Rows with and without common prefixes."""
    ids = sample_token_ids(model)
    rows = [ids[:10], [*ids[:5], *ids[10:15]], [*ids[:5], *ids[10:13], *ids[15:20]], [*ids[:2], *ids[14:]]]
    return Tokens(rows, [(0, len(row)) for row in rows], 0)


def _padded(model: PreTrainedModel, tokens: Tokens, pooling: PoolingName) -> Tensor:
    return PaddedRunner(model, tokens, HiddenStateReadout(pooling), 0).vectors(range(len(tokens)))
